package keeperd

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/podwright/podwright/runtime/keeperd/internal/anchor"
	"github.com/podwright/podwright/runtime/spawn"
	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// upgrade is a change of program in progress: nothing is read from clients, so no launch begins; those in flight
// are answered, then the new program proves in a child that it can read everything, then it replaces this one.
// Same pid, same children, same sockets.
type upgrade struct {
	conn         *conn
	seq          uint64
	binary, init int
	checking     bool
	cancelled    atomic.Bool
}

const upgradeTimeout = 15 * time.Second

func (k upgrades) beginUpgrade(c *conn, seq uint64, d *descriptors) error {
	if k.upgrade != nil || k.anchorLost {
		return &wire.Error{Code: wire.CodeState, Text: "keeper is being replaced already"}
	}
	u := &upgrade{conn: c, seq: seq, binary: d.take(wire.RoleBinary), init: d.take(wire.RoleInit)}
	if u.binary < 0 || u.init < 0 {
		wire.CloseAll([]int{u.binary, u.init})
		return fmt.Errorf("upgrade without programs: %w", wire.ErrMalformed)
	}
	k.upgrade = u
	k.pause()
	k.after(upgradeTimeout, func() {
		if k.upgrade == u {
			k.endUpgrade(errors.New("keeper did not come to rest"))
		}
	})
	k.whenQuiet()
	return nil
}

// endUpgrade goes on as before.
func (k upgrades) endUpgrade(err error) {
	u := k.upgrade
	k.upgrade = nil
	u.cancelled.Store(true)
	wire.CloseAll([]int{u.binary, u.init})
	k.log.Error("Upgrade was not done", "err", err)
	k.unpause()
	k.clients().send(u.conn, &wire.Message{Seq: u.seq, Op: wire.OpUpgrade, Error: failure(err)})
}

// checkUpgrade runs the new program over what it would take over.
func (k upgrades) checkUpgrade() {
	u := k.upgrade
	if u.checking {
		return
	}
	u.checking = true
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		k.endUpgrade(fmt.Errorf("socketpair: %w", err))
		return
	}
	k.tellAnchor(&wire.Message{Op: wire.OpHandover, Roles: []wire.Role{wire.RoleSocket}}, ends[0])
	_, pidfd, err := k.start(&spawn.Command{
		Exe: u.binary, Argv: []string{"podwright-keeper", wire.ArgCheck}, Env: environment(), Cgroup: -1,
		Fds: []int{0, 1, 2, ends[1], 0, wire.RunDirFd, u.binary, u.init},
	})
	wire.CloseAll(ends[:])
	if err != nil {
		k.endUpgrade(fmt.Errorf("start the new keeper's check: %w", err))
		return
	}
	k.inFlight++
	ended := func() {
		_, exit, ended := anchor.Peek(unix.P_PIDFD, pidfd)
		if !ended {
			return
		}
		anchor.Reap(unix.P_PIDFD, pidfd)
		k.unwatch(pidfd)
		unix.Close(pidfd)
		k.inFlight--
		if k.upgrade != u {
			return
		}
		if exit.Code != 0 {
			k.endUpgrade(fmt.Errorf("the new keeper's check ended with status %d", exit.Code))
			return
		}
		k.logs.post(func() {
			if !u.cancelled.Load() {
				k.logs.flush()
				k.logs.stop()
				k.post(k.upgradeNow)
			}
		})
	}
	if err := k.watch(pidfd, unix.EPOLLIN, ended); err != nil {
		k.log.Error("Check is not watched", "err", err)
	}
	k.after(upgradeTimeout, func() {
		if k.upgrade == u {
			unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		}
	})
}

// succession is what the next program in this process learns from its state descriptor.
type succession struct {
	Conns  []int  `json:"conns"`
	Answer int    `json:"answer"` // the one of conns that asked for the upgrade, or -1
	Seq    uint64 `json:"seq"`
}

// upgradeNow executes the new program; the logs loop has stopped.
func (k upgrades) upgradeNow() {
	u := k.upgrade
	if u == nil { // cancelled between the two loops
		go k.logs.run() // as in runKeeper
		return
	}
	unix.Dup3(u.binary, wire.BinaryFd, unix.O_CLOEXEC)
	unix.Dup3(u.init, wire.InitFd, unix.O_CLOEXEC)
	k.tellAnchor(&wire.Message{Op: wire.OpBinary, Roles: []wire.Role{wire.RoleBinary, wire.RoleInit}}, u.binary, u.init)
	s := succession{Answer: -1, Seq: u.seq}
	for c := range k.conns {
		if c.inbox.Partial() || len(c.out) > 0 || !c.greeted {
			k.clients().dropConn(c) // in the middle of a message, which can't be handed on; it comes again
			continue
		}
		s.Conns = append(s.Conns, c.fd)
		if c == u.conn {
			s.Answer = c.fd
		}
	}
	err := execute(wire.ArgKeeper, s, append(s.Conns, wire.PeerFd))
	go k.logs.run() // as in runKeeper
	k.endUpgrade(err)
}

