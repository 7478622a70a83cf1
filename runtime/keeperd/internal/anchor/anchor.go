// Package anchor is the keeper's parent: it holds duplicates of every container's descriptors, restarts the keeper and
// hands them over, and reaps into exit files what a dead keeper left. It owns nothing else and decides nothing: the
// less it does, the less can kill it. It may not read a container's output, and waits for nobody but the kernel.
//
//	start keeper ──▶ hold what it sends ──▶ keeper dies ──▶ its children are ours: reap ──▶ start keeper ─▶ hand over
//
// Source: DESIGN "What the keeper promises" 2 and 3; prctl(2) PR_SET_CHILD_SUBREAPER.
package anchor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

const (
	maxRestartDelay = 5 * time.Second
	hopeless        = time.Second      // a delay that only a keeper gets that never settles
	settled         = 10 * time.Second // a keeper that lived this long may be restarted at once
	retryDelay      = time.Second      // of an exit file that could not be written
)

// Start starts the program of descriptor exe, with fds as its descriptors from 0 on.
type Start func(exe int, argv []string, fds []int) (pid, pidfd int, err error)

// Held is what is held of one child.
type Held struct {
	ID    string      `json:"id"`
	PID   int         `json:"pid"` // 0: reaped, only descriptors are left
	Roles []wire.Role `json:"roles"`
	Fds   []int       `json:"fds"`
}

type anchor struct {
	log   *slog.Logger
	start Start
	held  map[string]*Held
	clean bool // for the next hand-over: whoever held these descriptors before left no line unfinished

	poller  *Poller
	wake    int // eventfd: a signal came
	socket  int // to the keeper, -1 when it is gone
	keeper  int // pid, 0 when it is gone
	born    time.Time
	due     time.Time // of the keeper's next start
	delay   time.Duration
	stuck   bool // an ended child can't be recorded at present
	quit    bool
	inbox   wire.Inbox
	scratch wire.Scratch
}

// Run is the anchor; it returns when it was told to quit and its keeper has. A keeper that lost its anchor becomes
// this one, and leaves what it held in the memfd state; else that is -1.
func Run(log *slog.Logger, start Start, state int) error {
	a := &anchor{log: log, start: start, held: map[string]*Held{}, socket: -1}
	if state >= 0 {
		if err := a.resume(state); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	var err error
	if a.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	if a.poller, err = NewPoller(); err == nil {
		err = a.poller.Control(unix.EPOLL_CTL_ADD, a.wake, unix.EPOLLIN)
	}
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 16)
	// The others are caught so that they end nothing: what runs on the node is for the daemon to end.
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	go func() { // owned by the anchor, ends with its process
		for range signals {
			unix.Write(a.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		}
	}()
	for !a.quit || a.keeper != 0 {
		if a.turn(); a.keeper == 0 && a.delay > hopeless && len(a.held) == 0 {
			return errors.New("the keeper ends as soon as it is started, and nothing is held that would need one")
		}
	}
	return nil
}

func (a *anchor) resume(state int) error {
	text, err := ReadAll(state)
	unix.Close(state)
	var list []*Held
	if err == nil {
		err = json.Unmarshal(text, &list)
	}
	if err != nil {
		return fmt.Errorf("read the state of the anchor before: %w", err)
	}
	for _, h := range list {
		for _, fd := range h.Fds {
			unix.CloseOnExec(fd)
		}
		a.held[h.ID] = h
	}
	a.clean = true
	return nil
}

// turn waits for one thing to happen and handles it.
func (a *anchor) turn() {
	timeout := time.Duration(-1)
	if a.stuck {
		timeout = retryDelay
	}
	if a.keeper == 0 && time.Until(a.due) <= 0 {
		a.startKeeper()
	}
	if a.keeper == 0 {
		timeout = max(0, time.Until(a.due))
	}
	if _, err := a.poller.Wait(make([]unix.EpollEvent, 2), timeout); err != nil {
		panic(err) // EBADF or EFAULT: our own bug; the keeper becomes the anchor
	}
	var count [8]byte
	unix.Read(a.wake, count[:])
	// First what the keeper said, then who died: it says what it reaps before it does.
	a.listen()
	a.reap()
}

func (a *anchor) startKeeper() {
	if a.delay = min(max(2*a.delay, 50*time.Millisecond), maxRestartDelay); time.Since(a.born) > settled {
		a.delay = 0
	}
	a.born = time.Now()
	a.due = a.born.Add(a.delay)
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		a.log.Error("Keeper was not started", "err", err)
		return
	}
	fds := []int{0, 1, 2, ends[1], wire.ListenerFd, wire.RunDirFd, wire.BinaryFd, wire.InitFd}
	pid, pidfd, err := a.start(wire.BinaryFd, []string{"podwright-keeper", wire.ArgKeeper}, fds)
	unix.Close(ends[1])
	if err != nil {
		unix.Close(ends[0])
		a.log.Error("Keeper was not started", "err", err)
		return
	}
	unix.Close(pidfd)
	a.keeper, a.socket = pid, ends[0]
	if err := a.poller.Control(unix.EPOLL_CTL_ADD, a.socket, unix.EPOLLIN); err != nil {
		panic(err) // as in turn
	}
	a.log.Info("Started keeper", "pid", pid, "held", len(a.held))
}

