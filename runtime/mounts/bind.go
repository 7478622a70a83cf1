package mounts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// Propagation of mounts between a bind's source and the container.
type Propagation int

const (
	// Private: none in either direction.
	Private Propagation = iota
	// Slave: what the host mounts later appears in the container (HostToContainer).
	Slave
	// Shared: in both directions (Bidirectional).
	Shared
)

// BindSource is a host path and how the container sees it.
type BindSource struct {
	// Path is absolute. Symlinks in it are followed: the host is trusted.
	Path string
	// Recursive takes the mounts below Path along.
	Recursive bool
	// ReadOnly makes the mount at Path read-only; mounts below keep their own mode,
	// as in Kubernetes, unless RecursiveReadOnly is set, which needs both others.
	ReadOnly          bool
	RecursiveReadOnly bool
	Propagation       Propagation
	// NoExec, NoDev and NoSuid hold for the mounts below too: they are asked for
	// as a protection, and a volume that has mounts in it is no exception.
	NoExec, NoDev, NoSuid bool
	// UserNS, if not nil, is the user namespace whose mapping the mount gets
	// (idmapped); it stays the caller's.
	UserNS *os.File
}

// Tree is a detached mount. File is open with O_PATH; the caller closes it.
type Tree struct {
	File  *os.File
	IsDir bool
	// Mode is the type and the permissions of the source.
	Mode fs.FileMode
}

// OpenBind returns a detached mount of src, cut off from the host's propagation
// unless src says otherwise. A missing path is fs.ErrNotExist. It returns when
// ctx ends even if the path hangs.
func (o *Opener) OpenBind(ctx context.Context, src BindSource) (*Tree, error) {
	if !filepath.IsAbs(src.Path) || strings.ContainsRune(src.Path, 0) {
		return nil, fmt.Errorf("bind %q: want an absolute path: %w", src.Path, ErrInvalid)
	}
	if src.RecursiveReadOnly && (!src.ReadOnly || !src.Recursive || src.Propagation != Private) {
		return nil, fmt.Errorf("bind %s: recursively read-only needs read-only, recursive and private: %w", src.Path, ErrInvalid)
	}
	tree := &Tree{}
	file, err := o.guarded(ctx, filepath.Clean(src.Path), func() (*os.File, error) {
		return openBind(src)
	})
	if err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	tree.File = file
	var st unix.Statx_t
	// DONT_SYNC: the attributes that the lookup has just fetched; asking a network
	// file system again could hang here.
	err = unix.Statx(int(file.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_MODE, &st)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("bind: %w", &fs.PathError{Op: "statx", Path: src.Path, Err: err})
	}
	tree.Mode = fileMode(uint32(st.Mode))
	tree.IsDir = tree.Mode.IsDir()
	return tree, nil
}

// openBind may hang in the first call; the others don't touch the file system.
func openBind(src BindSource) (*os.File, error) {
	// Without OPEN_TREE_CLONE this is an O_PATH open that triggers automounts.
	at, err := sys.OpenTree(nil, src.Path, 0)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	if src.Propagation != Private {
		if err := checkPropagation(at, src); err != nil {
			return nil, err
		}
	}
	flags := uint(unix.OPEN_TREE_CLONE | unix.AT_EMPTY_PATH)
	if src.Recursive {
		flags |= unix.AT_RECURSIVE
	}
	tree, err := sys.OpenTree(at, "", flags)
	if err != nil {
		return nil, err
	}
	if err := setAttributes(tree, src); err != nil {
		tree.Close()
		return nil, err
	}
	return tree, nil
}

// setAttributes first does what holds for the whole tree, then the read-only of
// its top alone.
func setAttributes(tree *os.File, src BindSource) error {
	whole := unix.MountAttr{}
	switch src.Propagation {
	case Private:
		whole.Propagation = unix.MS_PRIVATE
	case Slave:
		whole.Propagation = unix.MS_SLAVE
	}
	for attr, set := range map[uint64]bool{
		unix.MOUNT_ATTR_NOEXEC: src.NoExec, unix.MOUNT_ATTR_NODEV: src.NoDev, unix.MOUNT_ATTR_NOSUID: src.NoSuid,
		unix.MOUNT_ATTR_RDONLY: src.RecursiveReadOnly,
	} {
		if set {
			whole.Attr_set |= attr
		}
	}
	if src.UserNS != nil {
		whole.Attr_set |= unix.MOUNT_ATTR_IDMAP
		whole.Userns_fd = uint64(src.UserNS.Fd())
	}
	if whole != (unix.MountAttr{}) {
		err := sys.MountSetattr(tree, src.Recursive, whole)
		if src.UserNS != nil && errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("the file system has no idmapped mounts: %w: %w", ErrNotSupported, err)
		}
		if err != nil {
			return err
		}
	}
	if src.ReadOnly && !src.RecursiveReadOnly {
		return sys.MountSetattr(tree, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	return nil
}

// checkPropagation refuses a propagation that the source's mount can't give. The
// kernel would make the mount all the same, and nothing would ever arrive.
func checkPropagation(at *os.File, src BindSource) error {
	var st unix.Statx_t
	err := unix.Statx(int(at.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st)
	if err != nil {
		return &fs.PathError{Op: "statx", Path: src.Path, Err: err}
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	optional, point, ok := mountOptional(string(table), st.Mnt_id)
	if !ok {
		return fmt.Errorf("%s: its mount %d is not in mountinfo", src.Path, st.Mnt_id)
	}
	if strings.Contains(optional, "shared:") || src.Propagation == Slave && strings.Contains(optional, "master:") {
		return nil
	}
	return fmt.Errorf("%s is on the mount %s: %w", src.Path, point, ErrNotShared)
}

// mountOptional finds a mount in mountinfo and returns its optional fields,
// which say what it shares (proc_pid_mountinfo(5)), and its mount point.
func mountOptional(table string, id uint64) (optional, point string, ok bool) {
	prefix := strconv.FormatUint(id, 10) + " "
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		before, _, _ := strings.Cut(line, " - ")
		if f := strings.Fields(before); len(f) >= 6 {
			return strings.Join(f[6:], " "), f[4], true
		}
	}
	return "", "", false
}

// fileMode turns st_mode into Go's bits.
func fileMode(mode uint32) fs.FileMode {
	out := fs.FileMode(mode & 0o777)
	for _, bit := range []struct {
		mask, want uint32
		mode       fs.FileMode
	}{
		{unix.S_IFMT, unix.S_IFDIR, fs.ModeDir}, {unix.S_IFMT, unix.S_IFLNK, fs.ModeSymlink},
		{unix.S_IFMT, unix.S_IFIFO, fs.ModeNamedPipe}, {unix.S_IFMT, unix.S_IFSOCK, fs.ModeSocket},
		{unix.S_IFMT, unix.S_IFBLK, fs.ModeDevice}, {unix.S_IFMT, unix.S_IFCHR, fs.ModeDevice | fs.ModeCharDevice},
		{unix.S_ISUID, unix.S_ISUID, fs.ModeSetuid}, {unix.S_ISGID, unix.S_ISGID, fs.ModeSetgid},
		{unix.S_ISVTX, unix.S_ISVTX, fs.ModeSticky},
	} {
		if mode&bit.mask == bit.want {
			out |= bit.mode
		}
	}
	return out
}
