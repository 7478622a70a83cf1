package image

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/podwright/podwright/test/e2e/registry"
)

// testUnpacker is this program, see TestMain.
var testUnpacker = []string{"/proc/self/exe", "unpack-layers"}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == testUnpacker[1] {
		if err := ServeLayers(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == takenOver[1] {
		var job io.Reader = os.Stdin
		if len(os.Args) > 3 {
			job = nil // free
		}
		if err := tryAll(job, os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// needRoot skips where layers can't be unpacked with their owners.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers are unpacked with owners and device nodes")
	}
}

// openStore opens a store in dir, closed with the test unless closed before.
func openStore(t *testing.T, config Config) *Store {
	t.Helper()
	needRoot(t)
	if config.Platform == "" {
		config.Platform = "linux/amd64"
	}
	config.collectDelay, config.Unpacker = 50*time.Millisecond, testUnpacker
	s, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// serve runs a registry on loopback and returns its host:port.
func serve(t *testing.T, r *registry.Registry) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx, listener) }() // ended and waited for by the cleanup
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

func layer(t *testing.T, packing registry.Packing, files ...registry.File) v1.Layer {
	t.Helper()
	l, err := registry.Layer(packing, files...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func build(t *testing.T, arch string, config v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := registry.Image(arch, config, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func push(t *testing.T, r *registry.Registry, ref string, img v1.Image) string {
	t.Helper()
	digest, err := r.Push(ref, img)
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

// simple returns a small image that differs from those with another text.
func simple(t *testing.T, text string) v1.Image {
	t.Helper()
	return build(t, "amd64", v1.Config{Cmd: []string{"/hello"}, User: "1000"},
		layer(t, registry.Gzip, registry.Dir("etc", 0o755), registry.Regular("etc/text", 0o640, text)))
}

func imageID(t *testing.T, img v1.Image) string {
	t.Helper()
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

func pull(t *testing.T, s *Store, ref string) Image {
	t.Helper()
	img, err := s.Pull(t.Context(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// readLayer reads a file out of the topmost layer directory that has it.
func readLayer(t *testing.T, s *Store, id, name string) string {
	t.Helper()
	dirs, err := s.Layers(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			return string(data)
		}
	}
	t.Fatalf("no layer of %s has %s: %v", id, name, dirs)
	return ""
}

// eventually waits until what returns "" and fails with its last word.
func eventually(t *testing.T, what func() string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		problem := what()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(problem)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// onDisk counts the layer directories and blobs of a store.
func onDisk(t *testing.T, root string) (layers, blobs int) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(root, "layers/snapshots/*"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(root, "content/blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(dirs), len(files)
}

// mountsBelow lists mounts inside a directory, of which there must be none.
func mountsBelow(t *testing.T, dir string) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, dir) {
			found = append(found, line)
		}
	}
	return found
}
