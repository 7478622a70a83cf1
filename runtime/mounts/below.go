package mounts

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// ProbeReadOnlyBelow finds out whether a recursively read-only bind is one: it opens
// one of a file system with another mounted in it, as OpenBind would, and tries to
// write to both. Everything is in a staging mount namespace and gone when it returns.
func ProbeReadOnlyBelow() (err error) {
	onOwnThread(func() {
		var tree *os.File
		if tree, err = stageNested(); err != nil {
			return
		}
		defer tree.Close()
		src := BindSource{Path: "/", Recursive: true, ReadOnly: true, RecursiveReadOnly: true}
		if err = setAttributes(tree, src); err == nil {
			err = checkReadOnlyBelow(tree)
		}
	})
	if err != nil {
		return fmt.Errorf("probe recursively read-only mounts (Linux 5.12): %w", err)
	}
	return nil
}

// stageNested gives a detached clone of a tmpfs with another one on its directory
// "below". The calling thread ends soon.
func stageNested() (*os.File, error) {
	if err := enterStaging(); err != nil {
		return nil, err
	}
	root, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	outer, err := attachTmpfs(root)
	if err != nil {
		return nil, err
	}
	defer outer.Close()
	if err := unix.Mkdirat(int(outer.Fd()), "below", 0o700); err != nil {
		return nil, &os.PathError{Op: "mkdir", Path: "below", Err: err}
	}
	below, err := openDirectory(outer, "below")
	if err != nil {
		return nil, err
	}
	defer below.Close()
	inner, err := attachTmpfs(below)
	if err != nil {
		return nil, err
	}
	inner.Close()
	return sys.OpenTree(outer, "", unix.OPEN_TREE_CLONE|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
}

// attachTmpfs mounts a new tmpfs on a directory of the calling thread's mount namespace.
func attachTmpfs(on *os.File) (*os.File, error) {
	ctx, err := sys.OpenFS("tmpfs")
	if err != nil {
		return nil, err
	}
	defer ctx.Close()
	if err := ctx.Create(); err != nil {
		return nil, err
	}
	mount, err := ctx.Mount(0)
	if err != nil {
		return nil, err
	}
	if err := sys.MoveMount(mount, on); err != nil {
		mount.Close()
		return nil, err
	}
	return mount, nil
}

// checkReadOnlyBelow tries to write to a tree of stageNested, above and below.
func checkReadOnlyBelow(tree *os.File) error {
	for _, name := range []string{"made", "below/made"} {
		if err := unix.Mkdirat(int(tree.Fd()), name, 0o700); !errors.Is(err, unix.EROFS) {
			return fmt.Errorf("a write to %s: got %v, not that it is read-only: %w", name, err, ErrNotSupported)
		}
	}
	return nil
}
