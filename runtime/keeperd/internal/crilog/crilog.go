// Package crilog turns the output of containers into the lines of CRI log files. It owns the format, the lines not
// yet ended, and the log file's descriptor; it opens and renames nothing, has no goroutine and no clock of its own
// thread: whoever polls the descriptors calls Pump, one caller at a time.
// Source: CRI log format (Kubernetes' design-proposals/node/kubelet-cri-logging.md); BEHAVIOURS B35-B40.
package crilog

import (
	"bytes"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// readBytes is the default capacity of a pipe: one read takes what a full one holds.
	readBytes = 64 << 10
	// lineBytes is where a longer line is cut into 'P' chunks, as the field does.
	lineBytes = 16 << 10
	// writeBytes is when the lines of a batch are written before the batch is through: a batch of one-byte
	// lines becomes twenty times its size.
	writeBytes = 256 << 10
)

// Buffers are shared by all streams that one goroutine pumps, so memory doesn't grow with containers.
type Buffers struct {
	in  [lineBytes + readBytes]byte
	out []byte
	now func() time.Time
}

// NewBuffers allocates them once.
func NewBuffers() *Buffers {
	return &Buffers{out: make([]byte, 0, writeBytes+lineBytes+128), now: time.Now}
}

// Stream is one output of a container. Its unfinished last line is kept, at most lineBytes.
type Stream struct {
	Name  string           // "stdout" or "stderr"
	Tee   func(raw []byte) // is given what each Pump read, before its lines are written; nil: nobody is
	log   *File
	tty   bool
	carry []byte
}

// NewStream makes the stream name ("stdout", "stderr") of log. A terminal's lines end in \r\n.
func NewStream(log *File, name string, tty bool) *Stream {
	return &Stream{Name: name, log: log, tty: tty}
}

// Pump reads once, at most 64 KiB, and writes the lines that are complete: bounded work, so that a loud container
// doesn't starve the others. It gives the number of bytes read; eof says that nothing will follow, and
// err, EAGAIN among others, why nothing was read.
func (s *Stream) Pump(fd int, b *Buffers) (n int, eof bool, err error) {
	n, err = unix.Read(fd, b.in[len(s.carry):len(s.carry)+readBytes])
	switch {
	case err == unix.EINTR || err == unix.EAGAIN:
		return 0, false, unix.EAGAIN
	case err != nil || n == 0: // EIO is how a terminal says that its last slave was closed
		s.Flush(b)
		return 0, true, err
	}
	if s.Tee != nil {
		s.Tee(b.in[len(s.carry) : len(s.carry)+n])
	}
	copy(b.in[:], s.carry)
	rest := b.in[:len(s.carry)+n]
	w := s.begin(b)
	for scanned := len(s.carry); ; scanned = 0 {
		end := bytes.IndexByte(rest[scanned:], '\n')
		if end < 0 {
			break
		}
		end += scanned
		w.line(w.cut(rest[:end]), 'F')
		rest = rest[end+1:]
	}
	s.keep(w.cut(rest))
	w.flush()
	return n, false, nil
}

// Flush writes the unfinished line as a 'P' chunk, to which a reader joins what comes later, if anything does.
func (s *Stream) Flush(b *Buffers) {
	if len(s.carry) > 0 {
		w := s.begin(b)
		w.line(s.carry, 'P')
		w.flush()
		s.keep(nil)
	}
}

func (s *Stream) keep(rest []byte) {
	if len(rest) == 0 {
		s.carry = nil // most lines end with their write: an idle stream holds no memory
		return
	}
	s.carry = append(s.carry[:0], rest...)
}

// batch formats the lines of one read: they share its timestamp.
type batch struct {
	s      *Stream
	b      *Buffers
	prefix []byte
	space  [64]byte
	lines  uint64
}

func (s *Stream) begin(b *Buffers) *batch {
	w := &batch{s: s, b: b}
	w.prefix = b.now().UTC().AppendFormat(w.space[:0], time.RFC3339Nano)
	w.prefix = append(append(append(w.prefix, ' '), s.Name...), " P "...)
	return w
}

// cut writes the chunks that line is too long for, and gives the rest.
func (w *batch) cut(line []byte) []byte {
	for len(line) > lineBytes {
		w.line(line[:lineBytes], 'P')
		line = line[lineBytes:]
	}
	return line
}

func (w *batch) line(text []byte, tag byte) {
	if n := len(text); w.s.tty && tag == 'F' && n > 0 && text[n-1] == '\r' {
		text = text[:n-1]
	}
	w.prefix[len(w.prefix)-2] = tag
	w.b.out = append(append(append(w.b.out, w.prefix...), text...), '\n')
	w.lines++
	if len(w.b.out) >= writeBytes {
		w.flush()
	}
}

func (w *batch) flush() {
	if w.lines > 0 {
		w.s.log.write(w.b.out, w.lines)
	}
	w.b.out, w.lines = w.b.out[:0], 0
}

// File is a log file, shared by a container's streams. Without one (fd -1) the output is read and dropped.
type File struct {
	fd   int
	torn bool // the last line was cut off by a full disk
	// Lost counts the lines that could not be written, since the container began.
	Lost uint64
	// Failing is why lines are being lost at present, nil when they are not.
	Failing error
}

// NewFile takes ownership of fd and makes it append: it is shared by two streams, and may be rotated by truncation.
func NewFile(fd int) *File {
	if fd >= 0 {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil && flags&unix.O_APPEND == 0 {
			unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_APPEND)
		}
	}
	return &File{fd: fd}
}

// Fd is the file's descriptor, which stays the File's; -1 without a log.
func (f *File) Fd() int { return f.fd }

// Reopen goes on in fd, of which it takes ownership. Everything before is in the old file, everything after in the
// new one: callers are between two Pumps.
func (f *File) Reopen(fd int) {
	f.Close()
	*f = File{fd: NewFile(fd).fd, Lost: f.Lost}
}

// Close closes the file; what is written afterwards is dropped.
func (f *File) Close() {
	if f.fd >= 0 {
		unix.Close(f.fd)
	}
	f.fd = -1
}

// write appends whole lines. A container never blocks on a full disk: what can't be written is counted and gone,
// and a line that was cut off is ended before the next one that fits.
func (f *File) write(lines []byte, count uint64) {
	if f.fd < 0 {
		return
	}
	if f.torn && !f.newline() {
		f.Lost += count
		return
	}
	for done := 0; done < len(lines); {
		n, err := unix.Write(f.fd, lines[done:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			f.Failing = err
			f.torn = done > 0 && lines[done-1] != '\n'
			f.Lost += uint64(bytes.Count(lines[done:], []byte{'\n'}))
			return
		}
		done += n
	}
	f.Failing = nil
}

func (f *File) newline() bool {
	_, err := unix.Write(f.fd, []byte{'\n'})
	f.torn = err != nil
	return err == nil
}
