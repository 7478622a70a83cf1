package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// eachWay runs a test with every way to make an overlay that this kernel has.
func eachWay(t *testing.T, test func(t *testing.T, o *Opener)) {
	found := newOpener(t).features
	t.Logf("features: %+v", found)
	for _, way := range []struct {
		name string
		f    Features
		have bool
	}{
		{"descriptors", Features{OverlayFDs: true}, found.OverlayFDs},
		{"lowerdir+", Features{OverlayAppend: true}, found.OverlayAppend},
		{"staged", Features{}, true},
	} {
		t.Run(way.name, func(t *testing.T) {
			if !way.have {
				t.Skip("this kernel has no " + way.name + " for overlays (6.13, 6.5)")
			}
			o := newOpener(t)
			o.features = way.f
			test(t, o)
		})
	}
}

func TestOverlayStacksLayers(t *testing.T) {
	eachWay(t, func(t *testing.T, o *Opener) {
		dir := t.TempDir()
		// Longer than fsconfig's 255 bytes, and full of what option strings escape.
		long := dir + "/" + strings.Repeat(strings.Repeat("l", 98)+",:\\/", 3) + "a b,c:d\\e"
		var lower []string
		for i := range 40 {
			layer := fmt.Sprintf("%s/%d", long, i)
			writeFile(t, layer+"/who", fmt.Sprint(i))
			writeFile(t, fmt.Sprintf("%s/only%d", layer, i), "x")
			lower = append(lower, layer)
		}
		upper, work := long+"/upper", long+"/work"
		mkdirs(t, upper, work)
		unchangedTable(t)
		f, err := o.Overlay(testContext(t), OverlaySource{Lower: lower, Upper: upper, Work: work, Volatile: true})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if got := readInside(t, f, "who"); got != "0" {
			t.Errorf("the topmost layer is %s, want 0", got)
		}
		readInside(t, f, "only39")
		if err := os.WriteFile(inside(f, "who"), []byte("upper"), 0o644); err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(upper + "/who"); string(data) != "upper" {
			t.Errorf("the write is not in the upper layer: %q, %v", data, err)
		}
		if data, err := os.ReadFile(lower[0] + "/who"); string(data) != "0" {
			t.Errorf("the write changed a lower layer: %q, %v", data, err)
		}
		// What Volatile leaves behind, and why each start removes work: overlayfs(5).
		if _, err := os.Stat(work + "/work/incompat/volatile"); err != nil {
			t.Errorf("the upper layer is not volatile: %v", err)
		}
	})
}

func TestOverlayReadOnly(t *testing.T) {
	eachWay(t, func(t *testing.T, o *Opener) {
		dir := t.TempDir()
		writeFile(t, dir+"/a/file", "a")
		writeFile(t, dir+"/b/file", "b")
		mkdirs(t, dir+"/upper", dir+"/work")
		unchangedTable(t)
		for name, src := range map[string]OverlaySource{
			"one layer":     {Lower: []string{dir + "/a"}},
			"two layers":    {Lower: []string{dir + "/a", dir + "/b"}},
			"with an upper": {Lower: []string{dir + "/a", dir + "/b"}, Upper: dir + "/upper", Work: dir + "/work", ReadOnly: true},
		} {
			f, err := o.Overlay(testContext(t), src)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if got := readInside(t, f, "file"); got != "a" {
				t.Errorf("%s: file is of layer %s", name, got)
			}
			if err := os.WriteFile(inside(f, "new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
				t.Errorf("%s: write: %v, want EROFS", name, err)
			}
			f.Close()
		}
	})
}

func TestOverlayErrorsNameTheLayer(t *testing.T) {
	eachWay(t, func(t *testing.T, o *Opener) {
		dir := t.TempDir()
		writeFile(t, dir+"/a/file", "a")
		mkdirs(t, dir+"/b", dir+"/upper", dir+"/work")
		unchangedTable(t)
		for _, c := range []struct {
			src  OverlaySource
			want error
			name string
		}{
			{OverlaySource{}, ErrInvalid, "lower"},
			{OverlaySource{Lower: []string{"a"}}, ErrInvalid, `"a"`},
			{OverlaySource{Lower: []string{dir + "/a"}, Upper: dir + "/upper"}, ErrInvalid, dir + "/upper"},
			{OverlaySource{Lower: []string{dir + "/a", dir + "/absent"}}, fs.ErrNotExist, dir + "/absent"},
			{OverlaySource{Lower: []string{dir + "/absent"}}, fs.ErrNotExist, dir + "/absent"},
			{OverlaySource{Lower: []string{dir + "/a", dir + "/a/file"}}, unix.ENOTDIR, dir + "/a/file"},
			{OverlaySource{Lower: []string{dir + "/a"}, Upper: dir + "/upper", Work: dir + "/gone"}, fs.ErrNotExist, dir + "/gone"},
			{OverlaySource{Lower: []string{dir + "/a", dir + "/b"}, MountLabel: "a\"b"}, ErrInvalid, "label"},
		} {
			f, err := o.Overlay(testContext(t), c.src)
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.name) {
				t.Errorf("%+v: got %v, %v; want %v naming %s", c.src, f, err, c.want, c.name)
			}
		}
	})
}

func TestTmpfsIsDetachedAndLimited(t *testing.T) {
	o := newOpener(t)
	unchangedTable(t)
	f, err := o.Tmpfs(testContext(t), TmpfsOptions{SizeBytes: 1 << 20, Mode: fs.ModeSticky | 0o770, UID: 7, GID: 8, NoExec: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&0o7777 != 0o1770 || st.Uid != 7 || st.Gid != 8 {
		t.Errorf("mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
	var sf unix.Statfs_t
	if err := unix.Statfs(inside(f, ""), &sf); err != nil {
		t.Fatal(err)
	}
	if want := int64(unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC); sf.Flags&want != want {
		t.Errorf("flags %#x, want %#x in them", sf.Flags, want)
	}
	if err := os.WriteFile(inside(f, "big"), make([]byte, 2<<20), 0o644); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("2 MiB into 1 MiB: %v, want ENOSPC", err)
	}
	if _, err := o.Tmpfs(testContext(t), TmpfsOptions{SizeBytes: -1}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a negative size: %v", err)
	}
}
