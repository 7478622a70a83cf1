package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/podwright/podwright/runtime/initproc"
	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// Launch is one process to start. Its files stay the caller's, who may close them once Launch has returned.
type Launch struct {
	ID        string // of the container or exec: letters, digits, '-' and '_'
	Container string // the owner of an exec
	Kind      wire.Kind
	Plan      *launch.Plan
	JoinIndex int  // the table entry that becomes Container's pidfd, nil in Table; -1 without one
	NewPID    bool // the process is PID 1 of a new PID namespace
	Terminal  bool
	StdinOnce bool       // the first attached client's end of stdin is the child's; not of a terminal
	User      *wire.User // nil: the keeper's own user namespace

	Cgroup *os.File // cgroup v2 directory to be born in; nil where init joins by itself (v1)
	// The process's own ends; nil is /dev/null.
	Stdin, Stdout, Stderr *os.File
	// The keeper's ends: it reads the first two into Log, in lines of CRI, and holds StdinWrite open. Nil: not at all.
	StdoutRead, StderrRead, StdinWrite, Log *os.File
	Table                                   []*os.File
}

// Process is a started one.
type Process struct {
	PID       int
	StartTime uint64 // clock ticks since boot: with PID the identity for Adopt
	// Console is the terminal's master, of an exec with one only; the caller closes it.
	Console *os.File
}

// Launch starts a process and returns when it runs, or with a *launch.StepError when a step before failed. When ctx
// ends first, the process is killed and forgotten as soon as it can be: a start nobody waits for leaves nothing (B5).
func (c *Client) Launch(ctx context.Context, l Launch) (Process, error) {
	m := &wire.Message{Op: wire.OpLaunch, ID: l.ID, Launch: &wire.Launch{
		Kind: l.Kind, Container: l.Container, NewPID: l.NewPID, Terminal: l.Terminal, StdinOnce: l.StdinOnce, JoinIndex: l.JoinIndex, User: l.User}}
	if err := wire.CheckID(l.ID); err != nil {
		return Process{}, err
	}
	plan, err := sealed("podwright-plan", unix.MFD_NOEXEC_SEAL, bytes.NewReader(initproc.PlanFile(l.Plan)))
	if err != nil {
		return Process{}, err
	}
	defer plan.Close()
	var d duplicates
	defer d.close()
	d.add(m, wire.RolePlan, plan)
	d.add(m, wire.RoleCgroup, l.Cgroup)
	d.addStdio(m, wire.RoleStdin, l.Stdin)
	d.addStdio(m, wire.RoleStdout, l.Stdout)
	d.addStdio(m, wire.RoleStderr, l.Stderr)
	d.add(m, wire.RoleStdoutRead, l.StdoutRead)
	d.add(m, wire.RoleStderrRead, l.StderrRead)
	d.add(m, wire.RoleStdinWrite, l.StdinWrite)
	d.add(m, wire.RoleLog, l.Log)
	for i, f := range l.Table {
		if i == l.JoinIndex {
			continue
		}
		if f == nil {
			return Process{}, fmt.Errorf("launch %s: table entry %d is missing", l.ID, i)
		}
		d.add(m, wire.RoleTable, f)
	}
	if d.err != nil {
		return Process{}, fmt.Errorf("launch %s: %w", l.ID, d.err)
	}
	c.exits.reset(l.ID)
	answer, fds, err := c.call(ctx, m, d.fds)
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			c.undo(l.ID)
		}
		return Process{}, withLastWords(err, l.StderrRead)
	}
	return process(answer, fds)
}

// withLastWords adds what an init wrote that ended without a status: all there is to know then, for example why Go's
// runtime gave up. Nothing of the workload ran, so the words are init's own.
func withLastWords(err error, stderr *os.File) error {
	var step *launch.StepError
	if !errors.As(err, &step) || !strings.HasPrefix(step.Step, "init: ") || stderr == nil {
		return err
	}
	pipe, unusable := stderr.SyscallConn()
	if unusable != nil {
		return err
	}
	var text [1024]byte
	n := 0
	pipe.Control(func(fd uintptr) {
		if ready, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); ready == 1 {
			n, _ = unix.Read(int(fd), text[:])
		}
	})
	words := strings.Join(strings.Fields(string(text[:max(n, 0)])), " ")
	if words == "" {
		return err
	}
	return &launch.StepError{Step: step.Step + ": " + strconv.QuoteToASCII(words)}
}

