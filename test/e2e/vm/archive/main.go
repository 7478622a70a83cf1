// Command archive writes an image of a static busybox as an archive of docker save, for
// guests that have no registry. It owns nothing but the file it writes.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/podwright/podwright/test/e2e/registry"
)

func main() {
	binary := flag.String("rootfs-binary", "/bin/busybox", "statically linked busybox to make the image of")
	tag := flag.String("tag", "localhost/busybox:1", "name of the image")
	output := flag.String("output", "", "file to write")
	flag.Parse()
	if err := write(*binary, *tag, *output); err != nil {
		fmt.Fprintln(os.Stderr, "archive:", err)
		os.Exit(1)
	}
}

func write(binary, tag, output string) error {
	ref, err := name.NewTag(tag)
	if err != nil {
		return err
	}
	image, err := registry.Busybox(runtime.GOARCH, binary, v1.Config{Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/usr/bin:/bin"}})
	if err != nil {
		return err
	}
	return tarball.WriteToFile(output, ref, image)
}
