package mounts

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// imageRoot is a detached overlay with what a hostile image may hold.
func imageRoot(t *testing.T) *os.File {
	t.Helper()
	o := newOpener(t)
	dir := t.TempDir()
	writeFile(t, dir+"/a/usr/lib/passwd", "root:x:0:0::/:/bin/sh\n")
	writeFile(t, dir+"/b/big", strings.Repeat("x", 5000))
	mkdirs(t, dir+"/a/etc", dir+"/a/proc")
	for _, link := range [][2]string{
		{"/usr/lib/passwd", "etc/passwd"}, {"../../../../../../../usr/lib/passwd", "etc/group"},
		{"/etc/shadow", "etc/shadow-of-host"}, {"loop", "etc/loop"}, {"/proc/self/root/etc/passwd", "etc/magic"},
	} {
		if err := os.Symlink(link[0], dir+"/a/"+link[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(dir+"/a/etc/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(dir+"/a/etc/zero", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	f, err := o.Overlay(testContext(t), OverlaySource{Lower: []string{dir + "/a", dir + "/b"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestReadFileInRootStaysInside(t *testing.T) {
	root := imageRoot(t)
	for _, path := range []string{"etc/passwd", "/etc/passwd", "etc/group", "../../etc/passwd", "usr/lib/passwd"} {
		data, err := ReadFileInRoot(root, path, 4096)
		if err != nil || !strings.HasPrefix(string(data), "root:x:0:0::/:") {
			t.Errorf("%s: %q, %v", path, data, err)
		}
	}
	begin := time.Now()
	for path, want := range map[string]error{
		"etc/shadow-of-host": fs.ErrNotExist, "etc/loop": unix.ELOOP, "etc/magic": fs.ErrNotExist, "etc/absent": fs.ErrNotExist,
		"etc/passwd/x": unix.ENOTDIR, "etc": ErrInvalid, "etc/fifo": ErrInvalid, "etc/zero": ErrInvalid, "big": ErrTooLarge,
	} {
		if data, err := ReadFileInRoot(root, path, 4096); !errors.Is(err, want) {
			t.Errorf("%s: %q, %v; want %v", path, data, err, want)
		}
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("took %v", took)
	}
	if data, err := ReadFileInRoot(root, "big", 5000); len(data) != 5000 || err != nil {
		t.Errorf("a file of exactly the limit: %d bytes, %v", len(data), err)
	}
	if _, err := OpenInRoot(root, "etc/new", unix.O_CREAT|unix.O_WRONLY); !errors.Is(err, ErrInvalid) {
		t.Errorf("O_CREAT: %v", err)
	}
}

func TestOpenInRootRefusesMagicLinks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	proc, err := os.Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	if f, err := OpenInRoot(proc, "self/root/etc/hostname", unix.O_PATH); !errors.Is(err, unix.ELOOP) {
		t.Errorf("through /proc/self/root: %v, %v; want ELOOP", f, err)
	}
}

// TestOpenInRootSurvivesRenames holds the walk against a container that moves a
// directory in and out while ".." is resolved: it never leaves, and it mostly
// succeeds, because EAGAIN is retried.
func TestOpenInRootSurvivesRenames(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir+"/root/secret", "inside")
	writeFile(t, dir+"/secret", "outside")
	mkdirs(t, dir+"/root/a/b/c")
	root, err := os.Open(dir + "/root")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // owned by this test, which waits for it below
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				os.Rename(dir+"/root/a/b", dir+"/b")
				os.Rename(dir+"/b", dir+"/root/a/b")
			}
		}
	}()
	opened := 0
	for begin := time.Now(); time.Since(begin) < 300*time.Millisecond; {
		data, err := ReadFileInRoot(root, "a/b/c/../../../../../secret", 100)
		if err == nil {
			opened++
			if string(data) != "inside" {
				t.Fatalf("read %q", data)
			}
		}
	}
	close(stop)
	<-stopped
	if opened == 0 {
		t.Error("never succeeded")
	}
}
