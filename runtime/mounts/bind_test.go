package mounts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// mountTmpfs mounts on a directory of the test's own namespace until the test ends.
func mountTmpfs(t *testing.T, dir string) {
	t.Helper()
	mkdirs(t, dir)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Errorf("umount %s: %v", dir, err)
		}
	})
}

func TestOpenBindFollowsAndCutsOff(t *testing.T) {
	o := newOpener(t)
	ctx := testContext(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir+"/src/file", "content")
	mountTmpfs(t, dir+"/src/sub")
	writeFile(t, dir+"/src/sub/deep", "deep")
	if err := os.Symlink(dir+"/src", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	unchangedTable(t)
	create := func(tree *Tree, path string) error {
		f, err := os.Create(inside(tree.File, path))
		if err == nil {
			f.Close()
		}
		return err
	}
	for _, c := range []struct {
		name             string
		src              BindSource
		below            bool  // the mount below is there
		top, deepWritten error // what a write at the top and below answers
	}{
		{"plain", BindSource{}, false, nil, nil},
		{"recursive", BindSource{Recursive: true}, true, nil, nil},
		{"read-only", BindSource{Recursive: true, ReadOnly: true}, true, unix.EROFS, nil},
		{"recursively read-only", BindSource{Recursive: true, ReadOnly: true, RecursiveReadOnly: true}, true, unix.EROFS, unix.EROFS},
	} {
		c.src.Path = dir + "/link"
		tree, err := o.OpenBind(ctx, c.src)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if !tree.IsDir || !tree.Mode.IsDir() || readInside(t, tree.File, "file") != "content" {
			t.Errorf("%s: mode %v", c.name, tree.Mode)
		}
		if _, err := os.Stat(inside(tree.File, "sub/deep")); (err == nil) != c.below {
			t.Errorf("%s: the mount below: %v, want it there: %v", c.name, err, c.below)
		}
		if err := create(tree, "new"); !errors.Is(err, c.top) {
			t.Errorf("%s: write: got %v, want %v", c.name, err, c.top)
		}
		if err := create(tree, "sub/new"); !errors.Is(err, c.deepWritten) {
			t.Errorf("%s: write below: got %v, want %v", c.name, err, c.deepWritten)
		}
		tree.File.Close()
	}
	file, err := o.OpenBind(ctx, BindSource{Path: dir + "/src/file"})
	if err != nil {
		t.Fatal(err)
	}
	if file.IsDir || file.Mode != 0o644 {
		t.Errorf("a file: IsDir %v, mode %v", file.IsDir, file.Mode)
	}
	file.File.Close()
}

func TestOpenBindSetsProtectionsOnTheWholeTree(t *testing.T) {
	o := newOpener(t)
	dir := t.TempDir()
	mkdirs(t, dir+"/src", dir+"/dst")
	mountTmpfs(t, dir+"/src/sub")
	unchangedTable(t)
	tree, err := o.OpenBind(testContext(t), BindSource{Path: dir + "/src", Recursive: true, NoExec: true, NoDev: true, NoSuid: true})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.File.Close()
	for _, path := range []string{"", "sub"} {
		var st unix.Statfs_t
		if err := unix.Statfs(inside(tree.File, path), &st); err != nil {
			t.Fatal(err)
		}
		if want := int64(unix.ST_NOEXEC | unix.ST_NODEV | unix.ST_NOSUID); st.Flags&want != want {
			t.Errorf("%q: flags %#x, want %#x in them", path, st.Flags, want)
		}
	}
}

func TestOpenBindRefusesNonsense(t *testing.T) {
	o := newOpener(t)
	ctx, dir := testContext(t), t.TempDir()
	unchangedTable(t)
	for _, c := range []struct {
		src  BindSource
		want error
	}{
		{BindSource{Path: dir + "/absent"}, fs.ErrNotExist},
		{BindSource{Path: "relative"}, ErrInvalid},
		{BindSource{Path: ""}, ErrInvalid},
		{BindSource{Path: "/a\x00b"}, ErrInvalid},
		{BindSource{Path: dir, RecursiveReadOnly: true, Recursive: true}, ErrInvalid},
		{BindSource{Path: dir, RecursiveReadOnly: true, ReadOnly: true}, ErrInvalid},
		{BindSource{Path: dir, RecursiveReadOnly: true, ReadOnly: true, Recursive: true, Propagation: Slave}, ErrInvalid},
		{BindSource{Path: dir, Propagation: Slave}, ErrNotShared},
		{BindSource{Path: dir, Propagation: Shared}, ErrNotShared},
	} {
		tree, err := o.OpenBind(ctx, c.src)
		if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprintf("%q", fmt.Sprint(err)), strings.Trim(fmt.Sprintf("%q", c.src.Path), `"`)) && c.src.Path != "/a\x00b" {
			t.Errorf("%+v: got %v, %v; want %v naming the path", c.src, tree, err, c.want)
		}
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := o.OpenBind(done, BindSource{Path: dir}); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of ctx: %v", err)
	}
}

