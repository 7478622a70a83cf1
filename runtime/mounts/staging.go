package mounts

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// mountDataLimit is one page with its final NUL: what mount(2) takes as data.
const mountDataLimit = 4095

// stagedOverlay makes an overlay with mount(2), for kernels that take no layers one by one, without
// showing it to the host: a thread in a mount namespace of its own mounts it,
// takes a detached clone and ends, and the namespace goes with it.
func stagedOverlay(src OverlaySource) (*os.File, error) {
	var file *os.File
	err := sys.OnThread(func() (err error) {
		file, err = stageOverlay(src)
		return err
	})
	return file, err
}

// onOwnThread is sys.OnThread for what keeps its answers itself.
func onOwnThread(fn func()) {
	_ = sys.OnThread(func() error {
		fn()
		return nil
	})
}

// enterStaging gives the calling thread, which ends soon, a mount namespace of its own.
func enterStaging() error {
	// CLONE_NEWNS also gives the thread a working directory of its own.
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mount namespace: %w", err)
	}
	// Before any mount: nothing may travel back to the host.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make staging mounts private: %w", err)
	}
	return nil
}

func stageOverlay(src OverlaySource) (*os.File, error) {
	if err := enterStaging(); err != nil {
		return nil, err
	}
	if src.IDMap != nil {
		if err := coverLayers(src); err != nil {
			return nil, err
		}
	}
	// After the unshare: overlayfs clones its layers' mounts, and only those of the
	// caller's own namespace.
	layers, err := openLayers(src)
	if err != nil {
		return nil, err
	}
	defer layers.close()
	// Layers are named by their descriptors relative to this directory, so that no
	// path has to be escaped and 500 of them fit into one page.
	if err := unix.Chdir("/proc/self/fd"); err != nil {
		return nil, fmt.Errorf("chdir /proc/self/fd: %w", err)
	}
	data := overlayData(src, layers)
	if len(data) > mountDataLimit {
		return nil, fmt.Errorf("overlay of %d layers: options exceed one page: %w", len(src.Lower), ErrNotSupported)
	}
	target := fdName(layers.lower[0])
	if err := unix.Mount("overlay", target, "overlay", 0, data); err != nil {
		return nil, fmt.Errorf("mount overlay (%s): %w", data, err)
	}
	// The path leads to what is mounted on it, the descriptor to what is below.
	tree, err := sys.OpenTree(nil, src.Lower[0], unix.OPEN_TREE_CLONE)
	if err != nil {
		return nil, err
	}
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if src.Upper == "" || src.ReadOnly {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY
	}
	if err := sys.MountSetattr(tree, false, attr); err != nil {
		tree.Close()
		return nil, err
	}
	return tree, nil
}

func overlayData(src OverlaySource, layers *openedLayers) string {
	var lower []string
	for _, f := range layers.lower {
		lower = append(lower, fdName(f))
	}
	options := []string{"index=off", "lowerdir=" + strings.Join(lower, ":")}
	if src.Upper != "" {
		options = append(options, "upperdir="+fdName(layers.upper), "workdir="+fdName(layers.work))
		if src.Volatile {
			options = append(options, "volatile")
		}
	}
	if src.MountLabel != "" {
		// Quoted, because the categories of a label are separated by commas.
		options = append(options, `context="`+src.MountLabel+`"`)
	}
	return strings.Join(options, ",")
}

func fdName(f *os.File) string { return strconv.Itoa(int(f.Fd())) }
