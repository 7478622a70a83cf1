package registry

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Busybox makes an image of one statically linked busybox: its applets as
// hard links in /bin (masking one must not mask the others' file name), the
// directories a container needs, root and nobody.
func Busybox(arch, binary string, config v1.Config) (v1.Image, error) {
	program, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	if err := checkStatic(program); err != nil {
		return nil, fmt.Errorf("%s: %w", binary, err)
	}
	applets, err := exec.Command(binary, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", binary, err)
	}
	files := []File{
		Dir("bin", 0o755), Dir("dev", 0o755), Dir("etc", 0o755), Dir("home", 0o755), Dir("proc", 0o755),
		Dir("root", 0o700), Dir("sys", 0o755), Dir("tmp", 0o1777), Dir("usr", 0o755), Link("usr/bin", "../bin"),
		Dir("var", 0o755),
		Regular("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
		Regular("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n"),
		{Header: tar.Header{Name: "bin/busybox", Mode: 0o755}, Content: program},
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" && !strings.Contains(applet, "/") {
			files = append(files, HardLink("bin/"+applet, "bin/busybox", 0o755))
		}
	}
	layer, err := Layer(Gzip, files...)
	if err != nil {
		return nil, err
	}
	return Image(arch, config, layer)
}

// checkStatic refuses a busybox that needs libraries: in an image of its own
// it would not start.
func checkStatic(program []byte) error {
	file, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return err
	}
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			return fmt.Errorf("is dynamically linked; Debian's busybox-static is what is needed")
		}
	}
	return nil
}
