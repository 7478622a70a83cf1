package initproc

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// inTestRoot gives a runner whose root is a directory full of hostile links, and that directory. It needs no
// privilege: what is tested is where paths lead.
func inTestRoot(t testing.TB) (*runner, string) {
	t.Helper()
	outside := t.TempDir()
	root := filepath.Join(outside, "root")
	for _, dir := range []string{"/a/b/c", "/etc", "/tmp"} {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"/up": "../../../../..", "/abs": "/", "/host": outside, "/self": "self", "/a/back": "../a/b", "/a/b/etc": "/etc",
		"/dangling": "/new/place", "/deep": "a/b/c/../../b/etc/..", "/proc": "/proc/self/cwd", "/x1": "x2/y", "/x2": "x1/y",
	} {
		if err := os.Symlink(to, root+link); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(root+"/file", nil, 0o644)
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &runner{root: fd}, root
}

// place is where the descriptor's file is on the host.
func place(t testing.TB, fd int) string {
	t.Helper()
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCreatedFilesAreInTheRoot(t *testing.T) {
	for path, want := range map[string]string{
		"/plain": "/plain", "no/slash": "/no/slash", "/up/x": "/x", "/abs/y": "/y", "/dangling/f": "/new/place/f", "/dangling": "/new/place",
		"/a/back/etc/f": "/etc/f", "/deep/g": "/g", "/a/../../../h": "/h", "/a/./b//i": "/a/b/i", "/new2/../j": "/j",
	} {
		r, root := inTestRoot(t)
		fd, errno := r.create(path, false, 0o600, true)
		if errno != 0 {
			t.Errorf("%s: %v", path, errno)
			continue
		}
		if got := place(t, fd); got != root+want {
			t.Errorf("%s: made at %s, want %s", path, got, root+want)
		}
		closeFd(fd)
	}
	r, _ := inTestRoot(t)
	for path, want := range map[string]unix.Errno{
		"/self": unix.ELOOP, "/x1/z": unix.ELOOP, "/proc/k": unix.ELOOP, "/file/x": unix.ENOTDIR, "/a/..": unix.EISDIR, "/": unix.EISDIR, "": unix.EISDIR,
	} {
		if fd, errno := r.create(path, false, 0o600, true); errno != want {
			t.Errorf("%q: got %v (fd %d), want %v", path, errno, fd, want)
		}
	}
}

// TestCreateWhileTheImageChanges lets another process swap a directory for a link out of the root, as a container
// that shares a volume can (CVE-2021-30465, CVE-2024-45310).
func TestCreateWhileTheImageChanges(t *testing.T) {
	r, root := inTestRoot(t)
	outside := filepath.Dir(root)
	os.MkdirAll(root+"/swap/real", 0o755)
	os.Symlink("/../../../../.."+outside, root+"/swap/link")
	os.Symlink(outside, root+"/swap/host")
	stop := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() { // ends with stop, the test waits for it
		for {
			select {
			case <-stop:
				return
			default:
				unix.Renameat2(unix.AT_FDCWD, root+"/swap/real", unix.AT_FDCWD, root+"/swap/link", unix.RENAME_EXCHANGE)
				unix.Renameat2(unix.AT_FDCWD, root+"/swap/real", unix.AT_FDCWD, root+"/swap/host", unix.RENAME_EXCHANGE)
			}
		}
	})
	for i := range 3000 {
		fd, errno := r.create(fmt.Sprintf("/swap/real/d%d/../f%d", i%7, i), i%2 == 0, 0o700, true)
		if errno != 0 {
			continue // losing the race may fail, it may not escape
		}
		if got := place(t, fd); !strings.HasPrefix(got, root+"/") {
			t.Fatalf("made at %s, outside %s", got, root)
		}
		closeFd(fd)
	}
	close(stop)
	swapper.Wait()
	if names, err := os.ReadDir(outside); err != nil || len(names) != 1 {
		t.Errorf("outside the root: %v, %v", names, err)
	}
}

func FuzzCreateStaysInTheRoot(f *testing.F) {
	for _, seed := range []string{"/up/x", "dangling/../../x", "/host/y", "a/b/etc/../../..", "//./..//z", "/proc/self/root/etc", "x1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if strings.ContainsRune(path, 0) || len(path) > 2000 {
			t.Skip()
		}
		r, root := inTestRoot(t)
		fd, errno := r.create(path, false, 0o600, true)
		if errno == 0 {
			defer closeFd(fd)
			if got := place(t, fd); got != root && !strings.HasPrefix(got, root+"/") {
				t.Fatalf("%q: made at %s, outside %s", path, got, root)
			}
		}
		if names, err := os.ReadDir(filepath.Dir(root)); err != nil || len(names) != 1 {
			t.Fatalf("%q: outside the root: %v, %v", path, names, err)
		}
	})
}
