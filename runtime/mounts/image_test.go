package mounts

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hostileImage is a stack of two layers, and an empty directory.
func hostileImage(t *testing.T) ImageSource {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, dir+"/top/file", "top")
	writeFile(t, dir+"/bottom/file", "bottom")
	writeFile(t, dir+"/bottom/sub/dir/inner", "inner")
	writeFile(t, dir+"/bottom/run", "#!/bin/true\n")
	if err := os.Chmod(dir+"/bottom/run", 0o4755); err != nil {
		t.Fatal(err)
	}
	mkdirs(t, dir+"/empty")
	for name, target := range map[string]string{
		"absolute": "/sub/dir", "up": "../../../../../../sub/dir", "host": "/etc/passwd-of-the-host", "host-dir": "/proc/self/root/etc", "loop": "loop",
	} {
		if err := os.Symlink(target, dir+"/top/"+name); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(unix.Mkfifo(dir+"/top/fifo", 0o644), unix.Mknod(dir+"/top/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))); err != nil {
		t.Fatal(err)
	}
	return ImageSource{Lower: []string{dir + "/top", dir + "/bottom"}, Empty: dir + "/empty"}
}

func openImage(t *testing.T, o *Opener, src ImageSource) *Tree {
	t.Helper()
	tree, err := o.OpenImage(testContext(t), src)
	if err != nil {
		t.Fatalf("sub path %q: %v", src.SubPath, err)
	}
	t.Cleanup(func() { tree.File.Close() })
	return tree
}

// Read-only is not a flag of the mount alone: taking the flag away gives nobody the layers to write to.
func TestImageOfAnyNumberOfLayersCannotBeMadeWritable(t *testing.T) {
	eachWay(t, func(t *testing.T, o *Opener) {
		for _, layers := range []int{1, 2} {
			for _, sub := range []string{"", "sub"} {
				src := hostileImage(t)
				src.Lower, src.SubPath = src.Lower[2-layers:], sub
				tree := openImage(t, o, src)
				if err := unix.MountSetattr(int(tree.File.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(inside(tree.File, "made"), nil, 0o644); !errors.Is(err, unix.EROFS) {
					t.Errorf("%d layers, sub path %q: write after the flag was taken away: %v, want EROFS", layers, sub, err)
				}
			}
		}
	})
}

func TestImageHasNoDevicesAndNoSetUserIDAndCanRun(t *testing.T) {
	eachWay(t, func(t *testing.T, o *Opener) {
		for _, noExec := range []bool{false, true} {
			for _, sub := range []string{"", "sub/dir"} {
				src := hostileImage(t)
				src.NoExec, src.SubPath = noExec, sub
				tree := openImage(t, o, src)
				var sf unix.Statfs_t
				if err := unix.Fstatfs(int(tree.File.Fd()), &sf); err != nil {
					t.Fatal(err)
				}
				want := int64(unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV)
				if noExec {
					want |= unix.ST_NOEXEC
				}
				if got := sf.Flags & (want | unix.ST_NOEXEC); got != want {
					t.Errorf("sub path %q, noexec %t: got flags %#x, want %#x", sub, noExec, got, want)
				}
			}
		}
	})
}

func TestImageSubPathsStayInside(t *testing.T) {
	eachWay(t, func(t *testing.T, o *Opener) {
		src := hostileImage(t)
		unchangedTable(t)
		for sub, want := range map[string]string{"sub/dir": "inner", "./sub//dir/": "inner", "absolute": "inner", "up": "inner", "../../sub/dir": "inner"} {
			src.SubPath = sub
			tree, err := o.OpenImage(testContext(t), src)
			if err != nil {
				t.Errorf("%s: %v", sub, err)
				continue
			}
			if got := readInside(t, tree.File, "inner"); got != want || !tree.IsDir {
				t.Errorf("%s: got %q, directory %t, want %q", sub, got, tree.IsDir, want)
			}
			// What is above the sub path does not come with it.
			if _, err := os.Stat(inside(tree.File, "../file")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: what is beside it: %v, want it absent", sub, err)
			}
			tree.File.Close()
		}
		src.SubPath = "file"
		tree, err := o.OpenImage(testContext(t), src)
		if err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(inside(tree.File, "")[:len(inside(tree.File, ""))-1]); tree.IsDir || string(data) != "top" {
			t.Errorf("a file: got %q, %v, directory %t", data, err, tree.IsDir)
		}
		tree.File.Close()
		for sub, want := range map[string]error{
			"absent": fs.ErrNotExist, "file/x": unix.ENOTDIR, "host": fs.ErrNotExist, "host-dir": fs.ErrNotExist, "loop": unix.ELOOP,
			"fifo": ErrSubPath, "null": ErrSubPath, strings.Repeat("x", 300): unix.ENAMETOOLONG,
		} {
			src.SubPath = sub
			if tree, err := o.OpenImage(testContext(t), src); !errors.Is(err, want) || !errors.Is(err, ErrSubPath) {
				t.Errorf("%s: got %v, %v, want %v", sub, tree, err, want)
			}
		}
		src.SubPath, src.Empty = "sub", src.Empty+"/gone"
		if _, err := o.OpenImage(testContext(t), src); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrSubPath) {
			t.Errorf("a missing layer: got %v, want it absent and no fault of the sub path", err)
		}
	})
}

func TestMappedImageBelongsToThePodsRoot(t *testing.T) {
	eachMappedWay(t, func(t *testing.T, o *Opener, m IDMap) {
		for _, sub := range []string{"", "sub"} {
			src := hostileImage(t)
			src.IDMap, src.SubPath = &m, sub
			tree := openImage(t, o, src)
			if got := owner(t, inside(tree.File, ".")); got != "70000:170000" {
				t.Errorf("sub path %q: owner %s, want 70000:170000", sub, got)
			}
		}
	})
}