// listen handles every message that is there.
func (a *anchor) listen() {
	for a.socket >= 0 {
		m, fds, err := a.inbox.Receive(a.socket, &a.scratch, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EAGAIN:
			return
		case err != nil:
			if !errors.Is(err, io.EOF) {
				a.log.Error("Keeper was disconnected", "err", err)
			}
			a.inbox.Drop()
			unix.Close(a.socket)
			a.socket = -1
			if a.keeper != 0 { // it may have closed the socket and live on, of no use to anyone
				unix.Kill(a.keeper, unix.SIGKILL)
			}
		case m != nil:
			a.handle(m, fds)
		}
	}
}

func (a *anchor) handle(m *wire.Message, fds []int) {
	switch m.Op {
	case wire.OpHold:
		h := a.held[m.ID]
		if h == nil {
			h = &Held{ID: m.ID}
			a.held[m.ID] = h
		}
		if m.Process != nil {
			h.PID = m.Process.PID
		}
		for i, role := range m.Roles {
			h.drop(role)
			h.Roles, h.Fds = append(h.Roles, role), append(h.Fds, fds[i])
		}
		return
	case wire.OpDrop:
		if h := a.held[m.ID]; h != nil && m.Role != "" {
			h.drop(m.Role)
		} else if h != nil {
			wire.CloseAll(h.Fds)
			delete(a.held, m.ID)
		}
	case wire.OpHandover:
		to := a.socket
		if len(fds) == 1 {
			to = fds[0]
		}
		a.handover(to)
	case wire.OpBinary:
		if len(fds) == 2 {
			unix.Dup3(fds[0], wire.BinaryFd, unix.O_CLOEXEC)
			unix.Dup3(fds[1], wire.InitFd, unix.O_CLOEXEC)
		}
	case wire.OpQuit:
		a.quit = true
	}
	wire.CloseAll(fds)
}

func (h *Held) fd(role wire.Role) int {
	for i := range h.Roles {
		if h.Roles[i] == role {
			return h.Fds[i]
		}
	}
	return -1
}

func (h *Held) drop(role wire.Role) {
	for i := range h.Roles {
		if h.Roles[i] == role {
			unix.Close(h.Fds[i])
			h.Roles, h.Fds = append(h.Roles[:i], h.Roles[i+1:]...), append(h.Fds[:i], h.Fds[i+1:]...)
			return
		}
	}
}

// handover tells all there is; a reader that stalls is dropped (SO_SNDTIMEO), and if that was the keeper, it restarts.
func (a *anchor) handover(to int) {
	unix.SetsockoptTimeval(to, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 10})
	var err error
	for _, h := range a.held {
		if err == nil {
			err = wire.Send(to, &wire.Message{Op: wire.OpHold, ID: h.ID, Process: &wire.Process{PID: h.PID}, Roles: h.Roles}, h.Fds...)
		}
	}
	if err == nil {
		err = wire.Send(to, &wire.Message{Op: wire.OpEnd, Clean: a.clean})
	}
	if err != nil {
		a.log.Error("Hand-over was cut short", "err", err)
		unix.Shutdown(to, unix.SHUT_RDWR)
	}
	if to == a.socket {
		a.clean = false
	}
}
