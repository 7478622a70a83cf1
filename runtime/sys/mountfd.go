package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenTree is open_tree(2) relative to dir, or to the working directory if dir
// is nil. With OPEN_TREE_CLONE the result is a detached mount, which lives as
// long as the file or what it is attached to. O_CLOEXEC is always added.
func OpenTree(dir *os.File, path string, flags uint) (*os.File, error) {
	dirFD := unix.AT_FDCWD
	if dir != nil {
		dirFD = int(dir.Fd())
	}
	name := path
	if name == "" && dir != nil {
		name = dir.Name()
	}
	for {
		fd, err := unix.OpenTree(dirFD, path, flags|unix.OPEN_TREE_CLOEXEC)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if err != unix.EINTR {
			return nil, &fs.PathError{Op: "open_tree", Path: name, Err: err}
		}
	}
}

// MountSetattr is mount_setattr(2) on the mount that f is the root of, and with
// recursive on all below it.
func MountSetattr(f *os.File, recursive bool, attr unix.MountAttr) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	if err := unix.MountSetattr(int(f.Fd()), "", flags, &attr); err != nil {
		return &fs.PathError{Op: "mount_setattr", Path: f.Name(), Err: err}
	}
	return nil
}

// MoveMount attaches the detached mount f at to, which stays the caller's.
func MoveMount(f, to *os.File) error {
	err := unix.MoveMount(int(f.Fd()), "", int(to.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return &fs.PathError{Op: "move_mount", Path: to.Name(), Err: err}
	}
	return nil
}

// FSContext is a file system being configured: fsopen(2), fsconfig(2), fsmount(2).
// Its errors carry the sentences that the kernel logs in the context, which is
// the only place where it says what it disliked.
type FSContext struct {
	fsType string
	file   *os.File
}

// FSError is a failed step of an FSContext.
type FSError struct {
	FSType string
	Step   string // "fsopen", "set lowerdir+", "create", ...
	Log    string // the kernel's sentences, may be empty
	Err    error
}

func (e *FSError) Error() string {
	if e.Log == "" {
		return fmt.Sprintf("%s %s: %v", e.Step, e.FSType, e.Err)
	}
	return fmt.Sprintf("%s %s: %v (%s)", e.Step, e.FSType, e.Err, e.Log)
}

func (e *FSError) Unwrap() error { return e.Err }

// OpenFS begins to configure a file system of the given type.
func OpenFS(fsType string) (*FSContext, error) {
	fd, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, &FSError{FSType: fsType, Step: "fsopen", Err: err}
	}
	return &FSContext{fsType: fsType, file: os.NewFile(uintptr(fd), fsType)}, nil
}

// Close frees the context; a mount made from it stays.
func (c *FSContext) Close() error { return c.file.Close() }

// SetString sets key=value. The kernel refuses values of more than 255 bytes.
func (c *FSContext) SetString(key, value string) error {
	return c.step("set "+key, func(fd int) error { return unix.FsconfigSetString(fd, key, value) })
}

// SetFlag sets an option that takes no value.
func (c *FSContext) SetFlag(key string) error {
	return c.step("set "+key, func(fd int) error { return unix.FsconfigSetFlag(fd, key) })
}

// SetFile sets an option to an open file, which stays the caller's.
func (c *FSContext) SetFile(key string, f *os.File) error {
	return c.step("set "+key, func(fd int) error { return unix.FsconfigSetFd(fd, key, int(f.Fd())) })
}

// Create makes the superblock.
func (c *FSContext) Create() error {
	return c.step("create", unix.FsconfigCreate)
}

// Mount returns a detached mount of the superblock. attrs are MOUNT_ATTR_*.
func (c *FSContext) Mount(attrs int) (*os.File, error) {
	var mountFD int
	err := c.step("fsmount", func(fd int) (err error) {
		mountFD, err = unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attrs)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(mountFD), c.fsType), nil
}

func (c *FSContext) step(name string, call func(fd int) error) error {
	if err := call(int(c.file.Fd())); err != nil {
		return &FSError{FSType: c.fsType, Step: name, Log: c.log(), Err: err}
	}
	return nil
}

// log reads the kernel's messages: each read(2) gives one, ENODATA ends them.
// A message starts with its level ("e ", "w ", "i ").
func (c *FSContext) log() string {
	var lines []string
	buf := make([]byte, 1024)
	for len(lines) < 16 {
		n, err := unix.Read(int(c.file.Fd()), buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			break
		}
		lines = append(lines, strings.TrimSpace(strings.TrimPrefix(string(buf[:n]), "e ")))
	}
	return strings.Join(lines, "; ")
}
