package podsandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/keeper"
	"github.com/podwright/podwright/runtime/launch"
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
	resources  []byte // of the record it was made from: an update makes another one
	uid, gid   int    // the workload's, as the node knows it
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
	c, err := m.executable(id, args)
	if err != nil {
		return nil, err
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	var result *ExecResult
	err = m.ops.during(ctx, kindExec, containerName(m.core, c), c.id, func(op *Operation) (err error) {
		if result, err = m.execSync(ctx, op, c, args); err != nil {
			return fmt.Errorf("exec in container %s: %w", c.id, err)
		}
		return nil
	})
	return result, err
}

// CheckCommand says whether args can be a command's: what no process can have is refused here by its name.
func CheckCommand(args []string) error {
	if len(args) == 0 || args[0] == "" {
		return kindf(ErrInvalid, "cmd is empty")
	}
	for i, arg := range args {
		if strings.ContainsRune(arg, 0) {
			return kindf(ErrInvalid, "cmd[%d] %.80q holds a NUL byte", i, arg)
		}
	}
	return nil
}

// executable finds the container that args are to run in, if anything can run in it now.
func (m *execManager) executable(id string, args []string) (*container, error) {
	if err := CheckCommand(args); err != nil {
		return nil, fmt.Errorf("exec in container %q: %w", id, err)
	}
	c, err := m.running(id)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	return c, m.Ready()
}

// running finds a container that runs.
func (m *execManager) running(id string) (*container, error) {
	c, err := m.containers.find("container", id)
	if err != nil {
		return nil, err
	}
	if phase := c.record().Phase; phase != record.ContainerRunning {
		return nil, kindf(ErrPrecondition, "container %s: it is %s, not running", c.id, phase)
	}
	return c, nil
}

func (m *execManager) execSync(ctx context.Context, op *Operation, c *container, args []string) (*ExecResult, error) {
	op.at("prepare")
	template, err := m.execTemplate(c, false)
	if err != nil {
		return nil, err
	}
	output := &execOutput{pool: &m.kept, uid: template.uid, gid: template.gid}
	started, err := m.begin(ctx, op, c, template.with(args), output)
	if err != nil {
		return nil, err
	}
	defer output.close()
	output.start()
	op.at("run command")
	op.on(Wait{For: WaitEnd, PID: started.process.PID, Until: deadlineOf(ctx)})
	defer m.forgetExec(ctx, started.id)
	select {
	case exit := <-started.exit:
		if exit.Lost {
			return nil, lostExit(args)
		}
		noteKilledCommand(m.core, c, exit)
		stdout, stderr := output.finish()
		return &ExecResult{Stdout: stdout, Stderr: stderr, ExitCode: int32(exit.Code)}, nil
	case <-ctx.Done():
		m.killTreeFor(c.record().CgroupPath, started.process, started.exit)
		return nil, kindf(ErrTimeout, "command %q timed out and was killed: %w", args[0], ctx.Err())
	}
}

func lostExit(args []string) error {
	return kindf(ErrUnavailable, "command %q: its exit code is lost with the keeper", args[0])
}

// deadlineOf is when ctx ends by itself; zero where it doesn't.
func deadlineOf(ctx context.Context) time.Time {
	at, _ := ctx.Deadline()
	return at
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

func (m *execManager) execTemplate(c *container, terminal bool) (*execTemplate, error) {
	kept := &c.exec
	if terminal {
		kept = &c.execTTY
	}
	resources := c.record().Resources
	if t := kept.Load(); t != nil && bytes.Equal(t.resources, resources) {
		return t, nil
	}
	ociSpec, err := m.recordedSpec(c.id)
	if err != nil {
		return nil, err
	}
	in := spec.ExecInput{ID: c.id, Spec: ociSpec, Args: []string{"unset"}, Terminal: terminal, Node: m.cfg.Node}
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
	s, err := m.sandboxes.find("sandbox", c.record().SandboxID)
	if err != nil {
		return nil, err
	}
	t := &execTemplate{launchable: *launchable, plan: *launchable.Plan, resources: resources}
	t.uid, t.gid = outside(s.config, ociSpec.Process.User.UID, ociSpec.Process.User.GID)
	kept.Store(t)
	return t, nil
}