func process(m *wire.Message, fds []int) (Process, error) {
	if m.Process == nil {
		wire.CloseAll(fds)
		return Process{}, fmt.Errorf("answer without a process: %w", wire.ErrMalformed)
	}
	p := Process{PID: m.Process.PID, StartTime: m.Process.StartTime}
	if len(fds) > 0 {
		unix.SetNonblock(fds[0], true) // for the poller
		p.Console = os.NewFile(uintptr(fds[0]), "console")
		wire.CloseAll(fds[1:])
	}
	return p, nil
}

// undo comes behind the launch on the same socket, so the keeper knows the id: it ends a launch in progress, and
// a process that came to run meanwhile. If the connection is lost, the daemon's recovery finds the child unasked for.
func (c *Client) undo(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	c.mu.Lock()
	s := c.session
	c.mu.Unlock()
	if s != nil {
		s.send(ctx, &wire.Message{Op: wire.OpForget, ID: id, Kill: true}, nil) // the answer says nothing new
	}
}

// Signal sends a signal to a child's process; group: to its process group.
func (c *Client) Signal(ctx context.Context, id string, signal unix.Signal, group bool) error {
	_, _, err := c.call(ctx, &wire.Message{Op: wire.OpSignal, ID: id, Signal: int(signal), Group: group}, nil)
	return err
}

// Exit tells whether and how a child has exited; ErrUnknown when the keeper never had it or forgot it.
func (c *Client) Exit(ctx context.Context, id string) (wire.Exit, bool, error) {
	m, _, err := c.call(ctx, &wire.Message{Op: wire.OpExit, ID: id}, nil)
	if err != nil || m.Exit == nil {
		return wire.Exit{}, false, err
	}
	return *m.Exit, true, nil
}

// Forget drops an exited child with its exit file; ErrState while it runs. Forgetting the unknown is success.
func (c *Client) Forget(ctx context.Context, id string) error {
	_, _, err := c.call(ctx, &wire.Message{Op: wire.OpForget, ID: id}, nil)
	if err == nil {
		c.exits.reset(id)
	}
	return err
}

// ReopenLog makes the child's output go on in log, which stays the caller's: not one line is lost or doubled (B38).
func (c *Client) ReopenLog(ctx context.Context, id string, log *os.File) error {
	m := &wire.Message{Op: wire.OpReopenLog, ID: id}
	var d duplicates
	defer d.close()
	if d.add(m, wire.RoleLog, log); d.err != nil {
		return fmt.Errorf("reopen log of %s: %w", id, d.err)
	}
	_, _, err := c.call(ctx, m, d.fds)
	return err
}

// CloseStdin closes the write end of a child's stdin, which then reads end of file.
func (c *Client) CloseStdin(ctx context.Context, id string) error {
	_, _, err := c.call(ctx, &wire.Message{Op: wire.OpCloseStdin, ID: id}, nil)
	return err
}

// List gives every child that runs or has exited and was not forgotten.
func (c *Client) List(ctx context.Context) ([]wire.Child, error) {
	m, _, err := c.call(ctx, &wire.Message{Op: wire.OpList}, nil)
	if err != nil {
		return nil, err
	}
	return m.Children, nil
}

// Adoption is a process that runs and that the keeper lost: keeper and anchor died at once. Its files stay the caller's.
type Adoption struct {
	Child                                   wire.Child // ID, Kind, Process; Container, Terminal
	StdoutRead, StderrRead, StdinWrite, Log *os.File
}

// Adopt hands such a process to the keeper. ErrUnknown: it is gone, or its pid is another's.
func (c *Client) Adopt(ctx context.Context, a Adoption) error {
	m := &wire.Message{Op: wire.OpAdopt, ID: a.Child.ID, Child: &a.Child}
	var d duplicates
	defer d.close()
	d.add(m, wire.RoleStdoutRead, a.StdoutRead)
	d.add(m, wire.RoleStderrRead, a.StderrRead)
	d.add(m, wire.RoleStdinWrite, a.StdinWrite)
	d.add(m, wire.RoleLog, a.Log)
	if d.err != nil {
		return fmt.Errorf("adopt %s: %w", a.Child.ID, d.err)
	}
	c.exits.reset(a.Child.ID)
	_, _, err := c.call(ctx, m, d.fds)
	return err
}