func TestPropagation(t *testing.T) {
	o := newOpener(t)
	ctx, dir := testContext(t), t.TempDir()
	src := dir + "/src"
	mountTmpfs(t, src)
	if err := unix.Mount("", src, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	isMount := func(path string) bool {
		table, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(table), " "+path+" ")
	}
	for i, c := range []struct {
		propagation   Propagation
		hostIn, ctrIn bool // a mount of the host arrives; one of the container does
	}{{Private, false, false}, {Slave, true, false}, {Shared, true, true}} {
		dst := fmt.Sprintf("%s/dst%d", dir, i)
		host, ctr := fmt.Sprintf("host%d", i), fmt.Sprintf("ctr%d", i)
		mkdirs(t, dst, src+"/"+host, src+"/"+ctr)
		tree, err := o.OpenBind(ctx, BindSource{Path: src, Recursive: true, Propagation: c.propagation})
		if err != nil {
			t.Fatal(err)
		}
		at, err := os.OpenFile(dst, unix.O_PATH, 0)
		if err != nil {
			t.Fatal(err)
		}
		err = sys.MoveMount(tree.File, at)
		at.Close()
		tree.File.Close()
		if err != nil {
			t.Fatal(err)
		}
		mountTmpfs(t, src+"/"+host)
		mountTmpfs(t, dst+"/"+ctr)
		if got := isMount(dst + "/" + host); got != c.hostIn {
			t.Errorf("propagation %d: the host's mount arrived: %v, want %v", c.propagation, got, c.hostIn)
		}
		if got := isMount(src + "/" + ctr); got != c.ctrIn {
			t.Errorf("propagation %d: the container's mount arrived: %v, want %v", c.propagation, got, c.ctrIn)
		}
		if err := unix.Unmount(dst, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
}

func TestOpenBindMapsOwners(t *testing.T) {
	o := newOpener(t)
	dir := t.TempDir()
	writeFile(t, dir+"/file", "x")
	holder := exec.Command("sleep", "1000")
	holder.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 70000, Size: 65536}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 70000, Size: 65536}}}
	if err := holder.Start(); err != nil {
		t.Skipf("no user namespaces: %v", err)
	}
	defer func() {
		holder.Process.Kill()
		holder.Wait()
	}()
	userNS, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer userNS.Close()
	tree, err := o.OpenBind(testContext(t), BindSource{Path: dir, UserNS: userNS})
	if errors.Is(err, ErrNotSupported) {
		t.Skipf("the file system of %s has no idmapped mounts (tmpfs: Linux 6.3): %v", dir, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer tree.File.Close()
	var st unix.Stat_t
	if err := unix.Stat(inside(tree.File, "file"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Uid != 70000 || st.Gid != 70000 {
		t.Errorf("owner %d:%d, want 70000:70000", st.Uid, st.Gid)
	}
}

// hangingDir mounts a FUSE file system whose server never answers. Its release
// ends the connection, and with it everything that waits for it.
func hangingDir(t *testing.T) (dir string, release func()) {
	t.Helper()
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no FUSE: %v", err)
	}
	dir = t.TempDir() + "/hung"
	mkdirs(t, dir)
	err = unix.Mount("dead", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd()))
	if err != nil {
		fuse.Close()
		t.Skipf("mount fuse: %v", err)
	}
	t.Cleanup(func() {
		fuse.Close()
		unix.Unmount(dir, unix.MNT_DETACH)
	})
	return dir, func() { fuse.Close() }
}

func TestHungSourceHoldsNobodyElse(t *testing.T) {
	o := newOpener(t)
	dir, release := hangingDir(t)
	other := t.TempDir()
	attempt := func(path string, limit time.Duration) (time.Duration, error) {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		begin := time.Now()
		tree, err := o.OpenBind(ctx, BindSource{Path: path})
		if err == nil {
			tree.File.Close()
		}
		return time.Since(begin), err
	}
	for i := range 5 {
		took, err := attempt(dir+"/volume", 100*time.Millisecond)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), dir+"/volume") || took > time.Second {
			t.Fatalf("attempt %d: %v after %v; want the deadline, naming the path", i, err, took)
		}
	}
	// Five attempts later one goroutine is in the kernel, not five.
	if n := goroutinesIn("openBind"); n != 1 {
		t.Errorf("%d goroutines are resolving the hung path, want 1", n)
	}
	if _, err := attempt(other, 5*time.Second); err != nil {
		t.Errorf("another path, meanwhile: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	src := OverlaySource{Lower: []string{other, dir + "/layer"}}
	if _, err := o.Overlay(ctx, src); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an overlay with a hung layer: %v", err)
	}
	for i := range 2 { // the second waits for its turn
		short, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		err := o.Look(short, dir+"/device", func() error { _, err := os.Lstat(dir + "/device"); return err })
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), dir+"/device") {
			t.Errorf("look %d: %v, want the deadline, naming the path", i, err)
		}
	}
	if err := o.Look(context.Background(), other, func() error { return os.ErrExist }); err != os.ErrExist {
		t.Errorf("another look, meanwhile: %v, want its own answer", err)
	}
	release()
	if took, err := attempt(dir+"/volume", 10*time.Second); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the server is gone: %v after %v, want the kernel's answer", err, took)
	}
	for begin := time.Now(); goroutinesIn("mounts.(*Opener).guarded") != 0; time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > 5*time.Second {
			t.Fatal("goroutines are left")
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.opening) != 0 {
		t.Errorf("slots are left: %v", o.opening)
	}
}

// goroutinesIn counts the goroutines that have a function on their stack.
func goroutinesIn(function string) int {
	buf := make([]byte, 1<<20)
	n := 0
	for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, function) && !strings.Contains(stack, "goroutinesIn") {
			n++
		}
	}
	return n
}
