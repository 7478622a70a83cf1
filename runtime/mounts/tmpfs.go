package mounts

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// TmpfsOptions describe one tmpfs. It is always nosuid and nodev unless told
// otherwise.
type TmpfsOptions struct {
	// SizeBytes limits its content; 0 is the kernel's default, half of memory.
	SizeBytes int64
	// Inodes limits its files; 0 is the kernel's default.
	Inodes int64
	// Mode of its root; 0 is the kernel's default, 01777.
	Mode     fs.FileMode
	UID, GID uint32
	NoExec   bool
	ReadOnly bool
	Dev      bool // device nodes work in it
	Suid     bool // set-uid programs work in it
	// MountLabel is the SELinux context that all files show, or empty.
	MountLabel string
}

// Tmpfs returns a detached tmpfs.
func (o *Opener) Tmpfs(ctx context.Context, opts TmpfsOptions) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("tmpfs: %w", err)
	}
	if opts.SizeBytes < 0 || opts.Inodes < 0 {
		return nil, fmt.Errorf("tmpfs of %d bytes, %d inodes: %w", opts.SizeBytes, opts.Inodes, ErrInvalid)
	}
	c, err := sys.OpenFS("tmpfs")
	if err != nil {
		return nil, err
	}
	defer c.Close()
	values := [][2]string{
		{"uid", strconv.FormatUint(uint64(opts.UID), 10)}, {"gid", strconv.FormatUint(uint64(opts.GID), 10)},
	}
	if opts.Mode != 0 {
		values = append(values, [2]string{"mode", strconv.FormatUint(uint64(modeBits(opts.Mode)), 8)})
	}
	if opts.SizeBytes > 0 {
		values = append(values, [2]string{"size", strconv.FormatInt(opts.SizeBytes, 10)})
	}
	if opts.Inodes > 0 {
		values = append(values, [2]string{"nr_inodes", strconv.FormatInt(opts.Inodes, 10)})
	}
	if opts.MountLabel != "" {
		values = append(values, [2]string{"context", opts.MountLabel})
	}
	for _, v := range values {
		if err := c.SetString(v[0], v[1]); err != nil {
			return nil, err
		}
	}
	if err := c.Create(); err != nil {
		return nil, err
	}
	attrs := 0
	for attr, set := range map[int]bool{
		unix.MOUNT_ATTR_NOSUID: !opts.Suid, unix.MOUNT_ATTR_NODEV: !opts.Dev,
		unix.MOUNT_ATTR_NOEXEC: opts.NoExec, unix.MOUNT_ATTR_RDONLY: opts.ReadOnly,
	} {
		if set {
			attrs |= attr
		}
	}
	return c.Mount(attrs)
}

// modeBits turns Go's mode into the kernel's 12 bits.
func modeBits(mode fs.FileMode) uint32 {
	bits := uint32(mode.Perm())
	for _, b := range []struct {
		mode fs.FileMode
		bit  uint32
	}{{fs.ModeSetuid, unix.S_ISUID}, {fs.ModeSetgid, unix.S_ISGID}, {fs.ModeSticky, unix.S_ISVTX}} {
		if mode&b.mode != 0 {
			bits |= b.bit
		}
	}
	return bits
}
