// Package mounts opens what a container mounts as detached mounts: binds of host
// paths, overlays of layers, tmpfs. Each is a file descriptor that init attaches
// inside the container, so nothing of a container is ever in the host's mount
// table and the kernel takes a mount away with its last user. It owns no mount
// after it has returned it; it may not know sandboxes, nor attach anything
// anywhere. It also resolves paths that an image controls, inside a root.
// Source: fsopen(2), open_tree(2), mount_setattr(2), openat2(2),
// Documentation/filesystems/overlayfs.rst.
package mounts

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

var (
	// ErrNotSupported: the kernel lacks a call that there is no way around.
	ErrNotSupported = errors.New("not supported")
	// ErrNotShared: a bind is to receive or send mounts, and its source is not on a
	// mount that does.
	ErrNotShared = errors.New("not a shared mount")
	// ErrInvalid: a source that contradicts itself.
	ErrInvalid = errors.New("invalid mount")
	// ErrTooLarge: a file of an image exceeds what is read of it.
	ErrTooLarge = errors.New("file too large")
)

// Features are what New found the kernel to do.
type Features struct {
	// OverlayFDs: layers can be given as descriptors (Linux 6.13).
	OverlayFDs bool
	// OverlayAppend: layers can be given one by one by path, lowerdir+ (Linux 6.5).
	// Without either, overlays are made in a staging mount namespace.
	OverlayAppend bool
	// IDMap: overlays on mapped layers work on the file system that ProbeIDMap was
	// given (Linux 5.19).
	IDMap bool
	// IDMapDetached: the mapped layers can be mounts that are attached nowhere (Linux
	// 6.15); else they are attached in a staging mount namespace.
	IDMapDetached bool
}

// Opener opens mounts. It is safe for concurrent use.
type Opener struct {
	features Features

	// mu guards opening, which holds one slot per source that a goroutine is
	// resolving right now.
	mu      sync.Mutex
	opening map[string]*slot
}

// New probes the kernel; nothing is mounted by that.
func New() (*Opener, error) {
	o := &Opener{opening: map[string]*slot{}}
	if err := probeDetached(); err != nil {
		return nil, err
	}
	overlay, err := probeOverlay()
	if err != nil {
		return nil, err
	}
	o.features = overlay
	return o, nil
}

// Features are what was found at New.
func (o *Opener) Features() Features { return o.features }

// probeDetached asks for what there is no fallback for: a detached mount whose
// attributes can be set (Linux 5.12).
func probeDetached() error {
	tree, err := sys.OpenTree(nil, "/", unix.OPEN_TREE_CLONE)
	if err != nil {
		return fmt.Errorf("detached mounts need Linux 5.2 and CAP_SYS_ADMIN: %w: %w", ErrNotSupported, err)
	}
	defer tree.Close()
	if err := sys.MountSetattr(tree, false, unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return fmt.Errorf("mount_setattr needs Linux 5.12: %w: %w", ErrNotSupported, err)
	}
	return nil
}

// probeOverlay offers a layer in the two newer ways to a context that is never
// turned into a superblock. Before 6.5 overlayfs takes any option at this point
// and looks at none until the mount, so one that can't exist is offered first.
func probeOverlay() (Features, error) {
	var f Features
	root, err := os.Open("/")
	if err != nil {
		return f, err
	}
	defer root.Close()
	ctx, err := sys.OpenFS("overlay")
	if err != nil {
		return f, fmt.Errorf("overlayfs: %w: %w", ErrNotSupported, err)
	}
	defer ctx.Close()
	if ctx.SetString("podwright-no-such-option", "1") == nil {
		return f, nil
	}
	f.OverlayAppend = ctx.SetString("lowerdir+", "/") == nil
	f.OverlayFDs = ctx.SetFile("lowerdir+", root) == nil
	return f, nil
}
