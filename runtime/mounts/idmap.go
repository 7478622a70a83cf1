package mounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// IDMap is a mapping of user and group ids for the layers of an overlay.
type IDMap struct {
	UserNS           *os.File // whose mapping it is; stays the caller's
	RootUID, RootGID uint32   // what its ids 0 are outside
}

// mapIDs gives a detached mount the mapping, with below also those below it. A mount
// has at most one mapping, and only file systems that know of it have any.
func mapIDs(tree *os.File, path string, userNS *os.File, below bool) error {
	err := sys.MountSetattr(tree, below, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userNS.Fd())})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%s is on %s, which cannot map ids: %w: %w", path, fileSystemOf(path), ErrNotSupported, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s is on %s, where ids are mapped already or may not be: %w: %w", path, fileSystemOf(path), ErrNotSupported, err)
	}
	return err
}

// fileSystemOf names the file system of a path, for an error.
func fileSystemOf(path string) string {
	at, err := sys.OpenTree(nil, path, 0)
	if err != nil {
		return "a file system"
	}
	defer at.Close()
	m, err := mountOf(at)
	if err != nil {
		return "a file system"
	}
	return "the file system " + m.fsType + " at " + m.point
}

// mappedOverlay makes an overlay whose layers are mapped: the files of the image, and
// what the container writes, belong to the ids on disk that they would have without a
// user namespace, whatever the pod's mapping.
func (o *Opener) mappedOverlay(src OverlaySource) (file *os.File, err error) {
	onOwnThread(func() {
		if err = src.IDMap.become(); err != nil {
			return
		}
		if !o.features.IDMapDetached {
			file, err = stageOverlay(src)
			return
		}
		var layers *openedLayers
		if layers, err = mappedLayers(src); err == nil {
			defer layers.close()
			file, err = o.detachedOverlay(src, layers)
		}
	})
	return file, err
}

// become gives the calling thread, which ends soon, the file system ids of the mapped
// root: overlayfs writes to its upper layer as who mounted it, and an id that the mapping lacks, such
// as the daemon's own, cannot create anything there (EOVERFLOW).
func (m *IDMap) become() error {
	// Neither call reports a failure but by the id that it leaves (setfsuid(2)).
	for _, set := range []struct {
		what string
		call func(int) (int, error)
		id   uint32
	}{{"setfsgid", unix.SetfsgidRetGid, m.RootGID}, {"setfsuid", unix.SetfsuidRetUid, m.RootUID}} {
		if _, err := set.call(int(set.id)); err != nil {
			return fmt.Errorf("%s: %w", set.what, err)
		}
		if now, err := set.call(-1); err != nil || uint32(now) != set.id {
			return fmt.Errorf("%s %d: it is %d: %w", set.what, set.id, now, unix.EPERM)
		}
	}
	// Leaving uid 0 took the capabilities over files out of effect.
	return sys.RaiseCapabilities()
}

// mappedTree is a detached, mapped mount of a layer's directory.
func mappedTree(path string, m *IDMap) (*os.File, error) {
	tree, err := sys.OpenTree(nil, path, unix.OPEN_TREE_CLONE)
	if err != nil {
		return nil, err
	}
	if err = sys.MountSetattr(tree, false, unix.MountAttr{Propagation: unix.MS_PRIVATE}); err == nil {
		err = mapIDs(tree, path, m.UserNS, false)
	}
	if err != nil {
		tree.Close()
		return nil, err
	}
	return tree, nil
}

// mappedLayers opens the layers on detached, mapped mounts of their own. Upper and work share one: overlayfs renames
// between them.
func mappedLayers(src OverlaySource) (_ *openedLayers, err error) {
	l := &openedLayers{}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	tree := func(path string) (*os.File, error) {
		t, err := mappedTree(path, src.IDMap)
		if err == nil {
			l.trees = append(l.trees, t)
		}
		return t, err
	}
	for _, path := range src.Lower {
		t, err := tree(path)
		if err != nil {
			return nil, err
		}
		f, err := openDirectory(t, ".")
		if err != nil {
			return nil, err
		}
		l.lower = append(l.lower, f)
	}
	if src.Upper == "" {
		return l, nil
	}
	t, err := tree(filepath.Dir(src.Upper))
	if err != nil {
		return nil, err
	}
	if l.upper, err = openDirectory(t, filepath.Base(src.Upper)); err != nil {
		return nil, err
	}
	l.work, err = openDirectory(t, filepath.Base(src.Work))
	return l, err
}

func openDirectory(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name)), nil
}

// coverLayers lays a mapped mount of each layer over the layer itself, in the staging mount namespace: overlayfs of
// kernels before 6.15 takes layers from the caller's mount namespace only.
func coverLayers(src OverlaySource) error {
	dirs := src.Lower
	if src.Upper != "" {
		dirs = append(dirs[:len(dirs):len(dirs)], filepath.Dir(src.Upper))
	}
	for _, dir := range dirs {
		at, err := sys.OpenTree(nil, dir, 0)
		if err != nil {
			return err
		}
		tree, err := mappedTree(dir, src.IDMap)
		if err == nil {
			err = sys.MoveMount(tree, at)
			tree.Close()
		}
		at.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// ProbeIDMap finds out whether overlays on mapped layers can be had on the file system of dir, and how, by making one.
// It is called once, before anything is opened; what it makes in dir is gone when it returns.
func (o *Opener) ProbeIDMap(ctx context.Context, dir string, m IDMap) error {
	base := filepath.Join(dir, "idmap-probe")
	err := os.RemoveAll(base) // of a probe that was interrupted
	if err == nil {
		defer os.RemoveAll(base)
		err = o.probeIDMap(ctx, base, m)
	}
	if err != nil {
		return fmt.Errorf("probe overlays on mapped layers: %w", err)
	}
	return nil
}

func (o *Opener) probeIDMap(ctx context.Context, base string, m IDMap) error {
	var failed error
	for _, detached := range []bool{o.features.OverlayFDs, false} {
		src := OverlaySource{Lower: []string{base + "/lower"}, Upper: base + "/container/upper", Work: base + "/container/work", Volatile: true, IDMap: &m}
		for _, d := range []string{src.Lower[0], src.Upper, src.Work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		o.features.IDMapDetached = detached
		root, err := o.Overlay(ctx, src)
		if err == nil {
			err = checkMapped(root, src.Upper, m)
			root.Close()
		}
		if err == nil {
			o.features.IDMap = true
			return nil
		}
		failed = errors.Join(failed, err)
		if err := os.RemoveAll(base); err != nil {
			return err
		}
	}
	o.features.IDMapDetached = false
	return failed
}

// checkMapped creates a directory as the mapped root, which has to be its owner inside, and root on disk.
func checkMapped(root *os.File, upper string, m IDMap) (err error) {
	onOwnThread(func() {
		if err = m.become(); err == nil {
			err = unix.Mkdirat(int(root.Fd()), "made", 0o700)
		}
	})
	if err != nil {
		return fmt.Errorf("create in it: %w", err)
	}
	var inside, onDisk unix.Stat_t
	if err := errors.Join(unix.Fstatat(int(root.Fd()), "made", &inside, 0), unix.Lstat(filepath.Join(upper, "made"), &onDisk)); err != nil {
		return err
	}
	if inside.Uid != m.RootUID || inside.Gid != m.RootGID || onDisk.Uid != 0 || onDisk.Gid != 0 {
		return fmt.Errorf("its files belong to %d:%d inside and %d:%d on disk: %w", inside.Uid, inside.Gid, onDisk.Uid, onDisk.Gid, ErrNotSupported)
	}
	return nil
}
