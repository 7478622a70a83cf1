package mounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// ErrSubPath: an image has nothing at a sub path that can be mounted.
var ErrSubPath = errors.New("not in the image")

// ImageSource is an image that is mounted as it is. Nobody can write to it through
// the mount, whatever its flags are made to be: the overlay has no upper layer.
type ImageSource struct {
	// Lower are the image's layers, topmost first.
	Lower []string
	// Empty is an empty directory, for overlayfs wants two layers. A bind of the only
	// layer would do for a look, but who may change the flags of a mount (privileged,
	// or CAP_SYS_ADMIN in a pod's user namespace) could write to the layer, which all
	// containers of the image have.
	Empty string
	// SubPath is what is mounted of it: a directory or a regular file, looked up with the
	// image as "/". "" is all of it.
	SubPath string
	NoExec  bool
	// MountLabel is the SELinux context that all files show, or empty.
	MountLabel string
	// IDMap, if not nil, maps the layers.
	IDMap *IDMap
}

// OpenImage returns a detached, private, read-only mount of src without devices and
// set-user-ID programs. A missing sub path is ErrSubPath and fs.ErrNotExist.
func (o *Opener) OpenImage(ctx context.Context, src ImageSource) (*Tree, error) {
	layers := append(slices.Clone(src.Lower), src.Empty)
	root, err := o.Overlay(ctx, OverlaySource{Lower: layers, MountLabel: src.MountLabel, IDMap: src.IDMap})
	if err != nil {
		return nil, err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if src.NoExec {
		attr.Attr_set |= unix.MOUNT_ATTR_NOEXEC
	}
	if err := sys.MountSetattr(root, false, attr); err != nil {
		root.Close()
		return nil, err
	}
	if src.SubPath == "" {
		return &Tree{File: root, IsDir: true, Mode: os.ModeDir}, nil
	}
	defer root.Close()
	return below(root, src)
}

// below is a mount of the sub path alone.
func below(root *os.File, src ImageSource) (*Tree, error) {
	at, err := OpenInRoot(root, src.SubPath, unix.O_PATH)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSubPath, err)
	}
	defer at.Close()
	info, err := at.Stat()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSubPath, err)
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: it is %v; want a directory or a regular file", ErrSubPath, info.Mode().Type())
	}
	file, err := cloneOf(root, at, src.Empty)
	if err != nil {
		return nil, err
	}
	return &Tree{File: file, IsDir: info.IsDir(), Mode: info.Mode()}, nil
}

// cloneOf makes a detached mount of at, which lies on the detached mount root. Before
// Linux 6.15 only what is attached in the caller's mount namespace can be cloned: root is
// attached on a directory of a staging one, which ends with the thread.
func cloneOf(root, at *os.File, on string) (file *os.File, err error) {
	onOwnThread(func() {
		if err = enterStaging(); err != nil {
			return
		}
		var target *os.File
		if target, err = sys.OpenTree(nil, on, 0); err != nil {
			return
		}
		defer target.Close()
		if err = sys.MoveMount(root, target); err != nil {
			return
		}
		file, err = sys.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.AT_EMPTY_PATH)
	})
	return file, err
}
