package selinux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

const (
	// inside keeps every step in the volume, see openat2(2): no "..", no symlink, no other mount.
	inside = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV
	// batchEntries are handed on together. A directory of any size is read in such pieces.
	batchEntries = 256
	// aloneEntries are done by the first walker before others help: most volumes are that small.
	aloneEntries = 1000
	// maxDepth bounds the descriptors that one walker has open.
	maxDepth = 256
	// maxSwaps bounds how often one name may turn from a directory into something else and back while it is looked at.
	maxSwaps = 16
	// namesPerFile and moreNames bound the names that a walk follows, by the files that the file system has when it begins: who
	// makes files in the volume as fast as they are labelled would have it go on for good. Files may have several names, and
	// some may be made meanwhile.
	namesPerFile = 16
	moreNames    = 1_000_000
	// uncountedNames are followed where the file system doesn't say how many files it has, as btrfs.
	uncountedNames = 1 << 28
)

// namesIn is the bound for the volume with this top.
func namesIn(top *os.File) int64 {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(top.Fd()), &st); err != nil { // a policy may refuse it
		return uncountedNames
	}
	return namesOf(st.Files, st.Ffree)
}

// namesOf is the bound on a file system with room for so many files, of which so many are free. What it says may be nonsense.
func namesOf(files, free uint64) int64 {
	if free >= files || files-free > (math.MaxInt64-moreNames)/namesPerFile {
		return uncountedNames
	}
	return int64(files-free)*namesPerFile + moreNames
}

// walk is one Run under way. Each walker goes depth first; entries of a directory go to another walker that has nothing to
// do, if there is one, and are else done where they were read. So nobody waits for anybody, and what is open and in memory
// is bounded by depth and number of walkers, whatever the size of a directory.
type walk struct {
	*Relabel
	ctx  context.Context //nolint:containedctx // of this one Run
	fail context.CancelCauseFunc

	work    chan batch
	tasks   sync.WaitGroup // batches handed on and not done
	workers sync.WaitGroup // walkers but the first

	mu    sync.Mutex // mu guards spare.
	spare int        // walkers that may still be started
	many  atomic.Bool
}

// batch holds its directory open.
type batch struct {
	in      *directory
	entries []fs.DirEntry
}

// walker is one goroutine of a walk.
type walker struct {
	*walk
	helper bool // it has a thread of its own, of low priority
	buf    buffer
}

// help is a walker's life after the first.
func (w *walk) help(first batch) {
	defer w.workers.Done()
	_ = sys.OnThread(func() error {
		sys.Background()
		_ = sys.BackgroundIO() // without it the disk serves us as anybody
		k := &walker{walk: w, helper: true}
		k.finish(first)
		for b := range w.work {
			k.finish(b)
		}
		return nil
	})
}

func (k *walker) finish(b batch) {
	defer k.tasks.Done()
	if err := k.each(b); err != nil {
		k.fail(err)
	}
}

// handOn gives b to a walker that has nothing to do, and says whether there was one. The first walker leaves everything to
// the others once there is much: it has no low priority.
func (k *walker) handOn(b batch) bool {
	if !k.many.Load() {
		if k.seen.Load() < aloneEntries {
			return false
		}
		k.many.Store(true)
	}
	k.tasks.Add(1)
	select {
	case k.work <- b:
		return true
	default:
	}
	if k.start(b) {
		return true
	}
	if !k.helper {
		select {
		case k.work <- b:
			return true
		case <-k.ctx.Done():
		}
	}
	k.tasks.Done()
	return false
}

// start makes another walker for b, where there may be one more.
func (w *walk) start(b batch) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.spare == 0 {
		return false
	}
	w.spare--
	w.workers.Add(1)
	// Owner: Run, which waits; ends when work is closed, after the last batch.
	go w.help(b)
	return true
}

// list reads d to its end and sees to all that is in it. It takes d over.
func (k *walker) list(d *directory) error {
	defer d.leave()
	k.at.Store(d)
	for {
		if err := context.Cause(k.ctx); err != nil {
			return err
		}
		entries, err := d.file.ReadDir(batchEntries)
		if len(entries) > 0 {
			d.users.Add(1)
			b := batch{in: d, entries: entries}
			if !k.handOn(b) {
				if err := k.each(b); err != nil {
					return err
				}
			}
		}
		switch {
		case errors.Is(err, io.EOF) || gone(err):
			return nil
		case err != nil:
			return fmt.Errorf("list %s: %w", d.quoted(""), err)
		}
	}
}

// each sees to the entries of b, and leaves its directory.
func (k *walker) each(b batch) error {
	defer b.in.leave()
	for _, e := range b.entries {
		if err := context.Cause(k.ctx); err != nil {
			return err
		}
		if k.seen.Add(1) > k.maxNames {
			return fmt.Errorf("%w: there are more than %d names, too many for what the file system had, at %s", ErrTooMany, k.maxNames, b.in.quoted(""))
		}
		if err := k.entry(b.in, e); err != nil {
			return err
		}
	}
	return nil
}

// entry sees to one name. What kind it was when the directory was read says only what to try first.
func (k *walker) entry(d *directory, e fs.DirEntry) error {
	for tries, isDir := 0, e.IsDir(); tries < maxSwaps; tries, isDir = tries+1, !isDir {
		var again bool
		var err error
		if isDir {
			again, err = k.directory(d, e.Name())
		} else {
			again, err = k.file(d, e.Name())
		}
		if err != nil || !again {
			return err
		}
	}
	return fmt.Errorf("%s turns from a directory into something else and back all the time", d.quoted(e.Name()))
}

// directory labels a directory, before its entries: what is made in it from then on gets the right label by itself. It
// says whether name is something else by now.
func (k *walker) directory(d *directory, name string) (again bool, err error) {
	file, err := sys.OpenDirAt(d.file, name, inside)
	switch {
	case gone(err) || errors.Is(err, unix.EXDEV): // a mount of its own is no part of the volume
		return false, nil
	case errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("open directory %s: %w", d.quoted(name), err)
	}
	sub := newDirectory(d, name, file)
	if sub.depth > maxDepth {
		sub.leave()
		return false, fmt.Errorf("%w: more than %d directories in one another", ErrTooDeep, maxDepth)
	}
	if err := k.set(byFile{file}, &k.buf); err != nil {
		sub.leave()
		return false, fmt.Errorf("label %s: %w", d.quoted(name), err)
	}
	return false, k.list(sub)
}

// file labels what is no directory. Most files have one name, so that nothing but the volume's own is reached by it.
func (k *walker) file(d *directory, name string) (again bool, err error) {
	a := byName{d.file, name}
	have, err := readLabel(a, &k.buf)
	switch {
	case gone(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("label %s: %w", d.quoted(name), err)
	case k.right(have):
		return false, nil
	}
	var st unix.Stat_t
	err = unix.Fstatat(int(d.file.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	switch {
	case gone(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look at %s: %w", d.quoted(name), err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return true, nil
	case st.Nlink > 1:
		err = k.linked(d, name)
	default:
		err = k.replace(a, have, &k.buf)
	}
	if err != nil && !gone(err) {
		return false, fmt.Errorf("label %s: %w", d.quoted(name), err)
	}
	return false, nil
}

func (k *walker) linked(d *directory, name string) error {
	f, err := sys.Openat2(d.file, name, unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW, Resolve: inside})
	if err != nil {
		return err
	}
	defer f.Close()
	return k.setLinked(f, &k.buf)
}
