package sys

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestKernelFilesTakeOneWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := WriteKernelFile(path, "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("write to an absent file: %v, want ErrNotExist and no file", err)
	}
	if err := os.WriteFile(path, []byte("old text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteKernelFile(path, "new"); err != nil {
		t.Fatal(err)
	}
	got, err := ReadKernelFile(path, 8)
	if err != nil || got != "new text" { // not truncated: kernel files are not
		t.Errorf("ReadKernelFile = %q, %v", got, err)
	}
	record := func(path string, most int) (string, error) { return ReadKernelRecordAt(unix.AT_FDCWD, path, most) }
	if got, err := record(path, 8); err != nil || got != "new text" {
		t.Errorf("ReadKernelRecordAt = %q, %v", got, err)
	}
	list := func(path string, most int) (string, error) { return ReadKernelListAt(unix.AT_FDCWD, path, most) }
	for _, read := range []func(string, int) (string, error){ReadKernelFile, record, list} {
		if got, err := read(path, 7); err == nil {
			t.Errorf("8 bytes with a limit of 7: %q", got)
		}
	}
	long := strings.Repeat("x", 100_000)
	if err := os.WriteFile(path, []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadKernelFile(path, 1<<20); err != nil || got != long {
		t.Errorf("long file: %d bytes, %v", len(got), err)
	}
	for _, size := range []int{0, 8, ListEnds - 1, ListEnds, 4095, 4096, 4097} {
		if err := os.WriteFile(path, []byte(long[:size]), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := list(path, 1<<20); err != nil || got != long[:size] {
			t.Errorf("list of %d bytes: %d bytes, %v", size, len(got), err)
		}
		if got, err := record(path, 1<<20); err != nil || got != long[:size] {
			t.Errorf("record of %d bytes: %d bytes, %v", size, len(got), err)
		}
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if got, err := ReadKernelRecordAt(int(dir.Fd()), filepath.Base(path), 1<<20); err != nil || got != long[:4097] {
		t.Errorf("record from a directory: %d bytes, %v", len(got), err)
	}
	if err := os.Symlink(path, path+"-link"); err != nil {
		t.Fatal(err)
	}
	for _, read := range []func(string, int) (string, error){ReadKernelFile, record, list} {
		if _, err := read(path+"-link", 8); !errors.Is(err, unix.ELOOP) {
			t.Errorf("through a symlink: %v, want ELOOP", err)
		}
	}
}

func TestReopenOpensTheSameInode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	at, err := Openat2(dir, "file", unix.OpenHow{Flags: unix.O_PATH})
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Reopen(at, unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 10)
	if n, err := f.Read(buf); string(buf[:n]) != "first" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	for _, file := range []*os.File{at, f} {
		flags, err := unix.FcntlInt(file.Fd(), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s is inherited by executed programs (%#x, %v)", file.Name(), flags, err)
		}
	}
}

func TestFSContextTellsWhatTheKernelDislikes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for fsopen")
	}
	c, err := OpenFS("tmpfs")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	err = c.SetString("nonsense", "1")
	var fsErr *FSError
	if !errors.As(err, &fsErr) || !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "Unknown parameter 'nonsense'") {
		t.Errorf("got %v", err)
	}
	if _, err := OpenFS("nosuchfs"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("an unknown file system: %v, want ENODEV", err)
	}
}

func TestSignalPid(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := SignalPid(cmd.Process.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("ended with %v", err)
	}
	if err := SignalPid(cmd.Process.Pid, unix.SIGKILL); !errors.Is(err, unix.ESRCH) {
		t.Errorf("a process that is gone: %v, want ESRCH", err)
	}
}
