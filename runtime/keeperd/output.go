package keeperd

import (
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/podwright/podwright/runtime/keeperd/internal/crilog"
	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// logs is the loop that reads the output of all containers and writes their log files. Shared buffers, no goroutine
// per container; each ready stream gets one read of at most 64 KiB in turn. A disk that hangs in write(2) holds
// up this loop and so every container whose pipe is full, but no start and no exit.
type logs struct {
	*loop
	log     *slog.Logger
	buffers *crilog.Buffers
	outputs map[string]*output
	clients atomic.Int32 // attached to all; counted when the control loop lets one in
	frame   [1 + wire.InputBytes]byte
}

// output is what one child writes. After add only the logs loop touches it, but for lost.
type output struct {
	id      string
	file    *crilog.File
	streams []*stream
	failing bool          // what was logged last about the file
	lost    atomic.Uint64 // lines, for List
	settled func()        // set while draining

	attached map[*attached]struct{}
	clients  atomic.Int32 // attached, as logs counts them
}

type stream struct {
	*crilog.Stream
	fd       int // -1 after the end
	terminal bool
	quota    int // while draining: bytes the process wrote before it ended, at most
}

func (s *stream) role() wire.Role {
	switch {
	case s.terminal:
		return wire.RoleConsole
	case s.Name == "stderr":
		return wire.RoleStderrRead
	}
	return wire.RoleStdoutRead
}

func newOutput(id string, logFd int) *output {
	return &output{id: id, file: crilog.NewFile(logFd), attached: map[*attached]struct{}{}}
}

// read adds a descriptor to read, which the output owns from then on; a negative one is none.
func (o *output) read(fd int, name string, terminal bool) {
	if fd >= 0 {
		unix.SetNonblock(fd, true)
		o.streams = append(o.streams, &stream{Stream: crilog.NewStream(o.file, name, terminal), fd: fd, terminal: terminal})
	}
}

func (l *logs) mend(o *output) {
	streams := make([]*crilog.Stream, len(o.streams))
	for i, s := range o.streams {
		streams[i] = s.Stream
	}
	o.file.Mend(l.buffers, streams...)
}

func (l *logs) add(o *output) {
	l.outputs[o.id] = o
	for _, s := range o.streams {
		kind := byte(wire.FrameStdout)
		if s.Name == "stderr" {
			kind = wire.FrameStderr
		}
		s.Tee = func(text []byte) { l.tee(o, kind, text) }
		if err := l.watch(s.fd, unix.EPOLLIN, func() { l.pump(o, s) }); err != nil {
			l.log.Error("Output is not read", "containerID", o.id, "err", err)
		}
	}
}

// pump does one read's worth of work.
func (l *logs) pump(o *output, s *stream) (progress bool) {
	if s.fd < 0 {
		return false
	}
	n, end, err := s.Pump(s.fd, l.buffers)
	if s.quota -= n; end {
		if err != nil && !(s.terminal && err == unix.EIO) {
			l.log.Error("Output ended with an error", "containerID", o.id, "err", err)
		}
		l.end(s)
	}
	l.report(o)
	if o.settled != nil {
		l.settle(o)
	}
	return n > 0
}

func (l *logs) end(s *stream) {
	if s.fd >= 0 {
		l.unwatch(s.fd)
		unix.Close(s.fd)
		s.fd = -1
	}
}

// report logs when lines begin and cease to be lost, not each of them.
func (l *logs) report(o *output) {
	if lost := o.file.Lost; lost != o.lost.Load() {
		o.lost.Store(lost)
	}
	if failing := o.file.Failing != nil; failing != o.failing {
		o.failing = failing
		if failing {
			l.log.Error("Log lines are being lost", "containerID", o.id, "err", o.file.Failing)
		} else {
			l.log.Info("Log is written again", "containerID", o.id, "lostLines", o.file.Lost)
		}
	}
}

// drain calls done, once and on this loop, when everything that the process wrote is in the log. What is in a pipe
// at its end is its last words; a process that inherited the pipe may go on for ever, so no end of file is
// waited for. A terminal's last words are still on their way when its process ends, but then EIO follows,
// unless another process has it open; the caller has a deadline for that.
func (l *logs) drain(o *output, done func()) {
	for _, s := range o.streams {
		if s.fd >= 0 {
			s.quota, _ = unix.IoctlGetInt(s.fd, unix.TIOCINQ)
		}
	}
	o.settled = done
	for _, s := range o.streams {
		for !s.terminal && s.quota > 0 && l.pump(o, s) {
		}
		s.quota = 0
	}
	l.settle(o)
}

func (l *logs) settle(o *output) {
	for _, s := range o.streams {
		if s.fd >= 0 && (s.terminal || s.quota > 0) {
			return
		}
	}
	for _, s := range o.streams {
		s.Flush(l.buffers)
	}
	l.finishAll(o)
	if done := o.settled; done != nil {
		o.settled = nil
		done()
	}
}

// flush ends unfinished lines with a 'P' chunk, to which a reader joins what the next keeper reads.
func (l *logs) flush() {
	for _, o := range l.outputs {
		for _, s := range o.streams {
			s.Flush(l.buffers)
		}
	}
}

func (l *logs) close(o *output) {
	for _, s := range o.streams {
		l.end(s)
		s.Flush(l.buffers)
	}
	l.finishAll(o)
	o.file.Close()
	delete(l.outputs, o.id)
}

// drainGrace bounds how long the news of an exit waits for its output: for a log disk that hangs, or a terminal
// that somebody else has open.
const drainGrace = 2 * time.Second
