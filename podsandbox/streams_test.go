package podsandbox

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// B36, CVE-2025-0750: a log never leaves the log directory.
func TestOpenLogStaysInTheLogDirectory(t *testing.T) {
	outside := t.TempDir()
	logDir := filepath.Join(t.TempDir(), "pod")
	if err := os.Mkdir(logDir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"link": outside, "file": filepath.Join(outside, "x")} {
		if err := os.Symlink(target, filepath.Join(logDir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(logDir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"../x", "a/../../x", "/etc/x", "link/x", "file", "fifo", "."} {
		if f, err := openLog(logDir, bad); err == nil {
			t.Errorf("log_path %q: got %s, want an error", bad, f.Name())
			f.Close()
		}
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 0 {
		t.Errorf("files were made outside: %v", entries)
	}
	f, err := openLog(logDir, "hello/0.log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := os.Stat(filepath.Join(logDir, "hello/0.log")); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("got %v, %v, want mode 0640", info, err)
	}
}

func TestOpenLogNeedsALogDirectory(t *testing.T) {
	if _, err := openLog("", "0.log"); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
}

// The FIFOs outlive whoever made them: what was written while nobody read is there for the next reader.
func TestStreamsKeepOutputForTheNextReader(t *testing.T) {
	dir := t.TempDir()
	first, err := openStreams(dir, 0, 0, false, true, "", "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer first.close()
	if _, err := first.stdout.WriteString("line\n"); err != nil {
		t.Fatal(err)
	}
	first.stdoutRead.Close()
	second, err := openStreams(dir, 0, 0, false, true, "", "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer second.close()
	buf := make([]byte, 16)
	if n, err := second.stdoutRead.Read(buf); err != nil || string(buf[:n]) != "line\n" {
		t.Errorf("got %q, %v, want the line written before", buf[:n], err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "stdout"), &st); err != nil || st.Mode&0o777 != 0o600 {
		t.Errorf("got mode %o, %v, want 0600", st.Mode&0o777, err)
	}
}

func TestExecOutputIsCappedAndNeverBlocks(t *testing.T) {
	out := &execOutput{pool: new(atomic.Int64), uid: os.Getuid(), gid: os.Getgid()}
	s, err := out.open()
	if err != nil {
		t.Fatal(err)
	}
	defer out.close()
	out.start()
	chunk := make([]byte, 1<<20)
	for range 2 * maxExecOutput >> 20 {
		if _, err := s.stdout.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.stderr.WriteString("late"); err != nil {
		t.Fatal(err)
	}
	s.close()
	stdout, stderr := out.finish()
	if len(stdout)+len(stderr) > maxExecOutput {
		t.Errorf("kept %d and %d bytes, want at most %d", len(stdout), len(stderr), maxExecOutput)
	}
}

// B26: a background process that holds the pipe does not hold up the answer, and what was written before is there.
func TestExecOutputDoesNotWaitForBackgroundHolders(t *testing.T) {
	out := &execOutput{pool: new(atomic.Int64), uid: os.Getuid(), gid: os.Getgid()}
	s, err := out.open()
	if err != nil {
		t.Fatal(err)
	}
	defer out.close()
	defer s.close() // the holder
	out.start()
	if _, err := s.stdout.WriteString("answer"); err != nil {
		t.Fatal(err)
	}
	stdout, _ := out.finish()
	if string(stdout) != "answer" {
		t.Errorf("got %q, want answer", stdout)
	}
}

// CVE-2022-1708 by many at once: what commands keep together is bounded, and each keeps the beginning of its output.
func TestExecOutputsShareOnePool(t *testing.T) {
	pool := new(atomic.Int64)
	chunk := make([]byte, 1<<20)
	var outs []*execOutput
	kept := 0
	for range 8 {
		out := &execOutput{pool: pool, uid: os.Getuid(), gid: os.Getgid()}
		s, err := out.open()
		if err != nil {
			t.Fatal(err)
		}
		outs = append(outs, out)
		out.start()
		for range maxExecOutput >> 20 {
			if _, err := s.stdout.Write(chunk); err != nil {
				t.Fatal(err)
			}
		}
		s.close()
		stdout, _ := out.finish()
		if len(stdout) < freeOutput/2 {
			t.Errorf("kept %d bytes of one, want the beginning whoever else prints", len(stdout))
		}
		kept += len(stdout)
	}
	if most := execPool + 8*(freeOutput+32<<10); kept > most || kept < execPool {
		t.Errorf("kept %d bytes together, want between %d and %d", kept, execPool, most)
	}
	for _, out := range outs {
		out.close()
	}
	if left := pool.Load(); left != 0 {
		t.Errorf("%d bytes of the pool are still taken", left)
	}
}
