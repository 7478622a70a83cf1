package mounts

import (
	"context"
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
	// UserNS, if not nil, is the user namespace whose mapping the mount at Path gets
	// (idmapped); it stays the caller's. With MapBelow the mounts below get it too.
	UserNS   *os.File
	MapBelow bool
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
	if whole != (unix.MountAttr{}) {
		if err := sys.MountSetattr(tree, src.Recursive, whole); err != nil {
			return err
		}
	}
	if src.UserNS != nil {
		if err := mapIDs(tree, src.Path, src.UserNS, src.MapBelow); err != nil {
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
	m, err := mountOf(at)
	if err != nil {
		return err
	}
	if strings.Contains(m.optional, "shared:") || src.Propagation == Slave && strings.Contains(m.optional, "master:") {
		return nil
	}
	return fmt.Errorf("%s is on the mount %s: %w", src.Path, m.point, ErrNotShared)
}

// mountEntry is what is needed of a line of mountinfo (proc_pid_mountinfo(5)).
type mountEntry struct {
	point    string
	optional string // the fields that say what it shares
	fsType   string
}

// mountOf finds the mount that an open file is on.
func mountOf(at *os.File) (mountEntry, error) {
	var st unix.Statx_t
	err := unix.Statx(int(at.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st)
	if err != nil {
		return mountEntry{}, &fs.PathError{Op: "statx", Path: at.Name(), Err: err}
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mountEntry{}, err
	}
	m, ok := findMount(string(table), st.Mnt_id)
	if !ok {
		return m, fmt.Errorf("%s: its mount %d is not in mountinfo", at.Name(), st.Mnt_id)
	}
	return m, nil
}

func findMount(table string, id uint64) (mountEntry, bool) {
	prefix := strconv.FormatUint(id, 10) + " "
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		before, after, _ := strings.Cut(line, " - ")
		fsType, _, _ := strings.Cut(after, " ")
		if f := strings.Fields(before); len(f) >= 6 {
			return mountEntry{point: f[4], optional: strings.Join(f[6:], " "), fsType: fsType}, true
		}
	}
	return mountEntry{}, false
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
