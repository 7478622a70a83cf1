package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/keeper"
	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/wire"
)

// maxExecOutput caps stdout and stderr together: the kubelet takes 16 MiB in one answer, and both must fit. What comes
// after it is read and dropped, so that the command is not held up (CVE-2022-1708).
const maxExecOutput = 15 << 20

// All commands together keep no more than execPool beyond freeOutput for each: a node full of probes that print without
// end must not take the daemon's memory.
const (
	freeOutput = 256 << 10
	execPool   = 64 << 20
)

// maxExecs is how many commands may be on their way to their start; each needs some 40 descriptors until then.
const maxExecs = 64

// execStartDeadline bounds a start, also where the request has no timeout: the working directory may be on a dead server.
const execStartDeadline = time.Minute

// execPrefix tells execs from containers in the keeper.
const execPrefix = "exec-"

// drainGrace is how long output may follow the exit of a command whose pipe somebody else still holds (B26).
const drainGrace = 20 * time.Millisecond

// ExecResult is what a command that ended left.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int32
}

// execTemplate is a container's exec launch with everything but the command: made once, so that a probe costs no
// reading and compiling of the spec.
type execTemplate struct {
	launchable spec.Launchable
	plan       launch.Plan
}

// with gives a launch of args; the template's lists are shared and never written.
func (t *execTemplate) with(args []string) *spec.Launchable {
	plan := t.plan
	plan.Args = args
	launchable := t.launchable
	launchable.Plan = &plan
	return &launchable
}

// ExecSync runs args in a running container and waits for its end. After timeout (0: none) the command and all it
// started are killed, and the error is ErrTimeout; the container goes on.
func (m *execManager) ExecSync(ctx context.Context, id string, args []string, timeout time.Duration) (*ExecResult, error) {
	if len(args) == 0 {
		return nil, kindf(ErrInvalid, "exec in container %q: cmd is empty", id)
	}
	c, err := m.containers.find("container", id)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	if phase := c.record().Phase; phase != record.ContainerRunning {
		return nil, kindf(ErrPrecondition, "exec in container %s: it is %s, not running", c.id, phase)
	}
	if err := m.Ready(); err != nil {
		return nil, err
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	result, err := m.execSync(ctx, c, args)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	return result, nil
}

func (m *execManager) execSync(ctx context.Context, c *container, args []string) (*ExecResult, error) {
	template, err := m.execTemplate(c)
	if err != nil {
		return nil, err
	}
	execID := execPrefix + record.NewID()
	waiter := m.awaitExit(execID)
	launched := make(chan launchedExec, 1)
	m.exits.Add(1)
	// Owner: core; ends by execStartDeadline, launchGrace after the caller; Shutdown waits for it.
	go func() {
		defer m.exits.Done()
		process, output, err := m.launchExec(ctx, c, execID, template.with(args))
		launched <- launchedExec{process, output, err}
	}()
	var process wire.Process
	var output *execOutput
	select {
	case l := <-launched:
		if l.err != nil {
			m.waiters.Delete(execID)
			return nil, m.execError(ctx, c, l.err)
		}
		process, output = l.process, l.output
	case <-ctx.Done():
		m.abandonExec(ctx, c, execID, launched, waiter)
		return nil, m.execError(ctx, c, ctx.Err())
	}
	defer output.close()
	output.start()
	defer m.forgetExec(ctx, execID)
	select {
	case exit := <-waiter:
		if exit.Lost {
			return nil, kindf(ErrUnavailable, "command %q: its exit code is lost with the keeper", args[0])
		}
		stdout, stderr := output.finish()
		return &ExecResult{Stdout: stdout, Stderr: stderr, ExitCode: int32(exit.Code)}, nil
	case <-ctx.Done():
		m.killTree(c.record().CgroupPath, process, waiter)
		return nil, kindf(ErrTimeout, "command %q timed out and was killed: %w", args[0], ctx.Err())
	}
}

// execError gives a start that failed because the container ended meanwhile its kind (B27).
func (m *execManager) execError(ctx context.Context, c *container, err error) error {
	if ctx.Err() != nil {
		return kindf(ErrTimeout, "timed out while it was being started: %w", err)
	}
	if phase := c.record().Phase; phase != record.ContainerRunning || errors.Is(err, keeper.ErrState) || errors.Is(err, keeper.ErrUnknown) {
		return kindf(ErrPrecondition, "the container ended meanwhile: %w", err)
	}
	return err
}

// forgetExec ends the keeper's interest in a command. One that still runs is forgotten when it ends (handleExit).
// The caller has its answer and does not wait for this one: it is a tenth of a probe's time.
func (m *execManager) forgetExec(ctx context.Context, execID string) {
	m.waiters.Delete(execID)
	client := m.keeper.Load()
	if client == nil {
		return
	}
	m.exits.Add(1)
	// Owner: core; ends by teardownDeadline; Shutdown waits for it.
	go func() {
		defer m.exits.Done()
		back, cancel := teardownContext(ctx)
		defer cancel()
		err := forget(back, client, execID)
		if err != nil && !errors.Is(err, keeper.ErrState) && !errors.Is(err, keeper.ErrDisconnected) {
			klog.FromContext(back).Error(err, "Left a finished exec in the keeper", "execID", execID)
		}
	}()
}

func (m *execManager) execTemplate(c *container) (*execTemplate, error) {
	if t := c.exec.Load(); t != nil {
		return t, nil
	}
	ociSpec, err := m.recordedSpec(c.id)
	if err != nil {
		return nil, err
	}
	in := spec.ExecInput{ID: c.id, Spec: ociSpec, Args: []string{"unset"}, Node: m.cfg.Node}
	if profile := ociSpec.Linux.Seccomp; profile != nil {
		filter, err := m.cfg.Seccomp.Compile(profile)
		if err != nil {
			return nil, fmt.Errorf("seccomp: %w", err)
		}
		in.Filter, in.FilterFlags = filter.Program, uint64(filter.Flags)
	}
	launchable, err := spec.Exec(in)
	if err != nil {
		return nil, invalidSpec(err)
	}
	t := &execTemplate{launchable: *launchable, plan: *launchable.Plan}
	c.exec.Store(t)
	return t, nil
}

// execOutput collects what a command writes.
type execOutput struct {
	stdout, stderr capture
	wait           sync.WaitGroup
	left           atomic.Int64  // bytes both together may still keep
	pool           *atomic.Int64 // bytes that all commands keep beyond freeOutput each
	taken          atomic.Int64  // of pool
}

// keep says how many of n bytes just read are kept; the rest is dropped.
func (o *execOutput) keep(n int) int64 {
	before := o.left.Add(int64(-n)) + int64(n)
	keep := min(int64(n), max(before, 0))
	if maxExecOutput-before < freeOutput || keep == 0 {
		return keep
	}
	if o.pool.Add(keep) > execPool {
		o.pool.Add(-keep)
		o.left.Store(0) // what follows would come after a gap
		return 0
	}
	o.taken.Add(keep)
	return keep
}

type capture struct {
	pipe  *os.File
	kept  []byte
	ended bool // the reader saw end of file
}

// newExecOutput makes the command's streams: an empty stdin, and pipes that are read here.
func newExecOutput(pool *atomic.Int64) (*execOutput, *streams, error) {
	o, s := &execOutput{pool: pool}, &streams{}
	o.left.Store(maxExecOutput)
	var err error
	if s.stdin, err = os.OpenFile(os.DevNull, os.O_RDONLY, 0); err != nil {
		return nil, nil, err
	}
	if o.stdout.pipe, s.stdout, err = pipe(); err == nil {
		o.stderr.pipe, s.stderr, err = pipe()
	}
	if err != nil {
		s.close()
		o.close()
		return nil, nil, err
	}
	return o, s, nil
}

// pipe makes a pipe whose read end the runtime polls and whose write end blocks, as a command expects.
func pipe() (read, write *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fds[0]), "exec output"), os.NewFile(uintptr(fds[1]), "exec output"), nil
}

