package podsandbox

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// execOutput collects what a command writes.
type execOutput struct {
	stdout, stderr capture
	wait           sync.WaitGroup
	left           atomic.Int64  // bytes both together may still keep
	pool           *atomic.Int64 // bytes that all commands keep beyond freeOutput each
	taken          atomic.Int64  // of pool
	uid, gid       int           // who may reopen the streams by name
}

// keep says how many of n bytes just read are kept; the rest is dropped.
func (o *execOutput) keep(n int) int64 {
	before := o.left.Add(int64(-n)) + int64(n)
	keep := min(int64(n), max(before, 0))
	if maxExecOutput-before < freeOutput || keep == 0 {
		return keep
	}
	if o.pool.Add(keep) > execPool {
		o.pool.Add(-keep)
		o.left.Store(0) // what follows would come after a gap
		return 0
	}
	o.taken.Add(keep)
	return keep
}

type capture struct {
	pipe  *os.File
	kept  []byte
	ended bool // the reader saw end of file
}

// open makes the command's streams: an empty stdin, and pipes that are read here.
func (o *execOutput) open() (*streams, error) {
	o.left.Store(maxExecOutput)
	s := &streams{}
	var err error
	if s.stdin, err = os.OpenFile(os.DevNull, os.O_RDONLY, 0); err != nil {
		return nil, err
	}
	if o.stdout.pipe, s.stdout, err = outputPipe(o.uid, o.gid); err == nil {
		o.stderr.pipe, s.stderr, err = outputPipe(o.uid, o.gid)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// outputPipe makes a pipe whose read end is ours.
func outputPipe(uid, gid int) (read, write *os.File, err error) {
	fds, err := pipe(0, uid, gid)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "exec output"), os.NewFile(uintptr(fds[1]), "exec output"), nil
}

// pipe makes a pipe with one end that is ours, which the runtime polls; the other blocks, as a command expects. It
// belongs to the command's user, who may open it again as /dev/stdout.
func pipe(ours, uid, gid int) (fds [2]int, err error) {
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return fds, os.NewSyscallError("pipe2", err)
	}
	err = os.NewSyscallError("fchown", unix.Fchown(fds[0], uid, gid))
	if err == nil {
		err = os.NewSyscallError("fcntl", unix.SetNonblock(fds[ours], true))
	}
	if err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
	}
	return fds, err
}

// close lets go of pipes and pool; the readers end by it.
func (o *execOutput) close() {
	for _, f := range []*os.File{o.stdout.pipe, o.stderr.pipe} {
		if f != nil {
			f.Close()
		}
	}
	o.wait.Wait()
	o.pool.Add(-o.taken.Load())
}

func (o *execOutput) start() {
	for _, c := range []*capture{&o.stdout, &o.stderr} {
		o.wait.Add(1)
		// Owner: execSync; ends at end of file, at finish's deadline or when the pipe is closed; finish waits.
		go o.read(c)
	}
}

func (o *execOutput) read(c *capture) {
	defer o.wait.Done()
	buf := make([]byte, 4<<10) // a pipe's page: most commands say little, and probes are many
	for {
		n, err := c.pipe.Read(buf)
		if n > 0 {
			c.kept = append(c.kept, buf[:o.keep(n)]...)
		}
		if err != nil {
			c.ended = errors.Is(err, io.EOF)
			return
		}
	}
}

// finish waits for the end of both pipes, or, where a background process still holds one, for drainGrace.
func (o *execOutput) finish() (stdout, stderr []byte) {
	deadline := time.Now().Add(drainGrace)
	o.stdout.pipe.SetReadDeadline(deadline)
	o.stderr.pipe.SetReadDeadline(deadline)
	o.wait.Wait()
	o.rest(&o.stdout)
	o.rest(&o.stderr)
	return o.stdout.kept, o.stderr.kept
}

// maxLastWords is how much of what a failed init wrote goes into the error.
const maxLastWords = 512

// lastWords is what a start that failed left on stderr: init itself writes there only when Go's runtime ends it.
func (o *execOutput) lastWords() string {
	o.rest(&o.stderr)
	return string(o.stderr.kept[:min(len(o.stderr.kept), maxLastWords)])
}

// rest takes what is in the pipe already: the command wrote it before it ended, however busy this machine is.
func (o *execOutput) rest(c *capture) {
	if c.ended {
		return
	}
	raw, err := c.pipe.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 64<<10)
	raw.Control(func(fd uintptr) {
		for total := 0; total < maxExecOutput; {
			n, err := unix.Read(int(fd), buf)
			if n <= 0 || err != nil {
				return
			}
			total += n
			c.kept = append(c.kept, buf[:o.keep(n)]...)
		}
	})
}