// Hello asks the keeper who it is.
func (c *Client) Hello(ctx context.Context) (wire.Hello, error) {
	m, _, err := c.call(ctx, &wire.Message{Op: wire.OpHello}, nil)
	if err != nil || m.Hello == nil {
		return wire.Hello{}, err
	}
	return *m.Hello, nil
}

// Upgrade replaces the running keeper by Config's present binaries, in place: same pid, children and connections.
// An error says that the old one goes on.
func (c *Client) Upgrade(ctx context.Context) (wire.Hello, error) {
	programs, err := c.programs()
	if err != nil {
		return wire.Hello{}, err
	}
	defer closeFiles(programs)
	hello, err := c.Hello(ctx)
	if err != nil {
		return wire.Hello{}, fmt.Errorf("upgrade keeper: %w", err)
	}
	if err := labelAsRunning(programs, hello.KeeperPID); err != nil {
		return wire.Hello{}, fmt.Errorf("upgrade keeper: %w", err)
	}
	m := &wire.Message{Op: wire.OpUpgrade}
	var d duplicates
	defer d.close()
	d.add(m, wire.RoleBinary, programs[0])
	if d.add(m, wire.RoleInit, programs[1]); d.err != nil {
		return wire.Hello{}, fmt.Errorf("upgrade keeper: %w", d.err)
	}
	answer, _, err := c.call(ctx, m, d.fds)
	if err != nil {
		return wire.Hello{}, fmt.Errorf("upgrade keeper: %w", err)
	}
	return *answer.Hello, nil
}

// labelAsRunning gives programs the SELinux label of the one that the keeper executes, if that has one: a copy has the label
// of who makes it, who may be an administrator, and podwright's domain executes nothing of an administrator's.
func labelAsRunning(programs []*os.File, keeperPID int) error {
	const attribute = "security.selinux"
	var want, have [4096]byte
	n, err := unix.Getxattr(fmt.Sprintf("/proc/%d/exe", keeperPID), attribute, want[:])
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("label of the running keeper's program: %w", err)
	}
	for _, f := range programs {
		if m, err := unix.Fgetxattr(int(f.Fd()), attribute, have[:]); err == nil && string(have[:m]) == string(want[:n]) {
			continue
		}
		if err := unix.Fsetxattr(int(f.Fd()), attribute, want[:n], 0); err != nil {
			return fmt.Errorf("give the new program the label %q of the running one: %w", strings.TrimRight(string(want[:n]), "\x00"), err)
		}
	}
	return nil
}

// Shutdown ends keeper and anchor; ErrState while there are children. The client then only serves to be closed.
func (c *Client) Shutdown(ctx context.Context) error {
	c.stopping.Store(true) // or the end of the session would have new ones started
	_, _, err := c.call(ctx, &wire.Message{Op: wire.OpShutdown}, nil)
	if err != nil {
		c.stopping.Store(false)
	}
	return err
}

// duplicates are descriptors on their way out: duplicated, because File.Fd would switch the caller's files to
// blocking, and its files may be closed by another goroutine meanwhile.
type duplicates struct {
	fds []int
	err error
}

func (d *duplicates) add(m *wire.Message, role wire.Role, f *os.File) {
	if f == nil || d.err != nil {
		return
	}
	raw, err := f.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			duplicate, dupErr := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3)
			if d.err = dupErr; dupErr == nil {
				d.fds, m.Roles = append(d.fds, duplicate), append(m.Roles, role)
			}
		})
	}
	if err != nil {
		d.err = err
	}
	if d.err != nil {
		d.err = fmt.Errorf("%s: %w", role, d.err)
	}
}

// addStdio makes the file blocking, as programs expect of their standard streams; os.Pipe gives both ends the contrary.
func (d *duplicates) addStdio(m *wire.Message, role wire.Role, f *os.File) {
	before := len(d.fds)
	if d.add(m, role, f); d.err == nil && len(d.fds) > before {
		d.err = unix.SetNonblock(d.fds[before], false)
	}
}

func (d *duplicates) close() { wire.CloseAll(d.fds) }
