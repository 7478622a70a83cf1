package mounts

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const inOwnNamespace = "PODWRIGHT_MOUNTS_TEST_NAMESPACE"

// TestMain runs the tests of root in a mount namespace of their own. Its table
// belongs to them alone, so that "nothing appears in the host's mount table" can
// be held to the letter, and it ends with the process whatever happens.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(inOwnNamespace) == "" {
		// exec(2) ends the other threads; the process goes on as this one, in the
		// namespace that it has just entered.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), inOwnNamespace+"=1"))
		}
		fmt.Fprintln(os.Stderr, "tests in a mount namespace:", err)
		os.Exit(1)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Fprintln(os.Stderr, "make mounts private:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func newOpener(t *testing.T) *Opener {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make mounts")
	}
	o, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// unchangedTable fails the test if the mount table or the number of open files
// is another at its end.
func unchangedTable(t *testing.T) {
	t.Helper()
	look := func() (string, int) {
		table, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return string(table), len(fds)
	}
	before, fdsBefore := look()
	t.Cleanup(func() {
		after, fdsAfter := look()
		if before != after {
			t.Errorf("mount table before:\n%s\nafter:\n%s", before, after)
		}
		if fdsBefore != fdsAfter {
			t.Errorf("%d open files before, %d after", fdsBefore, fdsAfter)
		}
	})
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mkdirs(t *testing.T, dirs ...string) {
	t.Helper()
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// inside names a path on a mount that is attached nowhere.
func inside(f *os.File, path string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), path)
}

func readInside(t *testing.T, f *os.File, path string) string {
	t.Helper()
	data, err := os.ReadFile(inside(f, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
