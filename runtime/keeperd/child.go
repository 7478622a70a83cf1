package keeperd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"github.com/podwright/podwright/runtime/keeperd/internal/anchor"
	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// child is one entry of the table.
//
//	starting ──exec-next, EOF──▶ running ──exit file──▶ draining ──output written──▶ exited ──▶ forgotten
//	    └──────anything else───▶ failing ──reaped, answered──────────────────────────────────▶ forgotten
type child struct {
	wire.Child
	state      state
	parent     parent
	pidfd      int // -1 once reaped
	console    int // of an exec, until the daemon has it
	stdinWrite int
	out        *output    // nil: nothing of it is read; of the logs loop since it began
	launching  *launching // until its processes are known
	gone       bool       // forget it when it has ended
	warned     bool
	asked      int // how often the kernel was asked for the exit
}

type state uint8

const (
	starting state = iota
	failing
	running
	draining
	exited
)

// parent is who reaps a child, and so who knows its exit.
type parent uint8

const (
	parentSelf   parent = iota
	parentAnchor        // the keeper that started it died
	parentNone          // anchor and keeper died at once, and the daemon told us of it
)

// hold gives the anchor duplicates of all the child's descriptors. Right after the start, and so before init says
// anything: a child that the anchor holds and that has no file yet is ended by the next keeper, which reads on from
// the status socket what else there is to end.
func (k children) hold(c *child) {
	m := &wire.Message{Op: wire.OpHold, ID: c.ID, Process: &wire.Process{PID: c.Process.PID}}
	fds := []int{}
	add := func(role wire.Role, fd int) {
		if fd >= 0 {
			m.Roles, fds = append(m.Roles, role), append(fds, fd)
		}
	}
	add(wire.RolePidfd, c.pidfd)
	add(wire.RoleStdinWrite, c.stdinWrite)
	if c.launching != nil {
		add(wire.RoleSocket, c.launching.status)
	}
	if c.out != nil {
		add(wire.RoleLog, c.out.file.Fd())
		for _, s := range c.out.streams {
			add(s.role(), s.fd)
		}
	}
	k.tellAnchor(m, fds...)
}

func (k children) watchPidfd(c *child, pidfd int) {
	if err := k.watch(pidfd, unix.EPOLLIN, func() { k.pidfdReady(c, pidfd) }); err != nil {
		k.log.Error("Exit is not watched", "containerID", c.ID, "err", err)
		k.after(time.Second, func() { k.watchPidfd(c, pidfd) })
	}
}

// pidfdReady handles the end of the child, or of the init that cloned it.
func (k children) pidfdReady(c *child, pidfd int) {
	if c.launching != nil && c.state == starting {
		if !readable(pidfd) {
			return
		}
		k.launches().readStatus(c) // its last words; it may have named its clone
		if l := c.launching; l == nil || l.launcher != pidfd {
			k.launches().resolve(c)
		}
	}
	if l := c.launching; l != nil && l.launcher == pidfd {
		k.launcherReady(c, pidfd)
		return
	}
	if c.pidfd != pidfd {
		return
	}
	exit, ended := k.exitOf(c)
	switch {
	case !ended:
	case c.state == failing:
		k.reap(c)
		if l := c.launching; l != nil {
			if l.exit = exit; l.launcher < 0 {
				k.launches().failed(c)
			}
		}
	case c.state == running:
		k.ended(c, exit)
	}
	k.reapOrphans()
}

func (k children) launcherReady(c *child, pidfd int) {
	if !readable(pidfd) {
		return
	}
	anchor.Reap(unix.P_PIDFD, pidfd) // unless it is the anchor's
	k.unwatch(pidfd)
	unix.Close(pidfd)
	c.launching.launcher, c.launching.launcherPID = -1, 0
	switch {
	case c.state == starting: // the clone goes on alone, and its end of the socket too
	case c.state != failing:
		k.launches().landed(c)
	case c.pidfd < 0:
		k.launches().failed(c)
	}
}

// ended records the exit, lets the process go, and tells of it once its output is written.
func (k children) ended(c *child, exit wire.Exit) {
	if err := anchor.RecordExit(c.ID, exit); err != nil {
		if !c.warned {
			k.log.Error("Exit was not recorded, the child stays a zombie", "containerID", c.ID, "pid", c.Process.PID, "err", err)
		}
		c.warned = true
		k.later(c, time.Second)
		return
	}
	c.Exit = &exit
	if c.out == nil { // else what is in its pipes may still outlive us
		k.tellLater(&wire.Message{Op: wire.OpDrop, ID: c.ID})
	}
	k.reap(c)
	wire.CloseAll([]int{c.stdinWrite}) // the anchor's goes with the rest
	c.stdinWrite = -1
	k.drain(c)
}

func (k children) drain(c *child) {
	if c.state = draining; c.out == nil {
		k.announce(c)
		return
	}
	out := c.out
	k.logs.post(func() { k.logs.drain(out, func() { k.post(func() { k.announce(c) }) }) })
	k.after(drainGrace, func() { k.announce(c) })
}

// announce makes the exit known. It is called once too often when draining took its whole grace.
func (k children) announce(c *child) {
	if c.state != draining {
		return
	}
	c.state = exited
	for client := range k.conns {
		if client.greeted {
			k.clients().send(client, &wire.Message{Op: wire.OpExit, ID: c.ID, Exit: c.Exit})
		}
	}
	if c.gone {
		k.forget(c)
	}
	k.whenQuiet()
	k.clients().endUnreachable()
}

