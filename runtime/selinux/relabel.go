package selinux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

var (
	// ErrNoLabels: the file system keeps no label per file. Its mount gives all of them one.
	ErrNoLabels = errors.New("the file system keeps no labels")
	// ErrReadOnly: a file on a read-only file system has another label.
	ErrReadOnly = errors.New("read-only file system")
	// ErrTooDeep: directories are nested deeper than Relabel follows.
	ErrTooDeep = errors.New("nested too deep")
)

// attribute is where the kernel keeps a file's label, see xattr(7).
const attribute = "security.selinux"

// maxWorkers bounds the threads of one walk.
const maxWorkers = 8

// Relabel gives every file of one volume a label. Directories are read and files labelled by descriptor, one name at a
// time: no symlink is followed, no other mount is entered, and whoever renames things in the volume meanwhile can make a
// file be missed or looked at twice, and nothing outside be changed. What has the label already is only read.
//
// A file that has more names than are found in the volume may be a file of the host's (a hard link). It keeps its label,
// unless that says that it is a container's already, or nobody's.
type Relabel struct {
	top   *os.File
	label string

	seen, changed, linked atomic.Int64
	at                    atomic.Pointer[directory]
	// stored is the label as the kernel spells it, from the first file that got it.
	stored atomic.Pointer[string]
	links  links
}

// NewRelabel is for the file or directory top, open with O_PATH or otherwise, which stays the caller's and stays open
// until Run has returned.
func NewRelabel(top *os.File, label string) *Relabel {
	return &Relabel{top: top, label: label, links: links{met: map[inode]uint64{}}}
}

// Progress is how far a Relabel is.
type Progress struct {
	Seen    int64  // files, directories among them
	Changed int64  // those that had another label
	Linked  int64  // those that kept theirs, for their other names; known at the end
	Dir     string // where it is, below the top; the names are the volume's choice, and quoted
}

// Progress can be asked at any time.
func (r *Relabel) Progress() Progress {
	return Progress{Seen: r.seen.Load(), Changed: r.changed.Load(), Linked: r.linked.Load(), Dir: r.at.Load().quoted("")}
}

// Run labels everything once, with several threads of low priority where there is much of it, the top last: who finds the
// label there may take it for complete. It returns at the first error, or soon after ctx has ended; what is labelled by
// then stays so, and the next Run only reads it. A file system that doesn't answer can hold it up beyond ctx.
func (r *Relabel) Run(ctx context.Context) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(r.top.Fd()), &st); err != nil {
		return fmt.Errorf("look at volume: %w", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := r.below(ctx); err != nil {
			return err
		}
	}
	r.linked.Store(r.links.left())
	r.seen.Add(1)
	if err := r.set(r.top, new(buffer)); err != nil {
		return fmt.Errorf("label the top of the volume: %w", err)
	}
	return nil
}

