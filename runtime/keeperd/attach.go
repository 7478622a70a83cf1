package keeperd

import (
	"encoding/binary"
	"fmt"

	"github.com/podwright/podwright/runtime/keeperd/internal/anchor"
	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// attached is one client of a container's streams. It belongs to the logs loop and is never waited for: a piece of output
// that its pipe has no room for is the end of it, and input stays in its socket until the container takes it. Both are
// closed with this program: clients of a keeper that is replaced come again.
type attached struct {
	out     *output
	socket  int
	pipe    int
	stdin   int    // a duplicate of the container's; -1 without one, and after its end
	taken   int    // bytes of the first frame in the socket that the container has taken
	waiting bool   // for room in stdin
	last    byte   // the frame to end with, once there is one
	ended   func() // of its stdin, where that ends the container's
}

// attach is answered by the logs loop: output from the answer on is the client's.
func (k clients) attach(conn *conn, c *child, m *wire.Message, d *descriptors) error {
	state := func(why string) error {
		return &wire.Error{Code: wire.CodeState, Text: "child " + c.ID + " " + why}
	}
	switch {
	case c.state != running:
		return state("is not running")
	case c.out == nil:
		return state("has no streams that could be attached to")
	case m.Stdin && !c.Terminal && c.stdinWrite < 0:
		return state("has no stdin, or it was closed")
	case k.logs.clients.Load() >= wire.MaxAttached || c.out.clients.Load() >= wire.MaxAttachedOne:
		return &wire.Error{Code: wire.CodeLimit, Text: fmt.Sprintf("%d clients are attached to child %s, at most %d, and %d to all, at most %d",
			c.out.clients.Load(), c.ID, wire.MaxAttachedOne, k.logs.clients.Load(), wire.MaxAttached)}
	case d.get(wire.RoleSocket) < 0 || d.get(wire.RoleOutput) < 0:
		return fmt.Errorf("attach without a socket and a pipe: %w", wire.ErrMalformed)
	}
	a := &attached{out: c.out, stdin: -1}
	if m.Stdin && !c.Terminal {
		if c.StdinOnce {
			if err := k.takeStdin(c); err != nil {
				return err
			}
			a.ended = func() { k.post(func() { k.children().closeStdin(c) }) }
		}
		var err error
		if a.stdin, err = duplicate(c.stdinWrite); err != nil {
			return err
		}
	}
	a.socket, a.pipe = d.take(wire.RoleSocket), d.take(wire.RoleOutput)
	k.logs.clients.Add(1)
	c.out.clients.Add(1)
	answer := &wire.Message{Seq: m.Seq, Op: m.Op, ID: m.ID}
	k.logs.post(func() {
		if err := k.logs.attach(a, m.Stdin && c.Terminal); err != nil {
			answer.Error = failure(err)
			k.logs.detach(a)
		}
		k.post(func() { k.clients().send(conn, answer) })
	})
	return nil
}

// takeStdin notes that the one client came whose end is that of stdin, for a keeper that doesn't see it leave.
func (k clients) takeStdin(c *child) error {
	if c.StdinTaken {
		return nil
	}
	taken := c.Child
	taken.StdinTaken = true
	if err := anchor.Write(wire.ChildrenDir+"/"+c.ID, &taken); err != nil {
		return err
	}
	c.StdinTaken = true
	return nil
}

// duplicate is for writing without waiting. That holds for every duplicate, and only the keeper writes.
func duplicate(from int) (int, error) {
	fd, err := unix.FcntlInt(uintptr(from), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, fmt.Errorf("duplicate stdin: %w", err)
	}
	return fd, unix.SetNonblock(fd, true)
}

// attach lets a client in; its end is detach's, however this ends.
func (l *logs) attach(a *attached, typing bool) (err error) {
	a.out.attached[a] = struct{}{}
	if typing {
		fd := a.out.console()
		if fd < 0 {
			return &wire.Error{Code: wire.CodeState, Text: "the terminal of child " + a.out.id + " was closed"}
		}
		if a.stdin, err = duplicate(fd); err != nil {
			return err
		}
	}
	return l.watch(a.socket, unix.EPOLLIN, func() { l.hear(a) })
}

// console is the terminal's master, -1 without one.
func (o *output) console() int {
	for _, s := range o.streams {
		if s.terminal {
			return s.fd
		}
	}
	return -1
}

// tee gives every client what was read. Those that have no room are let go: neither the container nor its log waits.
func (l *logs) tee(o *output, kind byte, text []byte) {
	for a := range o.attached {
		for rest := text; len(rest) > 0 && a.last == 0; {
			n := min(len(rest), wire.OutputBytes)
			if a.send(kind, rest[:n]) != nil {
				l.finish(a, wire.FrameDropped)
			}
			rest = rest[n:]
		}
	}
}

// send writes all of a frame or nothing.
func (a *attached) send(kind byte, text []byte) error {
	_, err := unix.Writev(a.pipe, [][]byte{{kind, byte(len(text) >> 8), byte(len(text))}, text})
	return err
}

// finish sends a client its last frame, as soon as there is room, and lets go of it.
func (l *logs) finish(a *attached, last byte) {
	if a.last == 0 {
		a.last = last
		l.endStdin(a)
	}
	if a.send(a.last, nil) != unix.EAGAIN || l.watch(a.pipe, unix.EPOLLOUT, func() { l.finish(a, last) }) != nil {
		l.detach(a)
	}
}

// detach is the end of a client, which may have left by itself.
func (l *logs) detach(a *attached) {
	if _, in := a.out.attached[a]; !in {
		return
	}
	l.endStdin(a)
	for _, fd := range []int{a.socket, a.pipe} {
		l.unwatch(fd)
		unix.Close(fd)
	}
	delete(a.out.attached, a)
	a.out.clients.Add(-1)
	l.clients.Add(-1)
}

func (l *logs) finishAll(o *output) {
	for a := range o.attached {
		l.finish(a, wire.FrameEnd)
	}
}

// hear handles the first frame in a client's socket, which stays there until the container has taken all of it.
func (l *logs) hear(a *attached) {
	n, _, err := unix.Recvfrom(a.socket, l.frame[:], unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT)
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if err != nil || n == 0 || n > len(l.frame) {
		l.detach(a)
		return
	}
	switch payload := l.frame[1:n]; l.frame[0] {
	case wire.FrameStdin:
		if !l.feed(a, payload) {
			return
		}
	case wire.FrameStdinEnd:
		l.endStdin(a)
	case wire.FrameResize:
		a.out.resize(payload)
	}
	unix.Recvfrom(a.socket, l.frame[:1], unix.MSG_DONTWAIT)
}

// feed writes what the container takes of a frame, and says whether that was all. What nobody will read any more is
// taken all the same (EPIPE; EIO of a terminal): sizes come behind it.
func (l *logs) feed(a *attached, payload []byte) (done bool) {
	if a.stdin >= 0 {
		n, err := unix.Write(a.stdin, payload[a.taken:])
		a.taken += max(n, 0)
		if (err == nil || err == unix.EAGAIN || err == unix.EINTR) && a.taken < len(payload) {
			l.await(a, true)
			return false
		}
	}
	a.taken = 0
	l.await(a, false)
	return true
}

// await waits for room in stdin, or for the next frame. Of a socket that isn't read only the peer's end is told then, and
// what is still in it is nobody's.
func (l *logs) await(a *attached, room bool) {
	if a.waiting == room {
		return
	}
	a.waiting = room
	var err error
	if room {
		if err = l.watch(a.stdin, unix.EPOLLOUT, func() { l.hear(a) }); err == nil {
			err = l.watch(a.socket, 0, func() { l.detach(a) })
		}
	} else {
		l.unwatch(a.stdin)
		err = l.watch(a.socket, unix.EPOLLIN, func() { l.hear(a) })
	}
	if err != nil {
		l.log.Error("Client is not heard", "containerID", a.out.id, "err", err)
	}
}

// endStdin lets go of a client's part in the container's stdin.
func (l *logs) endStdin(a *attached) {
	if a.stdin < 0 {
		return
	}
	a.taken = 0
	l.await(a, false)
	unix.Close(a.stdin)
	a.stdin = -1
	if a.ended != nil {
		a.ended()
	}
}

func (l *logs) closeStdin(o *output) {
	for a := range o.attached {
		l.endStdin(a)
	}
}

func (o *output) resize(payload []byte) {
	if fd := o.console(); fd >= 0 && len(payload) == 4 {
		unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{
			Col: binary.BigEndian.Uint16(payload), Row: binary.BigEndian.Uint16(payload[2:]),
		})
	}
}
