package keeperd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/podwright/podwright/runtime/keeperd/internal/anchor"
	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// estate is what a keeper leaves to the next: the anchor's descriptors and the table's files.
type estate struct {
	held     []*anchor.Held
	children map[string]wire.Child // a file that can't be read is there with its id only
	clean    bool                  // no log line was left unfinished
}

// takeOver reads the estate, up to the end of the anchor's hand-over on wire.PeerFd.
func takeOver() (*estate, error) {
	e := &estate{children: map[string]wire.Child{}}
	var inbox wire.Inbox
	scratch := new(wire.Scratch)
	for done := false; !done; {
		m, fds, err := inbox.Receive(wire.PeerFd, scratch, 0)
		switch {
		case err != nil:
			return nil, fmt.Errorf("hand-over: %w", err)
		case m == nil:
		case m.Op == wire.OpHold && m.Process != nil:
			e.held = append(e.held, &anchor.Held{ID: m.ID, PID: m.Process.PID, Roles: m.Roles, Fds: fds})
		case m.Op == wire.OpEnd:
			e.clean, done = m.Clean, true
		default:
			wire.CloseAll(fds)
		}
	}
	names, err := list(wire.ChildrenDir)
	if err != nil {
		return nil, err
	}
	var bad error
	for _, id := range names {
		var c wire.Child
		if err := anchor.Read(wire.ChildrenDir+"/"+id, &c); err != nil || c.ID != id {
			bad = errors.Join(bad, fmt.Errorf("child %s: %w", id, err))
			c = wire.Child{ID: id, Kind: wire.KindContainer}
		}
		e.children[id] = c
	}
	return e, bad
}

// list gives the ids that have a file in a directory.
func list(dir string) ([]string, error) {
	fd, err := unix.Openat(wire.RunDirFd, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	var ids []string
	for {
		names, err := f.Readdirnames(1000)
		for _, name := range names {
			if wire.CheckID(name) == nil {
				ids = append(ids, name)
			}
			if dir == wire.ChildrenDir && strings.HasSuffix(name, ".tmp") { // its writer died
				unix.Unlinkat(fd, name, 0)
			}
		}
		if errors.Is(err, io.EOF) || len(names) == 0 {
			return ids, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", dir, err)
		}
	}
}

// recover makes the estate the table. It is the one way in, after a crash of the keeper, after that of the anchor, and
// after an upgrade (resumed: the same process, whose children are still its own).
func (k takeover) recover(resumed bool) error {
	if err := wire.Send(wire.PeerFd, &wire.Message{Op: wire.OpHandover}); err != nil {
		return err
	}
	e, err := takeOver()
	if e == nil {
		return err
	}
	if err != nil {
		k.log.Error("Table was damaged", "err", err)
	}
	if !resumed {
		k.killStrays(e.held)
	}
	for _, h := range e.held {
		file, recorded := e.children[h.ID]
		delete(e.children, h.ID)
		k.inherit(h, file, recorded, e.clean || resumed)
	}
	// Without descriptors there is no process of ours: it has exited, or anchor and keeper died at once and the
	// daemon will tell us of it again.
	for id, file := range e.children {
		if anchor.Read(wire.ExitsDir+"/"+id, &file.Exit) == nil && file.Exit != nil {
			k.table[id] = &child{Child: file, state: exited, pidfd: -1, console: -1, stdinWrite: -1}
			continue
		}
		k.log.Error("Child was lost", "containerID", id, "pid", file.Process.PID)
		unix.Unlinkat(wire.RunDirFd, wire.ChildrenDir+"/"+id, 0)
	}
	k.log.Info("Took over", "children", len(k.table), "build", k.build)
	return nil
}

var errCutShort = errors.New("the keeper ended before the launch did")

const cutShortGrace = 2 * time.Second

// killStrays ends what the keeper before had started and not yet told the anchor when it died: children of the anchor
// that execute init's program, or still the keeper's. One that goes on to report finds its socket closed and ends by
// itself; one that hangs in a mount does not.
func (k takeover) killStrays(held []*anchor.Held) {
	known := map[int]bool{unix.Getpid(): true}
	for _, h := range held {
		known[h.PID] = true
	}
	var program, own, exe unix.Stat_t
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", unix.Getppid()))
	if err != nil || unix.Fstat(wire.InitFd, &program) != nil || unix.Stat("/proc/self/exe", &own) != nil {
		return
	}
	same := func(a unix.Stat_t) bool { return a.Ino == exe.Ino && a.Dev == exe.Dev }
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for _, field := range strings.Fields(string(text)) {
			pid, _ := strconv.Atoi(field)
			pidfd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue
			}
			if !known[pid] && unix.Stat("/proc/"+field+"/exe", &exe) == nil && (same(program) || same(own)) {
				k.log.Info("Killing an init that nobody knows", "pid", pid)
				unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
			}
			unix.Close(pidfd)
		}
	}
}

