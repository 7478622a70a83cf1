package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"

	"github.com/podwright/podwright/test/e2e/registry"
)

func newUnpackers(t *testing.T, command ...string) (*unpackers, *os.File) {
	t.Helper()
	lock, err := lockUnpacking(filepath.Join(t.TempDir(), "unpacking"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	return &unpackers{command: command, lock: lock}, lock
}

// packed writes a layer's tar to a file.
func packed(t *testing.T, files ...registry.File) string {
	t.Helper()
	stream, err := layer(t, registry.Plain, files...).Compressed()
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(stream)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUnpackerUnpacksItsLayer(t *testing.T) {
	needRoot(t)
	u, _ := newUnpackers(t, testUnpacker...)
	for i, text := range []string{"first", "second"} {
		dir := t.TempDir()
		result, err := u.unpack(t.Context(), layerJob{Blob: packed(t, registry.Regular("a/b/file", 0o644, text)), Dir: dir, Stacked: i == 1})
		if err != nil || result.Digest.Validate() != nil || result.Size == 0 {
			t.Fatalf("%s: got %+v, %v", text, result, err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "a/b/file")); err != nil || string(got) != text {
			t.Errorf("got %q, %v; want %q", got, err, text)
		}
		if want := []string{"", "a a/b"}[i]; strings.Join(result.Implied, " ") != want {
			t.Errorf("%s: implied directories: got %q, want %q", text, result.Implied, want)
		}
	}
	if children := childrenOf(t); len(children) != 0 {
		t.Errorf("left: %v", children)
	}
}

// An unpacker yields to others and has little memory.
func TestUnpackerIsRestrained(t *testing.T) {
	needRoot(t)
	u, _ := newUnpackers(t, testUnpacker...)
	p, err := u.start()
	if err != nil {
		t.Fatal(err)
	}
	defer p.end()
	pid := p.cmd.Process.Pid
	// The system call gives 20 - nice.
	mine, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	for deadline := time.Now().Add(10 * time.Second); limit.Max != maxUnpackerBytes; time.Sleep(time.Millisecond) {
		if err := unix.Prlimit(pid, unix.RLIMIT_DATA, nil, &limit); err != nil || time.Now().After(deadline) {
			t.Fatalf("memory of the unpacker: got %d, %v; want a limit of %d", limit.Max, err, maxUnpackerBytes)
		}
	}
	threads, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		tid, _ := strconv.Atoi(thread.Name())
		if got, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err == nil && got != max(mine-sys.BackgroundNice, 20-sys.LowestNice) {
			t.Errorf("thread %d of the unpacker has priority %d, this one %d", tid, got, mine)
		}
	}
}

func TestUnpackerTellsABadLayerFromABadDisk(t *testing.T) {
	needRoot(t)
	u, _ := newUnpackers(t, testUnpacker...)
	cut := packed(t, registry.Regular("file", 0o644, strings.Repeat("x", 10_000)))
	if err := os.Truncate(cut, 5000); err != nil {
		t.Fatal(err)
	}
	if _, err := u.unpack(t.Context(), layerJob{Blob: cut, Dir: t.TempDir()}); !errors.Is(err, ErrInvalidImage) {
		t.Errorf("a layer that is cut: got %v, want ErrInvalidImage", err)
	}
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(full, unix.MNT_DETACH)
	large := packed(t, registry.Regular("file", 0o644, strings.Repeat("x", 1<<20)))
	if _, err := u.unpack(t.Context(), layerJob{Blob: large, Dir: full}); !errors.Is(err, syscall.ENOSPC) || errors.Is(err, ErrInvalidImage) {
		t.Errorf("a disk that is full: got %v, want ENOSPC", err)
	}
	if _, err := u.unpack(t.Context(), layerJob{Blob: large, Dir: t.TempDir()}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestUnpackerThatCrashesFailsItsLayerAlone(t *testing.T) {
	u, _ := newUnpackers(t, "/bin/sh", "-c", "echo 'panic: a bug' >&2; exit 2")
	_, err := u.unpack(t.Context(), layerJob{})
	if err == nil || !strings.Contains(err.Error(), "panic: a bug") || !strings.Contains(err.Error(), "exit status 2") || errors.Is(err, ErrInvalidImage) {
		t.Errorf("got %v, want how the process ended and what it said", err)
	}
	u, _ = newUnpackers(t, "/nowhere/unpacker")
	if _, err := u.unpack(t.Context(), layerJob{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a program that is not there: got %v", err)
	}
	nonsense, _ := newUnpackers(t, "/bin/sh", "-c", "head -c 8 /dev/zero | tr '\\0' x; exec sleep 1000")
	if _, err := nonsense.unpack(t.Context(), layerJob{}); !errors.Is(err, errFrameSize) {
		t.Errorf("a message of two gigabytes: got %v, want it refused", err)
	}
}

func TestCancelledUnpackerIsGoneAtOnce(t *testing.T) {
	u, _ := newUnpackers(t, "/bin/sleep", "1000")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err := u.unpack(ctx, layerJob{})
	if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took > 5*time.Second || len(childrenOf(t)) != 0 {
		t.Errorf("got %v after %v, processes %v; want the deadline's error and none", err, took, childrenOf(t))
	}
}

// An unpacker ends with the daemon, however that ends, and no store is opened before.
func TestUnpackerEndsWithItsDaemon(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "unpacking")
	lock, err := lockUnpacking(path)
	if err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(t.TempDir(), "blob") // a layer that never comes
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(testUnpacker[0], testUnpacker[1:]...)
	cmd.ExtraFiles, cmd.SysProcAttr = []*os.File{lock}, unpackerNamespaces()
	daemon, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	filter, err := confinementFilter()
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFrame(daemon, layerJob{Blob: fifo, Dir: t.TempDir(), Filter: filter}); err != nil {
		t.Fatal(err)
	}
	lock.Close()
	// Opens once the unpacker does: it is at work.
	writer, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	other, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Errorf("while it is at work the lock is free: %v", err)
	}
	daemon.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("got %v, want a good end", err)
	}
	next, err := lockUnpacking(path)
	if err != nil {
		t.Fatal(err)
	}
	next.Close()
}

func TestNoUnpackerOutlivesItsPull(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	push(t, r, "a:1", build(t, "amd64", v1.Config{}, layer(t, registry.Gzip, registry.Regular("file", 0o644, "text"))))
	s := openStore(t, Config{Root: t.TempDir()})
	pull(t, s, host+"/a:1")
	if children := childrenOf(t); len(children) != 0 {
		t.Errorf("left: %v", children)
	}
}

// childrenOf are this process's children that run this program.
func childrenOf(t *testing.T) (pids []string) {
	t.Helper()
	entries, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(entries) == 0 {
		t.Fatal(err, entries)
	}
	for _, path := range entries {
		if raw, err := os.ReadFile(path); err == nil {
			pids = append(pids, strings.Fields(string(raw))...)
		}
	}
	return pids
}

// FuzzLayerResult: an unpacker that a layer has taken over answers what it likes.
func FuzzLayerResult(f *testing.F) {
	var frame bytes.Buffer
	if err := writeFrame(&frame, layerResult{Digest: "sha256:0", Implied: []string{"a"}}); err != nil {
		f.Fatal(err)
	}
	f.Add(frame.Bytes())
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 0 && data[0] != 0 {
			return // takes 16 MiB at once
		}
		var result layerResult
		if err := readFrame(bytes.NewReader(data), &result); err != nil {
			return
		}
		if err := result.err(); err != nil && len(err.Error()) > maxErrorLen+100 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	})
}
