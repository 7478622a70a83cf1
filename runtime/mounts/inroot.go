package mounts

import (
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// OpenInRoot opens a path that an image or container controls, with root as "/":
// absolute symlinks and ".." stay inside, and magic links (/proc/*/fd) are
// refused. root may be a detached mount and stays the caller's. flags are O_*;
// O_CREAT is not for here. An open of what may be a FIFO or a device is the
// caller's risk: use O_PATH, or ReadFileInRoot.
func OpenInRoot(root *os.File, path string, flags int) (*os.File, error) {
	if flags&unix.O_CREAT != 0 {
		return nil, fmt.Errorf("open %s in root: O_CREAT: %w", path, ErrInvalid)
	}
	return sys.Openat2(root, path, unix.OpenHow{
		Flags: uint64(uint32(flags)), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// ReadFileInRoot reads a regular file of an image whole, with root as "/". More
// than maxBytes is ErrTooLarge (CVE-2026-47262: an image's /etc/passwd ended the
// daemon). What is no regular file is refused before it is opened, because the
// open of a device can act and that of a FIFO can wait.
func ReadFileInRoot(root *os.File, path string, maxBytes int64) ([]byte, error) {
	at, err := OpenInRoot(root, path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	info, err := at.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("%v is no regular file: %w", info.Mode().Type(), ErrInvalid)}
	}
	f, err := sys.Reopen(at, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > maxBytes {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("more than %d bytes: %w", maxBytes, ErrTooLarge)}
	}
	return data, nil
}
