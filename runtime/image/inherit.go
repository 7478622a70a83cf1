package image

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// upperdirLabel is where the overlay snapshotter says a snapshot's directory.
const upperdirLabel = "containerd.io/snapshot/overlay.upperdir"

const (
	opaqueAttr   = "trusted.overlay.opaque"
	maxAttrBytes = 64 << 10 // XATTR_SIZE_MAX, XATTR_LIST_MAX
)

// inheritDirs gives dirs, paths inside the layer directory top, the owner,
// mode, times and attributes they have in the layers below, topmost first.
// What is nowhere below stays as it was made.
func inheritDirs(top string, dirs, lowers []string) error {
	topFile, err := os.Open(top)
	if err != nil {
		return err
	}
	defer topFile.Close()
	var lowerFiles []*os.File
	defer func() {
		for _, f := range lowerFiles {
			f.Close()
		}
	}()
	for _, lower := range lowers {
		f, err := os.Open(lower)
		if err != nil {
			return err
		}
		lowerFiles = append(lowerFiles, f)
	}
	for _, dir := range dirs {
		if err := inheritDir(topFile, dir, lowerFiles); err != nil {
			return fmt.Errorf("directory %q: %w", dir, err)
		}
	}
	return nil
}

func inheritDir(topFile *os.File, dir string, lowers []*os.File) error {
	to, err := openDir(topFile, dir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // a later entry of the tar replaced it
	}
	if err != nil {
		return err
	}
	defer to.Close()
	for _, lower := range lowers {
		from, err := openDir(lower, dir)
		switch {
		case err == nil:
			defer from.Close()
			return copyDirInfo(from, to)
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			return nil // a file, link or whiteout: the name was no directory there
		case !errors.Is(err, unix.ENOENT):
			return err
		}
		if hidden, err := belowOpaque(lower, dir); hidden || err != nil {
			return err
		}
	}
	return nil
}

// openDir opens a directory of a layer. Names are the image's, so no link is
// followed and nothing outside is reached.
func openDir(root *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat2(int(root.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// belowOpaque says whether this layer hides name in the layers below it.
func belowOpaque(layer *os.File, name string) (bool, error) {
	for name = path.Dir(name); name != "."; name = path.Dir(name) {
		dir, err := openDir(layer, name)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		value := make([]byte, 8)
		n, err := unix.Fgetxattr(int(dir.Fd()), opaqueAttr, value)
		dir.Close()
		if err == nil && string(value[:n]) == "y" {
			return true, nil
		}
	}
	return false, nil
}

func copyDirInfo(from, to *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	if err := unix.Fchown(int(to.Fd()), int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	// After chown, which clears set-id bits.
	if err := unix.Fchmod(int(to.Fd()), st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyAttrs(from, to); err != nil {
		return err
	}
	return unix.UtimesNanoAt(int(to.Fd()), "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH)
}

func copyAttrs(from, to *os.File) error {
	names := make([]byte, maxAttrBytes)
	n, err := unix.Flistxattr(int(from.Fd()), names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list attributes: %w", err)
	}
	value := make([]byte, maxAttrBytes)
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		// The layer's own marks, such as opaque, belong to that layer alone; a label the kernel has given already.
		if name == "" || name == labelAttr || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Fgetxattr(int(from.Fd()), name, value)
		if err != nil {
			return fmt.Errorf("read attribute %s: %w", name, err)
		}
		if err := unix.Fsetxattr(int(to.Fd()), name, value[:n], 0); err != nil {
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
	}
	return nil
}
