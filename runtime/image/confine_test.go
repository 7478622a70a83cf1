package image

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// takenOver is this program as an unpacker that a layer has taken over, see TestMain.
var takenOver = []string{"/proc/self/exe", "taken-over"}

// attempts are what whoever took an unpacker over would like to do, whose own directory is own. The node has a file secret in
// the directory node, beside the layer's.
var attempts = []struct {
	name string
	free bool // can be done by who is not confined, so that it is known to be an attempt
	try  func(own, node string) error
}{
	{"read another file", true, func(_, node string) error { return readAny(filepath.Join(node, "secret")) }},
	{"read it by way of its own directory", true, func(own, _ string) error { return readAny(own + "/../secret") }},
	{"read it through a link", true, func(own, _ string) error {
		if err := os.Symlink("../secret", filepath.Join(own, "link")); err != nil {
			return fmt.Errorf("not tried: %v", err)
		}
		return readAny(filepath.Join(own, "link"))
	}},
	{"read it in its parent's root", true, func(_, node string) error {
		return readAny(fmt.Sprintf("/proc/%d/root%s/secret", os.Getppid(), node))
	}},
	{"write a file elsewhere", true, func(_, node string) error { return os.WriteFile(filepath.Join(node, "made"), nil, 0o600) }},
	{"make a device elsewhere", true, func(_, node string) error {
		return unix.Mknod(filepath.Join(node, "device"), unix.S_IFCHR, int(unix.Mkdev(1, 3)))
	}},
	{"change another file's mode", true, func(_, node string) error { return os.Chmod(filepath.Join(node, "secret"), 0o644) }},
	{"change another file's owner", true, func(_, node string) error { return os.Chown(filepath.Join(node, "secret"), 7, 7) }},
	{"give another file an attribute", true, func(_, node string) error {
		return unix.Setxattr(filepath.Join(node, "secret"), "trusted.test", []byte("x"), 0)
	}},
	{"link a file in", true, func(own, node string) error {
		return os.Link(filepath.Join(node, "secret"), filepath.Join(own, "hard"))
	}},
	{"move a file out", true, func(own, node string) error {
		if err := os.WriteFile(filepath.Join(own, "mine"), nil, 0o600); err != nil {
			return fmt.Errorf("not tried: %v", err)
		}
		return os.Rename(filepath.Join(own, "mine"), filepath.Join(node, "moved"))
	}},
	{"open a device", true, func(own, _ string) error {
		if err := unix.Mknod(filepath.Join(own, "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
			return fmt.Errorf("not tried: %v", err)
		}
		return readAny(filepath.Join(own, "null"))
	}},
	{"see its parent's memory", true, func(string, string) error { return readAny(fmt.Sprintf("/proc/%d/environ", os.Getppid())) }},
	{"change the kernel", true, func(string, string) error {
		_, err := os.OpenFile("/proc/sys/kernel/hostname", os.O_WRONLY, 0) // and no more, should it work
		return err
	}},
	{"end its parent", true, func(_, node string) error {
		pid, err := os.ReadFile(filepath.Join(node, "parent")) // it has another number here, if any
		if err != nil {
			pid = []byte(strconv.Itoa(unix.Getppid()))
		}
		parent, err := strconv.Atoi(string(pid))
		if err != nil || parent == 0 {
			return unix.ESRCH
		}
		return syscall.Kill(parent, 0)
	}},
	{"call somebody", true, func(string, string) error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}},
	{"reach the daemon", false, func(string, string) error {
		_, err := net.Dial("unix", "/run/podwright/podwright.sock")
		return err
	}},
	{"freeze its file system", false, func(own, _ string) error {
		dir, err := os.Open(own)
		if err != nil {
			return fmt.Errorf("not tried: %v", err)
		}
		defer dir.Close()
		_, err = unix.IoctlGetInt(int(dir.Fd()), unix.FS_IOC_GETFLAGS) // of the same family, and harmless
		return err
	}},
	{"mount", false, func(own, _ string) error { return unix.Mount("tmpfs", own, "tmpfs", 0, "") }},
	{"a namespace", false, func(string, string) error { return unix.Unshare(unix.CLONE_NEWNS) }},
	{"another root", false, func(string, string) error { return unix.Chroot(".") }},
	{"a program", true, func(string, string) error { return exec.Command("/bin/true").Run() }},
	{"its own program again", true, func(own, _ string) error {
		if err := os.WriteFile(filepath.Join(own, "program"), []byte("#!/bin/true\n"), 0o755); err != nil {
			return fmt.Errorf("not tried: %v", err)
		}
		return exec.Command(filepath.Join(own, "program")).Run()
	}},
	{"io_uring", false, func(string, string) error {
		_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, 0, 0)
		return errno
	}},
	{"trace somebody", false, func(string, string) error { return unix.PtraceSeize(1) }},
	{"load a module", false, func(string, string) error { return unix.FinitModule(0, "", 0) }},
	{"become another user", false, func(string, string) error { return unix.Setuid(7) }},
}

