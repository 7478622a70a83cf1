package mounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// fsconfigLimit is the longest string that fsconfig(2) takes.
const fsconfigLimit = 255

// OverlaySource are the directories of one overlay. All paths are absolute.
type OverlaySource struct {
	// Lower layers, topmost first.
	Lower []string
	// Upper and Work, both or neither; they are on one file system and the caller's:
	// made before, removed after. Work must be empty if Volatile was ever used on it.
	Upper, Work string
	// Volatile skips every sync of the upper layer: after a crash of the machine it
	// must be thrown away.
	Volatile bool
	// ReadOnly makes the mount read-only although there is an Upper.
	ReadOnly bool
	// MountLabel is the SELinux context that all files show, or empty.
	MountLabel string
	// IDMap, if not nil, maps every layer. Upper and Work then lie in one directory.
	IDMap *IDMap
}

// Overlay returns a detached overlay mount, read-only if there is no Upper. A
// single lower layer without an upper, which overlayfs refuses, becomes a
// read-only bind of it. It returns when ctx ends even if a layer hangs.
func (o *Opener) Overlay(ctx context.Context, src OverlaySource) (*os.File, error) {
	if err := src.check(); err != nil {
		return nil, err
	}
	key := src.Upper
	if key == "" {
		key = src.Lower[0]
	}
	file, err := o.guarded(ctx, "overlay "+key, func() (*os.File, error) {
		return o.overlay(src)
	})
	if err != nil {
		return nil, fmt.Errorf("overlay on %s: %w", key, err)
	}
	return file, nil
}

func (src OverlaySource) check() error {
	if len(src.Lower) == 0 {
		return fmt.Errorf("overlay without a lower layer: %w", ErrInvalid)
	}
	if (src.Upper == "") != (src.Work == "") {
		return fmt.Errorf("overlay with upper %q and work %q, want both or neither: %w", src.Upper, src.Work, ErrInvalid)
	}
	paths := src.Lower
	if src.Upper != "" {
		paths = append(paths[:len(paths):len(paths)], src.Upper, src.Work)
	}
	for _, p := range paths {
		if !filepath.IsAbs(p) || strings.ContainsRune(p, 0) {
			return fmt.Errorf("overlay layer %q: want an absolute path: %w", p, ErrInvalid)
		}
	}
	if src.IDMap != nil && filepath.Dir(src.Upper) != filepath.Dir(src.Work) {
		return fmt.Errorf("mapped overlay with upper %q and work %q in two directories: %w", src.Upper, src.Work, ErrInvalid)
	}
	if strings.ContainsAny(src.MountLabel, "\"\x00\n") {
		return fmt.Errorf("overlay mount label %q: %w", src.MountLabel, ErrInvalid)
	}
	return nil
}

func (o *Opener) overlay(src OverlaySource) (*os.File, error) {
	switch {
	case len(src.Lower) == 1 && src.Upper == "" && src.MountLabel == "":
		return singleLayer(src.Lower[0], src.IDMap)
	case src.IDMap != nil:
		return o.mappedOverlay(src)
	case !o.features.OverlayFDs && !o.features.OverlayAppend:
		return stagedOverlay(src)
	}
	layers, err := openLayers(src)
	if err != nil {
		return nil, err
	}
	defer layers.close()
	return o.detachedOverlay(src, layers)
}

func (o *Opener) detachedOverlay(src OverlaySource, layers *openedLayers) (*os.File, error) {
	ctx, err := sys.OpenFS("overlay")
	if err != nil {
		return nil, err
	}
	defer ctx.Close()
	if err := o.configure(ctx, src, layers); err != nil {
		return nil, err
	}
	if err := ctx.Create(); err != nil {
		return nil, err
	}
	attrs := 0
	if src.Upper == "" || src.ReadOnly {
		attrs = unix.MOUNT_ATTR_RDONLY
	}
	return ctx.Mount(attrs)
}

// configure hands over layers and options. index=off, as in the field: with an
// index, an upper or lower directory that was part of another overlay before is
// refused or shares state with it.
func (o *Opener) configure(ctx *sys.FSContext, src OverlaySource, layers *openedLayers) error {
	var errs []error
	do := func(err error) { errs = append(errs, err) }
	if src.MountLabel != "" {
		do(ctx.SetString("context", src.MountLabel))
	}
	do(ctx.SetString("index", "off"))
	if src.Volatile && src.Upper != "" {
		do(ctx.SetFlag("volatile"))
	}
	for _, l := range layers.lower {
		do(o.setLayer(ctx, "lowerdir+", l))
	}
	if src.Upper != "" {
		do(o.setLayer(ctx, "upperdir", layers.upper))
		do(o.setLayer(ctx, "workdir", layers.work))
	}
	return errors.Join(errs...)
}

// setLayer gives a layer by descriptor where that is understood. By path, a long
// one goes by way of its descriptor; a short one stays readable in mountinfo.
func (o *Opener) setLayer(ctx *sys.FSContext, key string, layer *os.File) error {
	if o.features.OverlayFDs {
		return ctx.SetFile(key, layer)
	}
	path := layer.Name()
	if len(path) > fsconfigLimit {
		path = sys.FDPath(layer)
	}
	return ctx.SetString(key, path)
}

func singleLayer(path string, m *IDMap) (*os.File, error) {
	tree, err := sys.OpenTree(nil, path, unix.OPEN_TREE_CLONE)
	if err != nil {
		return nil, err
	}
	err = sys.MountSetattr(tree, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE})
	if err == nil && m != nil {
		err = mapIDs(tree, path, m.UserNS, false)
	}
	if err != nil {
		tree.Close()
		return nil, err
	}
	return tree, nil
}

// openedLayers are the directories of an overlay, open for reading: fsconfig
// takes no O_PATH descriptors on the first kernels that take any.
type openedLayers struct {
	lower       []*os.File
	upper, work *os.File
	trees       []*os.File // detached mounts that the directories are on
}

func openLayers(src OverlaySource) (*openedLayers, error) {
	l := &openedLayers{}
	open := func(path string) (f *os.File, err error) {
		return os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	}
	var err error
	for _, path := range src.Lower {
		var f *os.File
		if f, err = open(path); err != nil {
			break
		}
		l.lower = append(l.lower, f)
	}
	if err == nil && src.Upper != "" {
		if l.upper, err = open(src.Upper); err == nil {
			l.work, err = open(src.Work)
		}
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *openedLayers) close() {
	for _, f := range slices.Concat(l.lower, []*os.File{l.upper, l.work}, l.trees) {
		if f != nil {
			f.Close()
		}
	}
}
