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

	"github.com/podwright/podwright/runtime/sys"
)

// takenOver is this program as an unpacker that a layer has taken over, see TestMain.
var takenOver = []string{"/proc/self/exe", "taken-over"}

// attempts are what whoever took an unpacker over would like to do. dir is its own directory, dir/../secret is not.
var attempts = []struct {
	name     string
	landlock int // the version that stops it; 0: the filter does
	try      func(dir string) error
}{
	{"read another file", 1, func(dir string) error { return readAny(filepath.Join(dir, "../secret")) }},
	{"read it through a link", 1, func(dir string) error {
		if err := os.Symlink("../secret", filepath.Join(dir, "link")); err != nil {
			return fmt.Errorf("not tried: %v", err)
		}
		return readAny(filepath.Join(dir, "link"))
	}},
	{"write a file elsewhere", 1, func(dir string) error { return os.WriteFile(filepath.Join(dir, "../made"), nil, 0o600) }},
	{"make a device elsewhere", 1, func(dir string) error {
		return unix.Mknod(filepath.Join(dir, "../device"), unix.S_IFCHR, int(unix.Mkdev(1, 3)))
	}},
	{"link a file in", 1, func(dir string) error { return os.Link(filepath.Join(dir, "../secret"), filepath.Join(dir, "hard")) }},
	{"move a file out", 1, func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
			return fmt.Errorf("not tried: %v", err)
		}
		return os.Rename(filepath.Join(dir, "mine"), filepath.Join(dir, "../moved"))
	}},
	{"see its parent's memory", 1, func(string) error { return readAny(fmt.Sprintf("/proc/%d/environ", os.Getppid())) }},
	{"change the kernel", 1, func(string) error {
		_, err := os.OpenFile("/proc/sys/kernel/hostname", os.O_WRONLY, 0) // and no more, should it work
		return err
	}},
	{"end its parent", 6, func(string) error { return syscall.Kill(os.Getppid(), 0) }},
	{"call somebody", 0, func(string) error {
		_, err := net.Dial("unix", "/run/podwright/podwright.sock")
		return err
	}},
	{"mount", 0, func(dir string) error { return unix.Mount("tmpfs", dir, "tmpfs", 0, "") }},
	{"a namespace", 0, func(string) error { return unix.Unshare(unix.CLONE_NEWNS) }},
	{"a process in a namespace", 0, func(string) error {
		cmd := exec.Command("/bin/true")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stderr, os.Stderr // not /dev/null, which it can't open
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUTS}
		return cmd.Run()
	}},
	{"io_uring", 0, func(string) error {
		_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, 0, 0)
		return errno
	}},
	{"trace its parent", 0, func(string) error { return unix.PtraceSeize(os.Getppid()) }},
}

func readAny(path string) error {
	_, err := os.ReadFile(path)
	return err
}

// tryAll prints the error number of every attempt; 0 is a success.
func tryAll(dir string) {
	for _, a := range attempts {
		err, errno := a.try(dir), syscall.Errno(0)
		if err != nil && !errors.As(err, &errno) {
			errno = 9999
		}
		fmt.Printf("%s=%d\n", a.name, int(errno))
	}
}

func TestUnpackerThatIsTakenOverHasItsLayersOnly(t *testing.T) {
	needRoot(t)
	top := t.TempDir()
	dir := filepath.Join(top, "layers")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(top, "secret"), []byte("secret"), 0o600)); err != nil {
		t.Fatal(err)
	}
	u, _ := newUnpackers(t, append(takenOver, dir)...)
	u.reads, u.writes = testLibraries, []string{dir}
	p, err := u.start()
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(p.results)
	if err = errors.Join(err, p.end()); err != nil {
		t.Fatal(err)
	}
	version := sys.LandlockVersion()
	if version < 2 {
		t.Logf("this kernel has no Landlock, or one without links (version %d): only system calls are looked at", version)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, errno, _ := strings.Cut(strings.TrimSpace(line), "=")
		got[name] = errno
	}
	for _, a := range attempts {
		if a.landlock > 0 && version < max(2, a.landlock) {
			continue
		}
		errno, _ := strconv.Atoi(got[a.name])
		if e := syscall.Errno(errno); e != unix.EACCES && e != unix.EPERM && e != unix.EXDEV {
			t.Errorf("%s: got error %q (%s), want it refused", a.name, got[a.name], e)
		}
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil || strings.Contains(string(status), "NoNewPrivs:\t1") {
		t.Errorf("this process is confined as well (%v)", err)
	}
}
