package podsandbox

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// B36, B38: whatever the path, nothing is opened or made outside, and no directory is made.
func TestNextLogStaysInTheLogDirectory(t *testing.T) {
	outside, logDir := t.TempDir(), t.TempDir()
	for name, target := range map[string]string{"link": outside, "file": filepath.Join(outside, "x")} {
		if err := os.Symlink(target, filepath.Join(logDir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(logDir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"../x", "a/../../x", "/etc/x", "link/x", "file", "fifo", ".", "..", "", "absent/x"} {
		if n, err := openNextLog(logDir, bad); err == nil {
			t.Errorf("log_path %q: got %s, want an error", bad, n.name)
			n.close()
		}
	}
	if n, err := openNextLog(filepath.Join(logDir, "absent"), "x"); !errors.Is(err, ErrPrecondition) {
		t.Errorf("absent log directory: got %v, %v, want ErrPrecondition", n, err)
	}
	for dir, want := range map[string]int{outside: 0, logDir: 3} {
		if entries, _ := os.ReadDir(dir); len(entries) != want {
			t.Errorf("%s: got %v, want nothing new", dir, entries)
		}
	}
}

func TestNextLogIsUndoneOnlyWhereItWasMade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	open := func() *nextLog {
		n, err := openNextLog(filepath.Dir(path), "0.log")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.close)
		return n
	}
	if err := open().undo(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("made and undone: got %v, want no file", err)
	}
	made := open()
	if err := open().undo(); err != nil { // it was there
		t.Error(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("another's file: got %v, %v, want it there with mode 0640", info, err)
	}
	if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte("new"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := made.undo(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("replaced meanwhile: got %v, want the other file untouched", err)
	}
}
