// Command demoregistry serves one busybox image from a registry on loopback
// until it is killed, for the demo and for trying things by hand.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/podwright/podwright/test/e2e/registry"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "demoregistry:", err)
		os.Exit(1)
	}
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on; port 0 takes a free one")
	binary := flag.String("rootfs-binary", "/bin/busybox", "statically linked busybox to make the image of")
	repo := flag.String("repo", "demo/busybox:1", "repository and tag to serve it as")
	addrFile := flag.String("addr-file", "", "file that gets host:port once requests are answered")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	img, err := registry.Busybox(runtime.GOARCH, *binary, v1.Config{
		Cmd: []string{"/bin/sh"},
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	})
	if err != nil {
		return err
	}
	server := registry.New(registry.Config{})
	digest, err := server.Push(*repo, img)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	address := listener.Addr().String()
	fmt.Printf("serving %s/%s (%s)\n", address, *repo, digest)
	if *addrFile != "" {
		if err := writeWhole(*addrFile, address+"\n"); err != nil {
			return err
		}
	}
	return server.Serve(ctx, listener)
}

// writeWhole lets whoever waits for the file see all of it or none.
func writeWhole(path, text string) error {
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(temp, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(temp, path)
}