func readAny(path string) error {
	_, err := os.ReadFile(path)
	return err
}

// tryAll takes a job as an unpacker does, and prints the error number of every attempt; 0 is a success. Without one it is free.
func tryAll(in io.Reader, node string) error {
	own := filepath.Join(node, "layer")
	if in != nil {
		if _, _, err := receive(in); err != nil {
			return err
		}
		own = "/"
	}
	for _, a := range attempts {
		if in == nil && !a.free {
			continue
		}
		err, errno := a.try(own, node), syscall.Errno(0)
		if err != nil && !errors.As(err, &errno) {
			errno = 9999
		}
		fmt.Printf("%s=%d\n", a.name, int(errno))
	}
	return nil
}

// node is a directory with what attempts are about.
func node(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	err := errors.Join(os.Mkdir(filepath.Join(dir, "layer"), 0o700), os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o600),
		os.WriteFile(filepath.Join(dir, "parent"), []byte(strconv.Itoa(os.Getpid())), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func attempted(text string) map[string]syscall.Errno {
	got := map[string]syscall.Errno{}
	for line := range strings.Lines(text) {
		name, number, _ := strings.Cut(strings.TrimSpace(line), "=")
		errno, _ := strconv.Atoi(number)
		got[name] = syscall.Errno(errno)
	}
	return got
}

func TestUnpackerThatIsTakenOverHasItsLayerOnly(t *testing.T) {
	needRoot(t)
	free, err := exec.Command(takenOver[0], takenOver[1], node(t), "free").Output()
	if err != nil {
		t.Fatal(err)
	}
	could := attempted(string(free))
	dir := node(t)
	u, _ := newUnpackers(t, append(takenOver, dir)...)
	p, err := u.start()
	if err != nil {
		t.Fatal(err)
	}
	filter, err := confinementFilter()
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFrame(p.jobs, layerJob{Blob: filepath.Join(dir, "secret"), Dir: filepath.Join(dir, "layer"), Filter: filter}); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(p.results)
	if err = errors.Join(err, p.end()); err != nil {
		t.Fatal(err)
	}
	got := attempted(string(text))
	for _, a := range attempts {
		if a.free && could[a.name] != 0 {
			t.Errorf("%s: without confinement got %q: that is no attempt", a.name, could[a.name])
		}
		switch e, tried := got[a.name]; {
		case !tried:
			t.Errorf("%s: not tried", a.name)
		case e != unix.EACCES && e != unix.EPERM && e != unix.ENOENT && e != unix.ESRCH:
			t.Errorf("%s: got error %d (%s), want it refused", a.name, int(e), e)
		}
	}
}

// Nothing happens to the mounts of who types the verb.
func TestUnpackerNeedsNamespacesOfItsOwn(t *testing.T) {
	cmd := exec.Command(testUnpacker[0], testUnpacker[1:]...)
	var job strings.Builder
	if err := writeFrame(&job, layerJob{Blob: "/dev/null", Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = strings.NewReader(job.String())
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "started by podwright's daemon only") {
		t.Errorf("got %q, %v, want it refused", out, err)
	}
}

// An unpacker reads nothing of a layer where it can't be confined.
func TestUnpackerIsConfinedOrDoesNothing(t *testing.T) {
	needRoot(t)
	u, _ := newUnpackers(t, testUnpacker...)
	p, err := u.start()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := writeFrame(p.jobs, layerJob{Blob: packed(t), Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(p.results); len(text) > 0 || err != nil {
		t.Errorf("without a filter it answered %q, %v", text, err)
	}
	if err := p.end(); err == nil || !strings.Contains(err.Error(), "no filter of system calls") {
		t.Errorf("got %v, want it to say why", err)
	}
}