func (k children) reap(c *child) {
	if c.parent == parentSelf {
		anchor.Reap(unix.P_PIDFD, c.pidfd)
	}
	k.unwatch(c.pidfd)
	unix.Close(c.pidfd)
	c.pidfd = -1
}

// forget drops every trace of a child whose processes have ended.
func (k children) forget(c *child) {
	if c.out != nil || c.Exit == nil { // else it was told already
		k.tellLater(&wire.Message{Op: wire.OpDrop, ID: c.ID})
	}
	wire.CloseAll([]int{c.console, c.stdinWrite})
	c.console, c.stdinWrite = -1, -1
	if out := c.out; out != nil {
		k.logs.post(func() { k.logs.close(out) })
	}
	unix.Unlinkat(wire.RunDirFd, wire.ChildrenDir+"/"+c.ID, 0)
	k.unlinkExit(c.ID)
	delete(k.table, c.ID)
}

func (k children) unlinkExit(id string) { unix.Unlinkat(wire.RunDirFd, wire.ExitsDir+"/"+id, 0) }

func (k children) closeStdin(c *child) {
	if c.stdinWrite >= 0 {
		unix.Close(c.stdinWrite)
		c.stdinWrite = -1
		if out := c.out; out != nil {
			k.logs.post(func() { k.logs.closeStdin(out) })
		}
		k.tellAnchor(&wire.Message{Op: wire.OpDrop, ID: c.ID, Role: wire.RoleStdinWrite})
	}
}

// exitOf asks whoever knows how the process ended; not ended also means: not known yet, asked again soon.
func (k children) exitOf(c *child) (exit wire.Exit, ended bool) {
	if _, exit, ended = anchor.Peek(unix.P_PIDFD, c.pidfd); ended {
		return exit, true
	}
	if !readable(c.pidfd) {
		return wire.Exit{}, false
	}
	var err error
	switch {
	case c.state != failing:
		err = anchor.Read(wire.ExitsDir+"/"+c.ID, &exit)
	case c.parent == parentSelf || unix.PidfdSendSignal(c.pidfd, 0, nil, 0) != unix.ESRCH:
		err = unix.EAGAIN // once it is reaped, no exit file appears any more behind forget's back
	}
	if err != nil && c.parent == parentNone {
		c.asked++
		exit, err = infoOf(c.pidfd, c.asked > maxAsked)
	}
	if err == nil {
		return exit, true
	}
	k.later(c, 20*time.Millisecond) // who reaps it, or traces it, is at work
	return wire.Exit{}, false
}

// readable: of a pidfd, that its process has ended.
func readable(fd int) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n == 1
}

// later looks at a child again that has ended and can't be let go now: its pidfd stays ready and would spin the loop.
func (k children) later(c *child, d time.Duration) {
	pidfd := c.pidfd
	k.unwatch(pidfd)
	k.after(d, func() {
		if c.pidfd == pidfd {
			k.watchPidfd(c, pidfd)
		}
	})
}

// infoOf gives the exit of a process that somebody else reaped, as far as the kernel tells (PIDFD_INFO_EXIT, 6.15).
// ErrNotExist is for a process that ended and isn't reaped, unless that is given up.
func infoOf(pidfd int, giveUp bool) (wire.Exit, error) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), unix.PIDFD_GET_INFO, uintptr(unsafe.Pointer(&info)))
	exit := wire.Exit{Code: 255, Lost: true, Time: time.Now()}
	switch {
	case e == 0 && info.Mask&unix.PIDFD_INFO_EXIT != 0:
		exit.Lost = false
		status := unix.WaitStatus(info.Exit_code)
		if exit.Code = status.ExitStatus(); status.Signaled() {
			exit.Signal, exit.Code = int(status.Signal()), 128+int(status.Signal())
		}
	case e == 0 && !giveUp:
		return exit, os.ErrNotExist
	}
	return exit, nil
}

// maxAsked times 20 ms is how long a foreign parent may take to reap.
const maxAsked = 100

type stat struct {
	parent    int
	startTime uint64
}

// readStat reads /proc/<pid>/stat (proc_pid_stat(5)): field 2 is in parentheses and may hold any character.
func readStat(pid int) (stat, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, err
	}
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:]) // from field 3 on
	if len(fields) < 20 {
		return stat{}, fmt.Errorf("read /proc/%d/stat: %d fields", pid, len(fields))
	}
	parent, err := strconv.Atoi(string(fields[1]))
	start, startErr := strconv.ParseUint(string(fields[19]), 10, 64)
	return stat{parent, start}, errors.Join(err, startErr)
}

// isOurs tells whether a process is a child of the keeper, or of the anchor that got it from a keeper before.
func isOurs(pid int) bool {
	stat, err := readStat(pid)
	return err == nil && (stat.parent == unix.Getpid() || stat.parent == unix.Getppid())
}

func errno(err error) syscall.Errno {
	var e syscall.Errno
	errors.As(err, &e)
	return e
}

// failure makes the answer's error out of err.
func failure(err error) *wire.Error {
	var step *launch.StepError
	var answer *wire.Error
	switch {
	case errors.As(err, &answer):
		return answer
	case errors.As(err, &step):
		return &wire.Error{Code: wire.CodeStep, Text: step.Step, Errno: step.Errno, Path: step.Path}
	}
	return &wire.Error{Text: err.Error()}
}
