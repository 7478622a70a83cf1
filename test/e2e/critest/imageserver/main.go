// Command imageserver serves critest's images from a registry in memory.
// It owns the registry and the hosts.toml files that lead the public names to it; what is in
// the images is imageset's. It listens where it is told, on loopback.
// Source: distribution's HTTP API; containerd's docs/hosts.md.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/podwright/podwright/test/e2e/critest/imageset"
)

func main() {
	busybox := flag.String("busybox", "", "directory `tree` of busybox and its applets")
	program := flag.String("program", "", "static `executable` for the images that need one")
	listen := flag.String("listen", "127.0.0.1:5000", "`address` to serve on")
	hosts := flag.String("hosts", "", "`directory` to write one <registry>/hosts.toml per public registry to")
	digest := flag.Bool("digest", false, "print the digest of "+imageset.DigestRepository+" and exit")
	flag.Parse()

	images, err := imageset.Build(imageset.Config{BusyboxDir: *busybox, Program: *program})
	if err == nil && *digest {
		err = printDigest(images)
	} else if err == nil {
		err = serve(*listen, *hosts, images)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "imageserver:", err)
		os.Exit(1)
	}
}

func printDigest(images []imageset.Image) error {
	for _, image := range images {
		if strings.HasPrefix(image.Name, imageset.DigestRepository+":") {
			digest, err := image.Index.Digest()
			if err != nil {
				return err
			}
			fmt.Println(digest)
			return nil
		}
	}
	return fmt.Errorf("no image %s", imageset.DigestRepository)
}

// serve fills a registry, leads the public names to it and answers until it is killed. It
// names every image by its digest on stdout, and says so once all can be pulled.
func serve(address, hostsDir string, images []imageset.Image) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	served := make(chan error, 1)
	// Owned by serve, which waits for its answer below; ends with the process.
	go func() { served <- http.Serve(listener, handler) }()
	for _, image := range images {
		digest, err := push(listener.Addr().String(), image)
		if err != nil {
			return fmt.Errorf("push %s: %w", image.Name, err)
		}
		fmt.Printf("image %s@%s\n", image.Name, digest)
		if hostsDir != "" {
			if err := writeHosts(hostsDir, image.Name, listener.Addr().String()); err != nil {
				return err
			}
		}
	}
	fmt.Printf("serving %d images on %s\n", len(images), listener.Addr())
	return <-served
}

// push stores an image under its path in the public registry, so that a client that asks
// this registry in the place of that one finds it, and gives its digest.
func push(address string, image imageset.Image) (v1.Hash, error) {
	_, path, _ := strings.Cut(image.Name, "/")
	tag, err := name.NewTag(address+"/"+path, name.Insecure)
	if err != nil {
		return v1.Hash{}, err
	}
	if image.Single != nil {
		if err := remote.Write(tag, image.Single); err != nil {
			return v1.Hash{}, err
		}
		return image.Single.Digest()
	}
	if err := remote.WriteIndex(tag, image.Index); err != nil {
		return v1.Hash{}, err
	}
	return image.Index.Digest()
}

func writeHosts(dir, image, address string) error {
	public, _, _ := strings.Cut(image, "/")
	if err := os.MkdirAll(filepath.Join(dir, public), 0o755); err != nil {
		return err
	}
	// server is the fallback: naming it keeps a miss from going to the real registry.
	text := fmt.Sprintf("server = %[1]q\n\n[host.%[1]q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://"+address)
	return os.WriteFile(filepath.Join(dir, public, "hosts.toml"), []byte(text), 0o644)
}
