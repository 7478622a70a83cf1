package diskuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func never(int) error { return nil }

func count(t *testing.T, dirs ...string) Use {
	t.Helper()
	use, err := Count(t.Context(), never, dirs...)
	if err != nil {
		t.Fatal(err)
	}
	return use
}

func write(t *testing.T, path string, size int) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, bytes.Repeat([]byte("x"), size), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func TestCount(t *testing.T) {
	dir := t.TempDir()
	empty := count(t, dir)
	if empty.Inodes != 1 {
		t.Errorf("an empty directory: got %+v, want one inode", empty)
	}
	write(t, filepath.Join(dir, "a/b/c"), 1<<20)
	if got := count(t, dir); got.Bytes < empty.Bytes+1<<20 || got.Bytes > empty.Bytes+1<<20+64<<10 || got.Inodes != 4 {
		t.Errorf("1 MiB in two directories: got %+v", got)
	}
	one := count(t, dir)
	for i := range 7 { // more names of the same
		if err := os.Link(filepath.Join(dir, "a/b/c"), filepath.Join(dir, fmt.Sprint("link", i))); err != nil {
			t.Fatal(err)
		}
	}
	if got := count(t, dir); got != one {
		t.Errorf("a file with eight names: got %+v, want %+v", got, one)
	}
	hole, err := os.OpenFile(filepath.Join(dir, "hole"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err == nil {
		err = errors.Join(hole.Truncate(1<<40), hole.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := count(t, dir); got.Bytes > one.Bytes+64<<10 || got.Inodes != one.Inodes+1 {
		t.Errorf("a hole of a terabyte: got %+v after %+v", got, one)
	}
	other := t.TempDir()
	write(t, filepath.Join(other, "x"), 10)
	if got, sum := count(t, dir, other, filepath.Join(dir, "absent")), count(t, dir).Inodes+2; got.Inodes != sum {
		t.Errorf("two trees and an absent one: got %+v, want %d inodes", got, sum)
	}
	if _, err := Count(t.Context(), never, filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent tree: got %v, want ErrNotExist", err)
	}
}

func TestCountFollowsNoLink(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	write(t, filepath.Join(outside, "big"), 1<<20)
	before := count(t, dir)
	for name, to := range map[string]string{"out": outside, "file": filepath.Join(outside, "big"), "up": "..", "self": ".", "root": "/"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644); err != nil { // opening it would wait for a writer
		t.Fatal(err)
	}
	if got := count(t, dir); got.Inodes != before.Inodes+6 || got.Bytes > before.Bytes+64<<10 {
		t.Errorf("got %+v after %+v, want six more inodes", got, before)
	}
	link := filepath.Join(outside, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Count(t.Context(), never, link); err == nil {
		t.Error("a tree that is a link was counted")
	}
}

// A chain of directories can be deeper than any path is long; each level costs an open file while it is counted.
func TestCountEndsInTheDeep(t *testing.T) {
	dir := t.TempDir()
	const deep = 1500
	fd, err := openDir(unix.AT_FDCWD, dir)
	for i := 0; i < deep && err == nil; i++ {
		if err = unix.Mkdirat(fd, "a-rather-long-name", 0o755); err != nil {
			break
		}
		next := 0
		next, err = openDir(fd, "a-rather-long-name")
		unix.Close(fd)
		fd = next
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if got := count(t, dir); got.Inodes != maxDepth+1 {
		t.Errorf("got %d inodes, want the %d that are counted", got.Inodes, maxDepth+1)
	}
}

func TestCountStopsWhenItIsTold(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 * stepEntries {
		write(t, filepath.Join(dir, fmt.Sprint(i)), 0)
	}
	enough := errors.New("enough")
	calls := 0
	use, err := Count(t.Context(), func(entries int) error {
		if calls++; entries >= 2*stepEntries {
			return enough
		}
		return nil
	}, dir)
	if !errors.Is(err, enough) || calls != 2 || use.Inodes != 2*stepEntries {
		t.Errorf("got %+v, %v after %d steps, want what was counted in two", use, err, calls)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Count(ctx, never, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's end", err)
	}
}

// What a container does to its tree while it is counted is no error.
func TestCountOfATreeThatChanges(t *testing.T) {
	dir := t.TempDir()
	stop, done := make(chan struct{}), make(chan struct{})
	// Owner: this test; ends with stop; waited for below.
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			name := filepath.Join(dir, fmt.Sprint(i%20))
			os.MkdirAll(filepath.Join(name, "a/b"), 0o755)
			os.WriteFile(filepath.Join(name, "a/b/c"), nil, 0o644)
			os.RemoveAll(name)
			os.Symlink("/", name)
			os.Remove(name)
		}
	}()
	for range 500 {
		if _, err := Count(t.Context(), never, dir); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	<-done
}

func BenchmarkCountAnEmptyLayer(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		if _, err := Count(b.Context(), never, dir); err != nil {
			b.Fatal(err)
		}
	}
}
