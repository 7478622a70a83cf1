// Package keeperd is the keeper: the parent of every container on the node. It starts init for them, reaps them, writes
// their logs and exit files, and answers the daemon on one socket. It owns the table of children and their descriptors;
// it may not resolve a path of the host, know what a container is for, or wait for its client.
// Its closure is the standard library, x/sys and what the test beside lists: whatever kills it hurts the whole node.
// Source: DESIGN "What the keeper promises".
package keeperd

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/podwright/podwright/runtime/keeperd/internal/anchor"
	"github.com/podwright/podwright/runtime/keeperd/internal/crilog"
	"github.com/podwright/podwright/runtime/spawn"
	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// Main runs the role that args name, after the program's own name, and gives the exit status.
func Main(build string, args []string) int {
	log := wire.NewLog(os.Stderr, wire.JournalReads(os.Stderr))
	role, more := "", ""
	if len(args) > 0 {
		role = args[0]
	}
	if len(args) > 1 {
		more = args[1]
	}
	state := -1
	if more == wire.ArgResume && len(args) > 2 {
		state, _ = strconv.Atoi(args[2])
	}
	var err error
	switch role {
	case wire.ArgAnchor:
		err = runAnchor(log.With("role", role), more, state)
	case wire.ArgKeeper:
		err = runKeeper(log.With("role", role), build, state)
	case wire.ArgCheck:
		_, err = takeOver()
	case "version":
		fmt.Println(build)
	default:
		err = errors.New("podwright-keeper is started by the podwright daemon; it has no use of its own")
	}
	if err != nil {
		log.Error("Ended", "role", role, "err", err)
		return 1
	}
	return 0
}

func runAnchor(log *slog.Logger, more string, state int) error {
	setName("pw-anchor")
	if state < 0 {
		procsFiles, err := strconv.Atoi(more)
		if err != nil {
			return fmt.Errorf("number of cgroups: %w", err)
		}
		if err := anchor.Enter(procsFiles); err != nil {
			return fmt.Errorf("set up the anchor: %w", err)
		}
	}
	anchor.Protect(log)
	return anchor.Run(log, func(exe int, argv []string, fds []int) (int, int, error) {
		return spawn.Start(&spawn.Command{Exe: exe, Argv: argv, Env: environment(), Fds: fds, Cgroup: -1})
	}, state)
}

// environment is the keeper's own: two loops run at once, and a small heap may be collected often.
func environment() []string {
	return []string{"GOMAXPROCS=2", "GOGC=25", "GOTRACEBACK=single", wire.JournalVariable()}
}

// setName is for ps(1): the program runs from a memfd, whose number would be its name.
func setName(name string) { os.WriteFile("/proc/self/comm", []byte(name), 0) }

// keeper is the control loop's state; only that loop touches it.
type keeper struct {
	*loop
	log   *slog.Logger
	build string
	start func(*spawn.Command) (pid, pidfd int, err error)
	logs  *logs
	table map[string]*child
	conns map[*conn]struct{}

	// inFlight counts launches and checks whose processes aren't in the table for good: while there are any,
	// an unknown zombie may be theirs.
	inFlight   int
	untold     []*wire.Message // see tellLater
	anchorLost bool
	replaced   bool // executeAnchor is on its way
	upgrade    *upgrade
	scratch    wire.Scratch
}

func runKeeper(log *slog.Logger, build string, state int) error {
	setName("pw-keeper")
	anchor.Protect(log)
	debug.SetGCPercent(25)
	for fd := 0; fd <= wire.InitFd; fd++ {
		unix.CloseOnExec(fd)
	}
	control, err := newLoop()
	if err != nil {
		return err
	}
	writing, err := newLoop()
	if err != nil {
		return err
	}
	k := &keeper{
		loop: control, log: log, build: build, start: spawn.Start,
		logs:  &logs{loop: writing, log: log, buffers: crilog.NewBuffers(), outputs: map[string]*output{}},
		table: map[string]*child{}, conns: map[*conn]struct{}{},
	}
	if err := k.takeover().recover(state >= 0); err != nil {
		return fmt.Errorf("take over: %w", err)
	}
	if err := k.serve(state); err != nil {
		return err
	}
	go k.logs.run() // owned by the keeper; stopped before it executes another program, else ends with the process
	k.run()
	return nil
}

// serve watches what wakes the control loop.
func (k *keeper) serve(state int) error {
	// Caught so that a log nobody reads any more is no reason to die.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	unix.SetNonblock(wire.ListenerFd, true)
	unix.SetsockoptTimeval(wire.PeerFd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 10})
	if err := k.watch(wire.PeerFd, unix.EPOLLIN, k.hearAnchor); err != nil {
		return fmt.Errorf("watch the anchor: %w", err)
	}
	if state >= 0 {
		k.upgrades().resumeConns(state)
	}
	if err := k.watch(wire.ListenerFd, unix.EPOLLIN, k.clients().accept); err != nil {
		return fmt.Errorf("watch the listener: %w", err)
	}
	return nil
}

// tellAnchor sends what the anchor has to know before anything else happens, and all that was put off.
func (k *keeper) tellAnchor(m *wire.Message, fds ...int) {
	k.tellNow()
	k.sendAnchor(m, fds...)
}

// tellLater puts off what is no harm if we die before it is told, but for a descriptor that is held a little longer:
// waking the anchor costs more than most of what it is told.
func (k *keeper) tellLater(m *wire.Message) {
	if k.untold = append(k.untold, m); len(k.untold) == 1 {
		k.after(time.Second, k.tellNow)
	}
}

func (k *keeper) tellNow() {
	for _, m := range k.untold {
		k.sendAnchor(m)
	}
	k.untold = nil
}

// sendAnchor can only fail with the anchor's death, which hearAnchor notices.
func (k *keeper) sendAnchor(m *wire.Message, fds ...int) {
	if err := wire.Send(wire.PeerFd, m, fds...); err != nil && !k.anchorLost {
		k.log.Error("Anchor was not told", "containerID", m.ID, "err", err)
	}
}

func (k *keeper) hearAnchor() {
	var inbox wire.Inbox
	_, fds, err := inbox.Receive(wire.PeerFd, &k.scratch, unix.MSG_DONTWAIT)
	wire.CloseAll(fds)
	if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		return
	}
	k.log.Error("Anchor died, becoming one")
	k.unwatch(wire.PeerFd)
	k.anchorLost = true
	k.upgrades().pause()
	k.whenQuiet()
}

// reapOrphans lets go of children that nobody knows: what a failed launch left behind.
func (k *keeper) reapOrphans() {
	for k.inFlight == 0 {
		pid, exit, ok := anchor.Peek(unix.P_ALL, 0)
		if !ok || k.knows(pid) {
			return // a known one has its own descriptor watched, and comes here afterwards
		}
		k.log.Info("Reaped an orphan", "pid", pid, "exitCode", exit.Code)
		anchor.Reap(unix.P_PID, pid)
	}
}

func (k *keeper) knows(pid int) bool {
	for _, c := range k.table {
		if c.Process.PID == pid && c.pidfd >= 0 || c.launching != nil && c.launching.launcherPID == pid {
			return true
		}
	}
	return false
}

// whenQuiet does what waits for the last launch in flight and the last output to be drained.
func (k *keeper) whenQuiet() {
	if k.inFlight > 0 || !k.anchorLost && k.upgrade == nil {
		return
	}
	for _, c := range k.table {
		if c.state == draining || c.state == failing {
			return
		}
	}
	if k.anchorLost {
		k.upgrades().becomeAnchor()
	} else {
		k.upgrades().checkUpgrade()
	}
}
