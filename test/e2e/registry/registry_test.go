package registry

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

const busybox = "/bin/busybox"

// Another client than ours finds the images sound and is asked for
// credentials.
func TestServedImagesAreValid(t *testing.T) {
	r := New(Config{Auth: &Auth{Username: "user", Password: "password", Bearer: true, Token: "tok3n"}})
	images := map[Packing]v1.Image{}
	for packing, arch := range map[Packing]string{Gzip: "amd64", Zstd: "arm64", Plain: "amd64"} {
		layer, err := Layer(packing, Dir("etc", 0o755), Regular("etc/a", 0o600, "text"), Link("b", "etc/a"), HardLink("c", "etc/a", 0o600))
		if err != nil {
			t.Fatal(err)
		}
		img, err := Image(arch, v1.Config{Env: []string{"A=b"}}, layer)
		if err != nil {
			t.Fatal(err)
		}
		images[packing] = img
	}
	if _, err := r.PushIndex("multi:1", Index(map[string]v1.Image{"amd64": images[Gzip], "arm64": images[Zstd]})); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Push("plain:1", images[Plain]); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx, listener) }() // waited for below
	auth := remote.WithAuth(&authn.Basic{Username: "user", Password: "password"})
	ref := func(text string) name.Reference {
		parsed, err := name.ParseReference(listener.Addr().String() + "/" + text)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	index, err := remote.Index(ref("multi:1"), auth)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index, validate.Fast); err != nil {
		t.Error(err)
	}
	img, err := remote.Image(ref("plain:1"), auth)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img, validate.Fast); err != nil {
		t.Error(err)
	}
	if _, err := remote.Image(ref("plain:1")); err == nil {
		t.Error("served without credentials")
	}
	if seen := r.Requests(); len(seen) == 0 || seen[len(seen)-1].Path != "/token" {
		t.Errorf("got %v", seen)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The demo's program: what it says in its file is what it serves, until it is
// told to stop.
func TestDemoRegistryServesBusybox(t *testing.T) {
	if _, err := os.Stat(busybox); err != nil {
		t.Skipf("needs %s (Debian's busybox-static)", busybox)
	}
	dir := t.TempDir()
	program, addrFile := filepath.Join(dir, "demoregistry"), filepath.Join(dir, "addr")
	if out, err := exec.Command("go", "build", "-o", program, "./cmd/demoregistry").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	server := exec.Command(program, "-rootfs-binary", busybox, "-repo", "demo/busybox:1", "-addr-file", addrFile)
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer server.Process.Kill()
	var address []byte
	for deadline := time.Now().Add(20 * time.Second); len(address) == 0; time.Sleep(20 * time.Millisecond) {
		if address, _ = os.ReadFile(addrFile); time.Now().After(deadline) {
			t.Fatal("no address")
		}
	}
	ref, err := name.ParseReference(strings.TrimSpace(string(address)) + "/demo/busybox:1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	links := map[string]string{}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	stream, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	reader := tar.NewReader(stream)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		links[header.Name] = header.Linkname
		// Unpackers chmod with every name of a file; the last one counts.
		if strings.HasPrefix(header.Name, "bin/") && header.Mode&0o7777 != 0o755 {
			t.Errorf("%s: mode %o", header.Name, header.Mode)
		}
	}
	for _, applet := range []string{"bin/sh", "bin/sleep", "bin/cat"} {
		if links[applet] != "bin/busybox" {
			t.Errorf("%s: got link to %q", applet, links[applet])
		}
	}
	if _, found := links["tmp/"]; !found {
		t.Error("no /tmp")
	}
	server.Process.Signal(os.Interrupt)
	if err := server.Wait(); err != nil {
		t.Errorf("stop: %v", err)
	}
}