func (k takeover) inherit(h *anchor.Held, file wire.Child, recorded, clean bool) {
	d := &descriptors{roles: h.Roles, fds: h.Fds}
	defer d.close()
	file.ID = h.ID
	if h.PID != 0 {
		file.Process.PID = h.PID
	}
	c := k.newInherited(file, d)
	k.table[h.ID] = c
	if anchor.Read(wire.ExitsDir+"/"+h.ID, &c.Exit) != nil {
		c.Exit = nil
	}
	switch {
	case h.PID == 0 && d.get(wire.RoleSocket) < 0 && (!recorded || c.Exit == nil): // being forgotten, or a launch that failed, as the keeper died
		wire.CloseAll([]int{c.pidfd})
		k.children().forget(c)
		return
	case !recorded: // its launch was never answered, and nobody knows it
		k.log.Info("Ending a launch that was cut short", "containerID", h.ID, "pid", h.PID)
		c.launching = &launching{status: d.take(wire.RoleSocket), init: h.PID, launcher: -1, failure: errCutShort}
		k.launches().watchLaunch(c)
		// An init that lives may yet name a clone of its own; only one that hangs is killed before its last word.
		k.after(cutShortGrace, func() {
			if c.state == starting {
				unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0)
			}
		})
		return
	case h.PID == 0:
		k.beginOutput(c, clean)
		wire.CloseAll([]int{c.pidfd})
		c.pidfd = -1
		k.children().drain(c)
		return
	default:
		c.Exit = nil // read again when its reaper is done
		k.beginOutput(c, clean)
		c.state = running
	}
	if c.StdinTaken { // by a client of the keeper before
		k.children().closeStdin(c)
	}
	k.children().watchPidfd(c, c.pidfd)
}

// newInherited makes a child out of descriptors. Whose child it is the kernel tells.
func (k takeover) newInherited(file wire.Child, d *descriptors) *child {
	c := &child{Child: file, state: starting, parent: parentNone, pidfd: d.take(wire.RolePidfd), console: -1, stdinWrite: d.take(wire.RoleStdinWrite)}
	if stat, err := readStat(file.Process.PID); err == nil {
		switch stat.parent {
		case unix.Getpid():
			c.parent = parentSelf
		case unix.Getppid():
			c.parent = parentAnchor
		}
	} else {
		c.parent = parentAnchor // it ended and was reaped while we read; its exit file is there
	}
	out := newOutput(file.ID, d.take(wire.RoleLog))
	out.read(d.take(wire.RoleStdoutRead), "stdout", false)
	out.read(d.take(wire.RoleStderrRead), "stderr", false)
	out.read(d.take(wire.RoleConsole), "stdout", true)
	if c.out = out; len(out.streams) == 0 {
		out.file.Close()
		c.out = nil
	}
	return c
}

func (k takeover) beginOutput(c *child, clean bool) {
	if out := c.out; out != nil {
		k.logs.post(func() {
			if !clean {
				k.logs.mend(out)
			}
			k.logs.add(out)
		})
	}
}

// adopt takes over a process that neither keeper nor anchor is the parent of: both died at once, and the daemon knows
// it by pid and start time. Its pipes' read ends come anew.
func (k takeover) adopt(m *wire.Message, d *descriptors) (*wire.Process, error) {
	if m.Child == nil || m.Child.Process.PID <= 0 {
		return nil, fmt.Errorf("adopt without a process: %w", wire.ErrMalformed)
	}
	want := m.Child.Process
	if c := k.table[m.ID]; c != nil {
		if c.Process == want && c.state == running {
			return &c.Process, nil
		}
		return nil, &wire.Error{Code: wire.CodeExists, Text: "child " + m.ID + " exists"}
	}
	gone := &wire.Error{Code: wire.CodeUnknown, Text: fmt.Sprintf("process %d of %s is gone", want.PID, m.ID)}
	pidfd, err := unix.PidfdOpen(want.PID, 0)
	if err != nil {
		return nil, gone
	}
	// In this order: what the pidfd is of had the pid when it was opened; if that was another process than the one
	// meant, it started later.
	stat, err := readStat(want.PID)
	if err != nil || stat.startTime != want.StartTime || unix.PidfdSendSignal(pidfd, 0, nil, 0) != nil {
		unix.Close(pidfd)
		return nil, gone
	}
	d.roles, d.fds = append(d.roles, wire.RolePidfd), append(d.fds, pidfd)
	file := *m.Child
	file.ID, file.Exit = m.ID, nil
	if err := anchor.Write(wire.ChildrenDir+"/"+m.ID, &file); err != nil {
		return nil, err
	}
	c := k.newInherited(file, d)
	if stat.parent != unix.Getppid() && stat.parent != unix.Getpid() {
		c.parent = parentNone
	}
	c.state = running
	k.table[m.ID] = c
	k.children().hold(c)
	k.beginOutput(c, false)
	k.children().watchPidfd(c, c.pidfd)
	return &c.Process, nil
}
