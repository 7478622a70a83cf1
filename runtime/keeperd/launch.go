package keeperd

import (
	"errors"
	"fmt"
	"time"

	"github.com/podwright/podwright/runtime/keeperd/internal/anchor"
	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/spawn"
	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// launching is what a child has only until its workload runs.
type launching struct {
	conn        *conn // who waits for the answer; nil: nobody
	seq         uint64
	status      int       // our end of init's status socket
	closed      bool      // the other ends can't write any more
	init        int       // the pid of the launch's first process; 0 where that ended under a keeper before
	named       bool      // the workload's clone is known
	launcherPID int       // init, where it cloned the workload out of itself; else 0
	launcher    int       // its pidfd, or -1
	exit        wire.Exit // of a failed one's process
	execNext    bool
	failure     error
}

// descriptors are those of a message, each under its role.
type descriptors struct {
	roles []wire.Role
	fds   []int
}

// get gives the first descriptor of that role, -1 without one; close still closes it.
func (d *descriptors) get(role wire.Role) int {
	for i := range d.roles {
		if d.roles[i] == role && d.fds[i] >= 0 {
			return d.fds[i]
		}
	}
	return -1
}

// take is get, with the descriptor the caller's from then on.
func (d *descriptors) take(role wire.Role) int {
	fd := d.get(role)
	for i := range d.fds {
		if d.fds[i] == fd {
			d.fds[i] = -1
		}
	}
	return fd
}

func (d *descriptors) close() { wire.CloseAll(d.fds) }

// launch starts init for a request; the answer is given by resolve.
func (k launches) launch(c *conn, m *wire.Message, d *descriptors) error {
	if m.Launch == nil || d.get(wire.RolePlan) < 0 {
		return fmt.Errorf("launch without a plan: %w", wire.ErrMalformed)
	}
	if k.table[m.ID] != nil {
		return &wire.Error{Code: wire.CodeExists, Text: "child " + m.ID + " exists"}
	}
	fds, err := k.initFds(m, d)
	if err != nil {
		return err
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	// Each message tells who wrote it: in a shared PID namespace a container that may trace can take the socket.
	if err := unix.SetsockoptInt(ends[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		wire.CloseAll(ends[:])
		return fmt.Errorf("setsockopt SO_PASSCRED: %w", err)
	}
	fds[launch.StatusFd] = ends[1]
	command := &spawn.Command{Exe: wire.InitFd, Argv: []string{"podwright-init"}, Fds: fds, Cgroup: d.get(wire.RoleCgroup)}
	if m.Launch.NewPID {
		command.Flags = unix.CLONE_NEWPID
	}
	if command.User, err = userOf(m.Launch.User, fds); err != nil {
		wire.CloseAll(ends[:])
		return err
	}
	k.children().unlinkExit(m.ID) // of a keeper before, whom nobody asked
	pid, pidfd, err := k.start(command)
	unix.Close(ends[1])
	if err != nil {
		unix.Close(ends[0])
		return err
	}
	l := &launching{conn: c, seq: m.Seq, status: ends[0], init: pid, launcher: -1}
	ch := &child{state: starting, parent: parentSelf, pidfd: pidfd, launching: l, console: -1, stdinWrite: d.take(wire.RoleStdinWrite)}
	ch.Child = wire.Child{ID: m.ID, Container: m.Launch.Container, Kind: m.Launch.Kind, Terminal: m.Launch.Terminal, StdinOnce: m.Launch.StdinOnce, Process: wire.Process{PID: pid}}
	k.table[m.ID] = ch
	out := newOutput(m.ID, d.take(wire.RoleLog))
	out.read(d.take(wire.RoleStdoutRead), "stdout", false)
	out.read(d.take(wire.RoleStderrRead), "stderr", false)
	ch.out = out
	k.children().hold(ch)
	k.watchLaunch(ch)
	return nil
}

func (k launches) watchLaunch(c *child) {
	k.inFlight++
	k.children().watchPidfd(c, c.pidfd)
	if err := k.watch(c.launching.status, unix.EPOLLIN, func() { k.readStatus(c) }); err != nil {
		c.launching.failure = err
		k.resolve(c)
	}
}

// initFds lays out what init finds from descriptor 0 on; the status socket's place is left to the caller.
func (k launches) initFds(m *wire.Message, d *descriptors) ([]int, error) {
	fds := []int{d.get(wire.RoleStdin), d.get(wire.RoleStdout), d.get(wire.RoleStderr), d.get(wire.RolePlan), -1}
	for i := range 3 {
		fds[i] = max(fds[i], 0) // descriptor 0 is /dev/null
	}
	for i, role := range d.roles {
		if role == wire.RoleTable {
			fds = append(fds, d.fds[i])
		}
	}
	join := m.Launch.JoinIndex
	if join < 0 {
		return fds, nil
	}
	at := launch.FirstFd + join
	if at > len(fds) {
		return nil, fmt.Errorf("join index %d of %d: %w", join, len(fds)-launch.FirstFd, wire.ErrMalformed)
	}
	owner := k.table[m.Launch.Container]
	if owner == nil {
		return nil, &wire.Error{Code: wire.CodeUnknown, Text: "container " + m.Launch.Container + " is unknown"}
	}
	if owner.state != running {
		return nil, &wire.Error{Code: wire.CodeState, Text: "container " + m.Launch.Container + " is not running"}
	}
	return append(fds[:at], append([]int{owner.pidfd}, fds[at:]...)...), nil
}

// userOf finds the user namespace among init's descriptors.
func userOf(u *wire.User, fds []int) (*spawn.UserNamespace, error) {
	if u == nil {
		return nil, nil
	}
	if u.Index < 0 || u.Index >= len(fds)-launch.FirstFd {
		return nil, fmt.Errorf("user namespace %d of %d table entries: %w", u.Index, len(fds)-launch.FirstFd, wire.ErrMalformed)
	}
	out := &spawn.UserNamespace{Fd: fds[launch.FirstFd+u.Index], OOMScore: u.OOMScore}
	for _, l := range u.Hard {
		out.Hard = append(out.Hard, spawn.HardLimit{Resource: l.Resource, Hard: l.Hard})
	}
	return out, nil
}

// readStatus takes what init has said; end of file is its last word.
func (k launches) readStatus(c *child) {
	var text [8192]byte
	creds := unix.CmsgSpace(unix.SizeofUcred)
	oob := make([]byte, creds+unix.CmsgSpace(4))
	for c.launching != nil {
		l := c.launching
		// A clone is the anchor's to hold before its name is taken out of the socket: at every moment somebody
		// who outlives us knows it. There is no room for descriptors yet.
		n, oobn, _, _, err := unix.Recvmsg(l.status, text[:], oob[:creds], unix.MSG_DONTWAIT|unix.MSG_PEEK)
		if status, bad := launch.DecodeStatus(text[:max(n, 0)]); err == nil && bad == nil {
			l.failure = errors.Join(l.failure, k.checkSender(c, status, sender(oob[:oobn])))
		}
		n, oobn, _, _, err = unix.Recvmsg(l.status, text[:], oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		if err == unix.EAGAIN || err == unix.EINTR {
			return
		}
		if err != nil || n == 0 {
			k.resolve(c)
			return
		}
		console := received(oob[:oobn])
		status, err := launch.DecodeStatus(text[:n])
		switch {
		case err != nil:
			l.failure = err
		case status.Kind == launch.StatusConsole && console >= 0 && l.failure == nil:
			unix.Close(c.console)
			c.console, console = console, -1
		case status.Kind == launch.StatusExecNext:
			l.execNext = true
		case status.Kind == launch.StatusError && l.failure == nil:
			l.failure = &launch.StepError{Step: status.Step, Errno: status.Errno, Path: status.Path}
		}
		if console >= 0 {
			unix.Close(console)
		}
	}
}

// received is the descriptor that came with a message, -1 without one.
func received(oob []byte) int {
	messages, _ := unix.ParseSocketControlMessage(oob)
	for i := range messages {
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil && len(fds) == 1 {
			return fds[0]
		}
	}
	return -1
}

// sender is the pid of who wrote a message, 0 for nobody we can name. The kernel fills it in; who may write another
// (CAP_SYS_ADMIN over its PID namespace) can write only what it sees there, which init never is.
func sender(oob []byte) int {
	messages, _ := unix.ParseSocketControlMessage(oob)
	for i := range messages {
		if creds, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
			return int(creds.Pid)
		}
	}
	return 0
}

// checkSender believes init, and of its clone that it is about to execute. The clone is known by that, too: init may
// have been killed between clone and message, for a launch that was given up or by the container's memory limit.
func (k launches) checkSender(c *child, status launch.Status, from int) error {
	l := c.launching
	if l.init == 0 {
		from = 0 // this is what init left in the socket; who is named is known to be nobody else's
	}
	switch {
	case status.Kind == launch.StatusError: // harms nobody but its own launch
		return nil
	case from == l.init && status.Kind == launch.StatusChild && l.named && status.Pid == c.Process.PID: // its own word came first
		return nil
	case from == l.init && status.Kind == launch.StatusChild:
		return k.adoptClone(c, status.Pid)
	case from == l.init, l.named && from == c.Process.PID && status.Kind == launch.StatusExecNext:
		return nil
	case !l.named && status.Kind == launch.StatusExecNext:
		return k.adoptClone(c, from)
	}
	return fmt.Errorf("process %d has no part in the launch and reported for it", from)
}

// adoptClone makes the workload that init cloned (CLONE_PARENT) the child, and init its launcher. A child is
// unreaped until we reap it, so its pid is its own.
func (k launches) adoptClone(c *child, pid int) error {
	if c.launching.named || k.knows(pid) || !isOurs(pid) {
		return fmt.Errorf("init named process %d as its clone, which is no new child", pid)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	c.launching.named, c.launching.launcher, c.launching.launcherPID = true, c.pidfd, c.Process.PID
	c.pidfd, c.Process.PID = pidfd, pid
	k.children().hold(c)
	k.children().watchPidfd(c, pidfd)
	return nil
}

// resolve ends a launch at the end of its status socket: after exec-next the workload runs, else nothing may.
func (k launches) resolve(c *child) {
	l := c.launching
	if l == nil || c.state != starting || l.closed {
		return
	}
	// A clone that nobody has named gets no further from here; one that is further has said so.
	unix.Shutdown(l.status, unix.SHUT_RD)
	l.closed = true
	k.readStatus(c)
	k.unwatch(l.status)
	unix.Close(l.status)
	l.status = -1
	if l.execNext && l.failure == nil {
		l.failure = k.begin(c)
	}
	if !l.execNext || l.failure != nil {
		// The answer waits for the end of both processes: a retry finds the id free, and nothing is left.
		c.state = failing
		unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0)
		if l.launcher >= 0 {
			unix.PidfdSendSignal(l.launcher, unix.SIGKILL, nil, 0)
		}
		return
	}
	console := -1
	if c.Kind == wire.KindExec && c.console >= 0 {
		console, c.console = c.console, -1 // the daemon serves the terminal of an exec itself
	}
	answer := &wire.Message{Seq: l.seq, Op: wire.OpLaunch, ID: c.ID, Process: &c.Process}
	if console >= 0 {
		answer.Roles = []wire.Role{wire.RoleConsole}
		k.clients().send(l.conn, answer, console)
		unix.Close(console)
	} else {
		k.clients().send(l.conn, answer)
	}
	if l.launcher < 0 {
		k.landed(c)
	}
}

// begin makes the child one that survives us: everything that is needed is in its file and with the anchor.
func (k launches) begin(c *child) error {
	stat, err := readStat(c.Process.PID)
	if err != nil {
		return err
	}
	c.Process.StartTime = stat.startTime
	if err := anchor.Write(wire.ChildrenDir+"/"+c.ID, &c.Child); err != nil {
		return &launch.StepError{Step: "record child", Errno: errno(err), Path: wire.ChildrenDir + "/" + c.ID}
	}
	c.state = running
	k.tellLater(&wire.Message{Op: wire.OpDrop, ID: c.ID, Role: wire.RoleSocket})
	if c.console >= 0 && c.Kind != wire.KindExec {
		k.tellAnchor(&wire.Message{Op: wire.OpHold, ID: c.ID, Roles: []wire.Role{wire.RoleConsole}}, c.console)
		c.out.read(c.console, "stdout", true)
		c.console = -1
	}
	if len(c.out.streams) == 0 {
		c.out.file.Close()
		c.out = nil
	} else {
		out := c.out
		k.logs.post(func() { k.logs.add(out) })
	}
	return nil
}

// landed is called when no process of the launch is unknown any more.
func (k launches) landed(c *child) {
	c.launching = nil
	k.inFlight--
	k.whenQuiet()
}

// failed answers a launch whose processes have ended, and forgets it.
func (k launches) failed(c *child) {
	l := c.launching
	err := l.failure
	if err == nil {
		end := fmt.Sprintf("init: exit status %d", l.exit.Code)
		if l.exit.Signal != 0 {
			end = "init: " + unix.SignalName(unix.Signal(l.exit.Signal))
		}
		err = &launch.StepError{Step: end}
	}
	k.after(time.Second, k.reapOrphans) // which may take a moment to end
	k.clients().send(l.conn, &wire.Message{Seq: l.seq, Op: wire.OpLaunch, ID: c.ID, Error: failure(err)})
	k.children().forget(c)
	k.landed(c)
}