// below does everything but the top.
func (r *Relabel) below(ctx context.Context) error {
	file, err := sys.OpenDirAt(r.top, ".", inside)
	if err != nil {
		return err
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	w := &walk{Relabel: r, ctx: ctx, fail: fail, work: make(chan batch), spare: min(runtime.GOMAXPROCS(0), maxWorkers)}
	first := &walker{walk: w}
	if err := first.list(newDirectory(nil, "", file)); err != nil {
		fail(err)
	}
	w.tasks.Wait()
	close(w.work)
	w.workers.Wait()
	return context.Cause(ctx)
}

// buffer holds a label that was read. Longer ones are none of ours.
type buffer [1024]byte

// right says whether a label that was read is the one to set. The kernel ends what it gives with a zero byte.
func (r *Relabel) right(have []byte) bool {
	have = bytes.TrimSuffix(have, []byte{0})
	if string(have) == r.label {
		return true
	}
	stored := r.stored.Load()
	return stored != nil && string(have) == *stored
}

// set labels the inode behind f, where it has another label. There is no call for a descriptor that was opened with
// O_PATH; its name in /proc leads to that inode whatever its names have become.
func (r *Relabel) set(f *os.File, buf *buffer) error {
	at := sys.FDPath(f)
	have, err := labelAt(unix.Getxattr, at, buf)
	if err != nil {
		return err
	}
	if r.right(have) {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 && !r.ours(have) && !r.links.complete(inode{st.Dev, st.Ino}, uint64(st.Nlink)) {
		return nil
	}
	if err := labelError(unix.Setxattr(at, attribute, []byte(r.label), 0)); err != nil {
		return fmt.Errorf("set label %s (it has %q): %w", r.label, bytes.TrimSuffix(have, []byte{0}), err)
	}
	r.changed.Add(1)
	if r.stored.Load() == nil {
		if have, err = labelAt(unix.Getxattr, at, buf); err == nil {
			stored := string(bytes.TrimSuffix(have, []byte{0}))
			r.stored.Store(&stored)
		}
	}
	return nil
}

// labelAt reads a label; none is empty.
func labelAt(get func(path, attr string, dest []byte) (int, error), path string, buf *buffer) ([]byte, error) {
	n, err := get(path, attribute, buf[:])
	switch {
	case err == nil:
		return buf[:n], nil
	case errors.Is(err, unix.ENODATA):
		return nil, nil
	case errors.Is(err, unix.ERANGE):
		return []byte("?:?:?:longer than any of ours"), nil
	}
	return nil, fmt.Errorf("read label: %w", labelError(err))
}

func labelError(err error) error {
	switch {
	case errors.Is(err, unix.ENOTSUP):
		return ErrNoLabels
	case errors.Is(err, unix.EROFS):
		return ErrReadOnly
	}
	return err
}

// ours says whether a label may be replaced whatever other names its file has: it is of the very type that is to be set, so
// the file is a container's, or says that the file was never labelled.
func (r *Relabel) ours(have []byte) bool {
	if len(have) == 0 {
		return true
	}
	switch typeOf(string(bytes.TrimSuffix(have, []byte{0}))) {
	case "unlabeled_t", "file_t", typeOf(r.label):
		return true
	}
	return false
}

// typeOf is the third part of user:role:type:level.
func typeOf(label string) string {
	if parts := strings.SplitN(label, ":", 4); len(parts) >= 3 {
		return parts[2]
	}
	return ""
}

type inode struct{ dev, ino uint64 }

// maxLinks bounds the memory for files with several names. Beyond it they count as the host's.
const maxLinks = 1 << 18

// links counts the names met of the files that have several. Somebody who renames such a name during the walk can have it
// counted twice.
type links struct {
	mu   sync.Mutex // mu guards what follows.
	met  map[inode]uint64
	over int64
}

// complete counts a name, and says whether it is the last of all.
func (l *links) complete(file inode, all uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, known := l.met[file]
	switch {
	case n+1 >= all:
		delete(l.met, file)
		return true
	case !known && len(l.met) == maxLinks:
		l.over++
	default:
		l.met[file] = n + 1
	}
	return false
}

func (l *links) left() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.met)) + l.over
}

// directory is one that is open, for as long as batches of its entries are under way.
type directory struct {
	parent *directory
	name   string
	depth  int
	file   *os.File
	users  atomic.Int32
}

// newDirectory takes ownership of file; the last leave closes it.
func newDirectory(parent *directory, name string, file *os.File) *directory {
	d := &directory{parent: parent, name: name, file: file}
	if parent != nil {
		d.depth = parent.depth + 1
	}
	d.users.Store(1)
	return d
}

func (d *directory) leave() {
	if d.users.Add(-1) == 0 {
		d.file.Close()
	}
}

// quoted is the path of name in d, below the top, fit for a terminal and for UTF-8.
func (d *directory) quoted(name string) string {
	if d == nil {
		return ""
	}
	parts := []string{name}
	for ; d.parent != nil; d = d.parent {
		parts = append([]string{d.name}, parts...)
	}
	return strconv.Quote(strings.TrimSuffix(strings.Join(parts, "/"), "/"))
}

// gone says whether a name, or what it named, is no longer there.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESTALE) }
