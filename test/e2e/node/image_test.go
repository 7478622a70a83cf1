package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/test/e2e/registry"
)

// hub is the registry of all nodes, on loopback, in this process.
var hub struct {
	once    sync.Once
	err     error
	server  *registry.Registry
	address string
	layers  []v1.Layer
}

// openHub serves busybox with the probe on top, as node/test:1.
func openHub() error {
	hub.once.Do(func() { hub.err = makeHub() })
	return hub.err
}

func makeHub() error {
	dir := os.Getenv(workVariable)
	probe := filepath.Join(dir, "probe")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", probe, "./probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the probe: %w: %s", err, out)
	}
	program, err := os.ReadFile(probe)
	if err != nil {
		return err
	}
	base, err := registry.Busybox(runtime.GOARCH, "/bin/busybox", v1.Config{})
	if err != nil {
		return fmt.Errorf("busybox-static is missing: %w", err)
	}
	if hub.layers, err = base.Layers(); err != nil {
		return err
	}
	suid := registry.Regular("bin/suid-probe", 0o4755, string(program))
	top, err := registry.Layer(registry.Gzip, registry.Dir("bin", 0o755), registry.Regular("bin/probe", 0o755, string(program)), suid,
		registry.Dir("data", 0o750), registry.Regular("data/seed", 0o640, "from the image\n"), registry.Link("data/link", "seed"),
		registry.Dir("etc", 0o755),
		registry.Regular("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000:worker:/home/worker:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
		registry.Regular("etc/group", 0o644, "root:x:0:\nworker:x:1000:\nextra:x:2000:worker\nnogroup:x:65534:\n"))
	if err != nil {
		return err
	}
	hub.layers = append(hub.layers, top)
	hub.server = registry.New(registry.Config{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	hub.address = listener.Addr().String()
	// Owner: the process; ends with it.
	go hub.server.Serve(context.Background(), listener)
	_, err = push("node/test:1", v1.Config{})
	return err
}

// push serves an image of the same layers with another config.
func push(ref string, config v1.Config) (string, error) {
	img, err := registry.Image(runtime.GOARCH, config, hub.layers...)
	if err != nil {
		return "", err
	}
	_, err = hub.server.Push(ref, img)
	return hub.address + "/" + ref, err
}

// testImage is the reference most containers use.
func testImage() (string, error) {
	if err := openHub(); err != nil {
		return "", err
	}
	return hub.address + "/node/test:1", nil
}

// pulled gives an image with that config, and removes it after the test.
func (n *node) pulled(t *testing.T, ref string, config v1.Config) string {
	t.Helper()
	name, err := push(ref, config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := n.images.PullImage(ctx, &criv1.PullImageRequest{Image: &criv1.ImageSpec{Image: name}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := n.images.RemoveImage(context.Background(), &criv1.RemoveImageRequest{Image: &criv1.ImageSpec{Image: name}}); err != nil {
			t.Error(err)
		}
	})
	return name
}
