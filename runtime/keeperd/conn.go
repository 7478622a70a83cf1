package keeperd

import (
	"errors"
	"fmt"
	"io"

	"github.com/podwright/podwright/runtime/keeperd/internal/anchor"
	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// conn is one client. It is never waited for: what it doesn't take is queued up to a bound, then it is dropped and
// may come again and ask for what it missed.
type conn struct {
	fd      int
	greeted bool
	armed   bool // for writing, too
	inbox   wire.Inbox
	out     []wire.Packet
	bytes   int // in out
}

const maxQueuedBytes = 8 << 20

func (k clients) accept() {
	fd, _, err := unix.Accept4(wire.ListenerFd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		if err != unix.EAGAIN && err != unix.EINTR && err != unix.ECONNABORTED {
			k.log.Error("Client was not accepted", "err", err)
		}
		return
	}
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || peer.Uid != 0 {
		k.log.Error("Client was refused: only root may speak to the keeper", "peer", peer, "err", err)
		unix.Close(fd)
		return
	}
	k.addConn(fd)
}

func (k clients) addConn(fd int) *conn {
	c := &conn{fd: fd}
	k.conns[c] = struct{}{}
	k.watchConn(c, 0)
	return c
}

func (k clients) dropConn(c *conn) {
	if c.fd >= 0 {
		k.unwatch(c.fd)
		unix.Close(c.fd)
		c.fd = -1
		c.inbox.Drop()
		delete(k.conns, c)
		k.endUnreachable()
	}
}

// endUnreachable ends a keeper that nobody can reach any more, its run directory having been removed, once nothing
// runs that it would have to watch.
func (k clients) endUnreachable() {
	var st unix.Stat_t
	if len(k.conns) > 0 || k.inFlight > 0 || unix.Fstat(wire.RunDirFd, &st) != nil || st.Nlink > 0 {
		return
	}
	for _, c := range k.table {
		if c.state != exited {
			return
		}
	}
	k.log.Info("Ending: the run directory is gone")
	k.tellAnchor(&wire.Message{Op: wire.OpQuit})
	k.stop()
}

// serveConn handles one packet, and writes what is queued.
func (k clients) serveConn(c *conn) {
	if c.fd < 0 {
		return
	}
	k.flush(c)
	if c.fd < 0 || k.upgrades().paused() {
		return
	}
	m, fds, err := c.inbox.Receive(c.fd, &k.scratch, unix.MSG_DONTWAIT)
	switch {
	case errors.Is(err, unix.EAGAIN):
	case err != nil:
		if !errors.Is(err, io.EOF) {
			k.log.Error("Client was disconnected", "err", err)
		}
		k.dropConn(c)
	case m != nil:
		d := &descriptors{roles: m.Roles, fds: fds}
		k.handle(c, m, d)
		d.close()
	}
}

// send queues a message for a client; without room for one with descriptors, which can't wait, it is dropped.
func (k clients) send(c *conn, m *wire.Message, fds ...int) {
	if c == nil || c.fd < 0 {
		return
	}
	packets, err := wire.Pack(m, fds)
	if err != nil {
		k.log.Error("Message was not sent", "containerID", m.ID, "err", err)
		return
	}
	for _, p := range packets {
		c.bytes += len(p.Bytes)
	}
	c.out = append(c.out, packets...)
	k.flush(c)
	if c.bytes > maxQueuedBytes || len(fds) > 0 && len(c.out) > 0 {
		k.log.Error("Client was dropped: it doesn't read", "queuedBytes", c.bytes)
		k.dropConn(c)
	}
}

func (k clients) flush(c *conn) {
	for len(c.out) > 0 {
		err := c.out[0].Send(c.fd, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			k.watchConn(c, unix.EPOLLOUT)
			return
		}
		if err != nil {
			k.dropConn(c)
			return
		}
		c.bytes -= len(c.out[0].Bytes)
		c.out = c.out[1:]
	}
	if c.out = nil; c.armed && k.handlers[c.fd] != nil {
		k.watchConn(c, 0)
	}
}

func (k clients) watchConn(c *conn, more uint32) {
	if c.armed = more != 0; !k.upgrades().paused() {
		more |= unix.EPOLLIN
	}
	if err := k.watch(c.fd, more, func() { k.serveConn(c) }); err != nil {
		k.log.Error("Client is not watched", "err", err)
		k.dropConn(c)
	}
}

// handle answers a request, at once but for a launch, a client to attach and an upgrade.
func (k clients) handle(c *conn, m *wire.Message, d *descriptors) {
	answer := &wire.Message{Seq: m.Seq, Op: m.Op, ID: m.ID}
	var err error
	switch m.Op {
	case wire.OpHello:
		c.greeted = true
		answer.Hello = &wire.Hello{KeeperPID: unix.Getpid(), AnchorPID: unix.Getppid(), Build: k.build}
	case wire.OpList:
		answer.Children = k.list()
	case wire.OpShutdown:
		k.upgrades().shutdown(c, answer)
		return
	case wire.OpUpgrade:
		if err = k.upgrades().beginUpgrade(c, m.Seq, d); err == nil {
			return
		}
	default:
		if err = wire.CheckID(m.ID); err == nil {
			err = k.handleChild(c, m, d, answer)
		}
		if (m.Op == wire.OpLaunch || m.Op == wire.OpAttach) && err == nil {
			return
		}
	}
	if err != nil {
		answer.Error = failure(err)
	}
	k.send(c, answer)
}

func (k clients) handleChild(c *conn, m *wire.Message, d *descriptors, answer *wire.Message) (err error) {
	switch m.Op {
	case wire.OpLaunch:
		return k.launches().launch(c, m, d)
	case wire.OpAdopt:
		answer.Process, err = k.takeover().adopt(m, d)
		return err
	}
	ch := k.table[m.ID]
	if ch == nil && m.Op == wire.OpForget {
		k.children().unlinkExit(m.ID)
		return nil
	}
	if ch == nil && m.Op == wire.OpExit && anchor.Read(wire.ExitsDir+"/"+m.ID, &answer.Exit) == nil {
		return nil
	}
	if ch == nil {
		return &wire.Error{Code: wire.CodeUnknown, Text: "child " + m.ID + " is unknown"}
	}
	switch m.Op {
	case wire.OpSignal:
		return k.signal(ch, m)
	case wire.OpExit:
		if ch.state == exited {
			answer.Exit = ch.Exit
		}
	case wire.OpAttach:
		return k.attach(c, ch, m, d)
	case wire.OpCloseStdin:
		k.children().closeStdin(ch)
	case wire.OpReopenLog:
		return k.reopenLog(ch, d)
	case wire.OpForget:
		return k.forgetOrKill(ch, m.Kill)
	default:
		return fmt.Errorf("operation %q: %w", m.Op, wire.ErrMalformed)
	}
	return nil
}

// signal goes through the pidfd: a pid may be another's by now.
func (k clients) signal(c *child, m *wire.Message) error {
	if c.pidfd < 0 {
		return &wire.Error{Code: wire.CodeState, Text: "child " + c.ID + " has exited"}
	}
	flags := 0
	if m.Group {
		flags = unix.PIDFD_SIGNAL_PROCESS_GROUP
	}
	err := unix.PidfdSendSignal(c.pidfd, unix.Signal(m.Signal), nil, flags)
	if m.Group && err == unix.EINVAL && c.parent == parentSelf {
		// Before 6.9. The child leads its group (setsid) and isn't reaped, so nobody else has that id.
		err = unix.Kill(-c.Process.PID, unix.Signal(m.Signal))
	}
	if err == unix.ESRCH {
		return &wire.Error{Code: wire.CodeState, Text: "child " + c.ID + " has exited"}
	}
	if err != nil {
		return fmt.Errorf("signal %d to %s: %w", m.Signal, c.ID, err)
	}
	return nil
}

// reopenLog is answered before the logs loop has taken the file: everything read from then on goes there, and the
// answer may not wait for a disk.
func (k clients) reopenLog(c *child, d *descriptors) error {
	fd := d.get(wire.RoleLog)
	if fd < 0 || c.out == nil {
		return &wire.Error{Code: wire.CodeState, Text: "child " + c.ID + " has no log that could be reopened"}
	}
	k.tellAnchor(&wire.Message{Op: wire.OpHold, ID: c.ID, Roles: []wire.Role{wire.RoleLog}}, fd)
	out, fd := c.out, d.take(wire.RoleLog)
	k.logs.post(func() { out.file.Reopen(fd) })
	return nil
}

func (k clients) forgetOrKill(c *child, kill bool) error {
	switch {
	case c.state == exited:
		k.children().forget(c)
	case !kill:
		return &wire.Error{Code: wire.CodeState, Text: "child " + c.ID + " has not exited"}
	default:
		c.gone = true
		if c.state == starting { // the answer is an error, even if its workload begins this moment
			c.launching.failure = &wire.Error{Code: wire.CodeState, Text: "launch of " + c.ID + " was given up"}
		}
		if c.pidfd >= 0 {
			// What begins this moment may have started others, in the group that it leads then.
			_ = k.signal(c, &wire.Message{Signal: int(unix.SIGKILL), Group: true})
			unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0)
		}
	}
	return nil
}

func (k clients) list() []wire.Child {
	children := make([]wire.Child, 0, len(k.table))
	for _, c := range k.table {
		if c.state == starting || c.state == failing {
			continue
		}
		entry := c.Child
		if c.state != exited {
			entry.Exit = nil
		}
		if c.out != nil {
			entry.LostLines = c.out.lost.Load()
		}
		children = append(children, entry)
	}
	return children
}