func (k upgrades) resumeConns(state int) {
	text, err := anchor.ReadAll(state)
	unix.Close(state)
	var s succession
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		k.log.Error("Clients were lost", "err", err)
		return
	}
	for _, fd := range s.Conns {
		unix.CloseOnExec(fd)
		c := k.clients().addConn(fd)
		c.greeted = true
		if fd == s.Answer {
			hello := &wire.Hello{KeeperPID: unix.Getpid(), AnchorPID: unix.Getppid(), Build: k.build}
			k.clients().send(c, &wire.Message{Seq: s.Seq, Op: wire.OpUpgrade, Hello: hello})
		}
	}
}

// becomeAnchor: the parent that would take over our children is gone. Becoming one ourselves, with a new keeper as
// child, restores every promise: our children are then the anchor's. Clients come again.
func (k upgrades) becomeAnchor() {
	if !k.replaced {
		k.replaced = true
		k.logs.post(func() {
			k.logs.flush()
			k.logs.stop()
			k.post(k.executeAnchor)
		})
	}
}

func (k upgrades) executeAnchor() {
	state, keep := []*anchor.Held{}, []int{}
	for _, c := range k.table {
		h := &anchor.Held{ID: c.ID}
		add := func(role wire.Role, fd int) {
			if fd >= 0 {
				h.Roles, h.Fds = append(h.Roles, role), append(h.Fds, fd)
			}
		}
		if add(wire.RolePidfd, c.pidfd); c.pidfd >= 0 {
			h.PID = c.Process.PID
		}
		add(wire.RoleStdinWrite, c.stdinWrite)
		if c.out != nil { // the logs loop has stopped
			add(wire.RoleLog, c.out.file.Fd())
			for _, s := range c.out.streams {
				add(s.role(), s.fd)
			}
		}
		if len(h.Fds) > 0 {
			state, keep = append(state, h), append(keep, h.Fds...)
		}
	}
	unix.Close(wire.PeerFd)
	err := execute(wire.ArgAnchor, state, keep)
	// Without an anchor we still serve; the daemon sees that the anchor's pid is not ours.
	k.log.Error("Keeper goes on without an anchor", "err", err)
	k.anchorLost, k.replaced = false, false
	go k.logs.run() // as in runKeeper
	k.unpause()
}

// execute replaces this process by the program of wire.BinaryFd in a role, which finds state and the kept descriptors.
// It returns only what went wrong, with everything as before.
func execute(role string, state any, keep []int) error {
	text, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	fd, err := unix.MemfdCreate("podwright-state", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // before 6.3
		fd, err = unix.MemfdCreate("podwright-state", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	defer unix.Close(fd)
	for done := 0; done < len(text); {
		n, err := unix.Write(fd, text[done:])
		if err != nil {
			return fmt.Errorf("write state: %w", err)
		}
		done += n
	}
	keep = append(keep, fd, 0, 1, 2, wire.ListenerFd, wire.RunDirFd, wire.BinaryFd, wire.InitFd)
	for _, fd := range keep {
		unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	}
	argv := []string{"podwright-keeper", role, wire.ArgResume, strconv.Itoa(fd)}
	err = syscall.Exec("/proc/self/fd/"+strconv.Itoa(wire.BinaryFd), argv, environment())
	for _, fd := range keep {
		unix.CloseOnExec(fd)
	}
	return fmt.Errorf("execute %s: %w", role, err)
}

// paused: an upgrade or a new anchor is on its way.
func (k upgrades) paused() bool { return k.upgrade != nil || k.anchorLost }

// pause stops reading from clients; their requests wait in the sockets.
func (k upgrades) pause() {
	k.unwatch(wire.ListenerFd)
	for c := range k.conns {
		k.unwatch(c.fd)
	}
}

func (k upgrades) unpause() {
	if err := k.watch(wire.ListenerFd, unix.EPOLLIN, k.clients().accept); err != nil {
		k.log.Error("Clients are not accepted", "err", err)
	}
	for c := range k.conns {
		k.clients().watchConn(c, unix.EPOLLOUT)
	}
}

// shutdown ends keeper and anchor where nothing runs.
func (k upgrades) shutdown(c *conn, answer *wire.Message) {
	if len(k.table) == 0 && k.inFlight > 0 { // an init that cloned its workload is about to end
		k.after(20*time.Millisecond, func() { k.shutdown(c, answer) })
		return
	}
	if len(k.table) > 0 {
		answer.Error = &wire.Error{Code: wire.CodeState, Text: fmt.Sprintf("keeper has %d children", len(k.table))}
		k.clients().send(c, answer)
		return
	}
	k.tellAnchor(&wire.Message{Op: wire.OpQuit})
	k.clients().send(c, answer)
	k.stop()
}
