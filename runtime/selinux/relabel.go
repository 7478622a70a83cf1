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
	// ErrTooMany: there are more names than Relabel follows: files are made as fast as they are labelled.
	ErrTooMany = errors.New("files keep being added")
)

// attribute is where the kernel keeps a file's label, see xattr(7).
const attribute = "security.selinux"

// maxWorkers bounds the threads of one walk.
const maxWorkers = 8

// Relabel gives every file of one volume a label. Directories are read by descriptor and files labelled by their name in one,
// one step at a time: no symlink is followed, no other mount is entered, and whoever renames things in the volume meanwhile can make a
// file be missed or looked at twice, and nothing outside be changed. What has the label already is only read.
//
// A file that has more names than are found in the volume may be a file of the host's (a hard link). It keeps its label,
// unless that says that it is a container's already, or nobody's. That much a rename at the right moment can get around.
type Relabel struct {
	top   *os.File
	label string

	maxNames              int64 // 0 before Run has asked for it
	seen, changed, linked atomic.Int64
	at                    atomic.Pointer[directory]
	// stored is the label as the kernel spells it, from the first file that got it.
	stored atomic.Pointer[string]
	links  links
}

// NewRelabel is for the file or directory top of a volume, on a mount with no others below it, as the binds of runtime/mounts
// are: a file that is a mount's root could be labelled with those beside it, a directory is not. top may be open with
// O_PATH, stays the caller's and stays open until Run has returned.
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
		if r.maxNames == 0 {
			r.maxNames = namesIn(r.top)
		}
		if err := r.below(ctx); err != nil {
			return err
		}
	}
	r.linked.Store(r.links.left())
	r.seen.Add(1)
	if err := r.setTop(st.Mode); err != nil {
		return fmt.Errorf("label the top of the volume: %w", err)
	}
	return nil
}

// setTop labels the top, which may be a single file with other names.
func (r *Relabel) setTop(mode uint32) error {
	if mode&unix.S_IFMT == unix.S_IFDIR {
		return r.set(byPath{r.top}, new(buffer))
	}
	defer func() { r.linked.Store(r.links.left()) }()
	return r.setLinked(r.top, new(buffer))
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

// attributes are those of one file: by its name in a directory that is open, or by a descriptor.
type attributes interface {
	get(dest []byte) (int, error)
	set(value []byte) error
}

type byName struct {
	dir  *os.File
	name string
}

func (a byName) get(dest []byte) (int, error) { return sys.GetxattrAt(a.dir, a.name, attribute, dest) }
func (a byName) set(value []byte) error       { return sys.SetxattrAt(a.dir, a.name, attribute, value) }

// byPath is for a descriptor that was opened with O_PATH: there is no call for that, and its name in /proc leads to its
// inode whatever names that has.
type byPath struct{ *os.File }

func (a byPath) get(dest []byte) (int, error) {
	return unix.Getxattr(sys.FDPath(a.File), attribute, dest)
}
func (a byPath) set(value []byte) error {
	return unix.Setxattr(sys.FDPath(a.File), attribute, value, 0)
}

type byFile struct{ *os.File }

func (a byFile) get(dest []byte) (int, error) { return unix.Fgetxattr(int(a.Fd()), attribute, dest) }
func (a byFile) set(value []byte) error       { return unix.Fsetxattr(int(a.Fd()), attribute, value, 0) }

// set labels a file that has another label.
func (r *Relabel) set(a attributes, buf *buffer) error {
	have, err := readLabel(a, buf)
	if err != nil || r.right(have) {
		return err
	}
	return r.replace(a, have, buf)
}

// replace labels a file that has the label have.
func (r *Relabel) replace(a attributes, have []byte, buf *buffer) error {
	if err := labelError(a.set([]byte(r.label))); err != nil {
		return fmt.Errorf("set label %s (it has %q): %w", r.label, bytes.TrimSuffix(have, []byte{0}), err)
	}
	r.changed.Add(1)
	if r.stored.Load() == nil {
		if now, err := readLabel(a, buf); err == nil {
			stored := string(bytes.TrimSuffix(now, []byte{0}))
			r.stored.Store(&stored)
		}
	}
	return nil
}

// setLinked labels a file with several names, if it is one to label. f is open with O_PATH: what is looked at and what is
// labelled are one inode.
func (r *Relabel) setLinked(f *os.File, buf *buffer) error {
	have, err := readLabel(byPath{f}, buf)
	if err != nil || r.right(have) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Nlink > 1 && !r.ours(have) && !r.links.complete(inode{st.Dev, st.Ino}, uint64(st.Nlink)) {
		return nil
	}
	return r.replace(byPath{f}, have, buf)
}

// readLabel reads a label; none is empty.
func readLabel(a attributes, buf *buffer) ([]byte, error) {
	n, err := a.get(buf[:])
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

// links counts the names met of the files that have several.
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
