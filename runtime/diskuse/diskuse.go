// Package diskuse counts what a directory tree takes on disk. It owns nothing: it reads directories, follows no link and
// leaves no file open. It may not know whose tree it is, nor when or how fast to count: callers pace it.
//
// The tree belongs to a container that may change it at any moment, and in any way that keeps a counter busy: every
// directory is opened by its name in the one above (openat(2) with O_NOFOLLOW), what vanishes meanwhile is passed over,
// depth is bounded, and memory does not grow with the number of files.
//
// Source: stat(2), openat(2).
package diskuse

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// Use is what a tree takes. What was deleted and is still open is not in it.
type Use struct {
	Bytes  uint64 // blocks, not lengths: a hole takes nothing
	Inodes uint64
}

// maxDepth bounds the descent: each level holds a file open. What is deeper is not counted; no path of a program that
// works with paths gets there (PATH_MAX).
const maxDepth = 256

// stepEntries is how many entries are counted between two calls of a step.
const stepEntries = 256

// Count walks the trees below dirs. After every few hundred entries it calls step with how many there were so far; an
// error of step's or ctx's end stops the walk, and comes with what was counted until then. The first of dirs has to be
// there, or it is fs.ErrNotExist.
func Count(ctx context.Context, step func(entries int) error, dirs ...string) (Use, error) {
	w := walk{ctx: ctx, step: step}
	var failure error
	for i, dir := range dirs {
		err := w.tree(dir)
		if i > 0 && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			failure = err
			break
		}
	}
	return Use{Bytes: uint64(w.bytes), Inodes: uint64(math.Round(w.inodes))}, failure
}

// walk adds up. A file with n names counts an nth for each: those who were seen need not be remembered.
type walk struct {
	ctx           context.Context
	step          func(int) error
	device        uint64
	entries       int
	bytes, inodes float64
}

func (w *walk) tree(path string) error {
	fd, err := openDir(unix.AT_FDCWD, path)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	w.device = st.Dev
	w.add(&st)
	return w.dir(fd, path, 1)
}

// dir counts what is in a directory and below it. It takes ownership of fd.
func (w *walk) dir(fd int, name string, depth int) error {
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	for {
		entries, err := f.ReadDir(stepEntries)
		for _, entry := range entries {
			if err := w.entry(fd, entry.Name(), depth); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF || errors.Is(err, unix.ENOENT): // ENOENT: the directory was removed while it was read
			return nil
		case err != nil:
			return err
		}
	}
}

func (w *walk) entry(parent int, name string, depth int) error {
	if w.entries++; w.entries%stepEntries == 0 {
		if err := errors.Join(w.ctx.Err(), w.step(w.entries)); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Dev != w.device {
		return nil // it was removed meanwhile, or is the root of something mounted there
	}
	w.add(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || depth == maxDepth {
		return nil
	}
	fd, err := openDir(parent, name)
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if err != nil {
		return nil // removed, or something else by now
	}
	return w.dir(fd, name, depth+1)
}

func (w *walk) add(st *unix.Stat_t) {
	links := 1.0
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 { // a directory's count its subdirectories
		links = float64(st.Nlink)
	}
	w.bytes += 512 * float64(st.Blocks) / links
	w.inodes += 1 / links
}

func openDir(parent int, name string) (int, error) {
	for {
		fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
