package seccompprofiles

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoReference is for a Localhost profile without a reference, which must
// never come to mean unconfined (CVE-2023-2431).
var ErrNoReference = errors.New("a Localhost seccomp profile needs a localhost_ref")

// Localhost reads the profile that SecurityProfile.localhost_ref names. The
// kubelet sends an absolute path below its seccomp directory; a relative one is
// taken below root. Both must stay below root by name; root "/" admits every
// path. Symbolic links are followed wherever they lead: they are the node
// administrator's (the security profiles operator makes one out of the
// directory), while the name comes from whoever wrote the pod.
func Localhost(root, ref string) ([]byte, error) {
	if ref == "" {
		return nil, ErrNoReference
	}
	if strings.ContainsRune(ref, 0) {
		return nil, fmt.Errorf("localhost seccomp profile %s: the name contains a zero byte", quote(ref))
	}
	if !filepath.IsAbs(root) {
		return nil, fmt.Errorf("localhost seccomp profile %s: the directory of profiles is not an absolute path: %s", quote(ref), quote(root))
	}
	if slices.Contains(strings.Split(ref, "/"), "..") {
		return nil, fmt.Errorf("localhost seccomp profile %s: the name contains ..", quote(ref))
	}
	path := ref
	if !filepath.IsAbs(path) {
		path = filepath.Join(root, path)
	}
	if below, err := filepath.Rel(root, path); err != nil || below == ".." || strings.HasPrefix(below, "../") {
		return nil, fmt.Errorf("localhost seccomp profile %s: not below %s", quote(ref), root)
	}
	data, err := readRegular(path)
	if err != nil {
		return nil, fmt.Errorf("localhost seccomp profile %s: %w", quote(ref), err)
	}
	return data, nil
}

// readRegular reads a bounded regular file. O_NONBLOCK: a FIFO or a device of
// that name must not hold up the request before its type is known.
// RESOLVE_NO_MAGICLINKS: /proc/<pid>/fd and the like lead past any name.
func readRegular(path string) ([]byte, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxProfileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > maxProfileBytes {
		return nil, fmt.Errorf("%s is larger than 1 MiB", path)
	}
	return data, nil
}