// close lets go of pipes and pool; the readers end by it.
func (o *execOutput) close() {
	for _, f := range []*os.File{o.stdout.pipe, o.stderr.pipe} {
		if f != nil {
			f.Close()
		}
	}
	o.wait.Wait()
	o.pool.Add(-o.taken.Load())
}

func (o *execOutput) start() {
	for _, c := range []*capture{&o.stdout, &o.stderr} {
		o.wait.Add(1)
		// Owner: execSync; ends at end of file, at finish's deadline or when the pipe is closed; finish waits.
		go o.read(c)
	}
}

func (o *execOutput) read(c *capture) {
	defer o.wait.Done()
	buf := make([]byte, 4<<10) // a pipe's page: most commands say little, and probes are many
	for {
		n, err := c.pipe.Read(buf)
		if n > 0 {
			c.kept = append(c.kept, buf[:o.keep(n)]...)
		}
		if err != nil {
			c.ended = errors.Is(err, io.EOF)
			return
		}
	}
}

// finish waits for the end of both pipes, or, where a background process still holds one, for drainGrace.
func (o *execOutput) finish() (stdout, stderr []byte) {
	deadline := time.Now().Add(drainGrace)
	o.stdout.pipe.SetReadDeadline(deadline)
	o.stderr.pipe.SetReadDeadline(deadline)
	o.wait.Wait()
	o.rest(&o.stdout)
	o.rest(&o.stderr)
	return o.stdout.kept, o.stderr.kept
}

// maxLastWords is how much of what a failed init wrote goes into the error.
const maxLastWords = 512

// lastWords is what a start that failed left on stderr: init itself writes there only when Go's runtime ends it.
func (o *execOutput) lastWords() string {
	o.rest(&o.stderr)
	return string(o.stderr.kept[:min(len(o.stderr.kept), maxLastWords)])
}

// rest takes what is in the pipe already: the command wrote it before it ended, however busy this machine is.
func (o *execOutput) rest(c *capture) {
	if c.ended {
		return
	}
	raw, err := c.pipe.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 64<<10)
	raw.Control(func(fd uintptr) {
		for total := 0; total < maxExecOutput; {
			n, err := unix.Read(int(fd), buf)
			if n <= 0 || err != nil {
				return
			}
			total += n
			c.kept = append(c.kept, buf[:o.keep(n)]...)
		}
	})
}
