package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/runtime/keeper"
)

// stopRequest remembers what a container was sent, by whichever of several concurrent stops (B23).
type stopRequest struct {
	mu        sync.Mutex // mu guards what follows.
	signalled bool
	killed    bool
	left      time.Time // the earliest deadline of a stop whose caller vanished; zero without one
}

// leave notes the deadline of a stop whose caller vanished, and says whether it is the earliest of those.
func (r *stopRequest) leave(deadline time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.left.IsZero() && !deadline.Before(r.left) {
		return false
	}
	r.left = deadline
	return true
}

// first sets *flag and says whether it was unset.
func (r *stopRequest) first(flag *bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := *flag
	*flag = true
	return !was
}

// sent says what the container was sent.
func (r *stopRequest) sent() (signalled, killed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.signalled, r.killed
}

// StopContainer sends the stop signal once and, timeout later, SIGKILL; it returns when the container is exited.
// Several stops of one container run side by side, so that a shorter timeout shortens. A caller that vanishes, a kubelet
// that restarts for one, changes nothing: SIGKILL comes when it would have (B24). An unknown or not running container
// is success.
func (m *containerManager) StopContainer(ctx context.Context, id string, timeout time.Duration) error {
	c, err := m.containers.find("container", id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return m.ops.during(ctx, kindStopContainer, containerName(m.core, c), c.id, func(op *Operation) error {
		// Passing through the lock waits for a start under way, whose process would otherwise be missed.
		if err := c.op.lock(ctx, op); err != nil {
			return err
		}
		c.op.unlock()
		return m.stopContainer(ctx, op, c, timeout)
	})
}

func (m *containerManager) stopContainer(ctx context.Context, op *Operation, c *container, timeout time.Duration) error {
	if c.record().Phase != record.ContainerRunning {
		return nil
	}
	if client := m.keeper.Load(); timeout > 0 && client != nil {
		if c.stop.first(&c.stop.signalled) {
			err := client.Signal(ctx, c.id, unix.Signal(c.record().StopSignal), false)
			switch {
			case err == nil:
				noteStop(ctx, m.core, c, func(r *record.Container) { r.Signalled = true })
			case !isGone(err):
				klog.FromContext(ctx).Error(err, "Could not send the stop signal", "containerID", c.id)
			}
		}
		deadline := time.Now().Add(timeout)
		op.at("wait for its end")
		op.on(Wait{For: WaitEnd, PID: c.record().PID, Until: deadline})
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		select {
		case <-c.exited:
			return nil
		case <-timer.C:
		case <-m.leaving:
			return kindf(ErrUnavailable, "stop container %s: podwright is restarting; the container has its stop signal", c.id)
		case <-ctx.Done():
			m.stopLater(context.WithoutCancel(ctx), c, deadline)
			return kindf(ErrTimeout, "stop container %s: it has until %s to end, and is killed then: %w", c.id, deadline.Format(time.TimeOnly), ctx.Err())
		}
	}
	back, cancel := teardownContext(ctx)
	defer cancel()
	op.at("kill")
	op.on(Wait{For: WaitEnd, group: c.record().CgroupPath})
	return m.killContainer(back, c)
}

// noteStop keeps for the next daemon what a container was sent: its stop signal is sent once (B23), and an end that was
// asked for is none for want of memory. Whoever cannot write it stops the container all the same.
func noteStop(ctx context.Context, m *core, c *container, change func(*record.Container)) {
	err := m.changeContainer(c, func(r *record.Container) bool {
		if r.Phase != record.ContainerRunning {
			return false
		}
		change(r)
		return true
	})
	if err != nil {
		klog.FromContext(ctx).Error(err, "What a container was sent is known in memory only", "containerID", c.id)
	}
}

// stopLater kills the container at deadline for a caller that is gone.
func (m *containerManager) stopLater(ctx context.Context, c *container, deadline time.Time) {
	if !c.stop.leave(deadline) {
		return
	}
	// Owner: the container; ends with its exit, or killDeadline after deadline. A later daemon is asked again.
	go func() {
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		select {
		case <-c.exited:
			return
		case <-timer.C:
		}
		if err := m.killContainer(ctx, c); err != nil {
			klog.FromContext(ctx).Error(err, "Could not end a container whose stop was given up", "containerID", c.id)
		}
	}()
}

// frozenPatience is how long a kill may take before it is asked whether the container is frozen.
const frozenPatience = time.Second

// killContainer ends all processes of a running container and waits until it is recorded as exited. One that is stuck
// in the kernel stays running, and is an error (B25).
func (m *containerManager) killContainer(ctx context.Context, c *container) error {
	if c.stop.first(&c.stop.killed) && oomKilledBefore(m.core, c) {
		noteStop(ctx, m.core, c, func(r *record.Container) { r.Killed = true })
	}
	ctx, cancel := context.WithTimeout(ctx, killDeadline)
	defer cancel()
	group := c.record().CgroupPath
	var err error
	if client := m.keeper.Load(); client != nil {
		err = client.Signal(ctx, c.id, unix.SIGKILL, false)
	}
	if m.keeper.Load() == nil || err != nil && !errors.Is(err, keeper.ErrState) {
		// The keeper is away or never heard of it: the cgroup reaches every process without help.
		err = m.cfg.Cgroups.Kill(ctx, group)
	}
	select {
	case <-c.exited:
		return nil
	case <-time.After(frozenPatience):
		// Somebody may have frozen it: on cgroup v1 such a process dies when it is thawed only, which this does.
		err = errors.Join(err, m.cfg.Cgroups.Kill(ctx, group))
	case <-ctx.Done():
	}
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
	}
	pids, _ := m.cfg.Cgroups.Pids(group)
	return errors.Join(kindf(ErrTimeout, "kill container %s: still running %s after SIGKILL, processes %v", c.id, killDeadline, pids), err)
}

// killProcess ends a process of the keeper's that is no container (a reaper) and makes the keeper forget it.
func (m *core) killProcess(ctx context.Context, id string) error {
	client := m.keeper.Load()
	if client == nil {
		return m.Ready()
	}
	waiter := m.awaitExit(id)
	defer m.waiters.Delete(id)
	err := client.Signal(ctx, id, unix.SIGKILL, false)
	switch {
	case errors.Is(err, keeper.ErrUnknown):
		return nil
	case err != nil && !errors.Is(err, keeper.ErrState):
		return err
	}
	if _, exited, err := client.Exit(ctx, id); err == nil && exited {
		return forget(ctx, client, id)
	}
	select {
	case <-waiter:
		return forget(ctx, client, id)
	case <-ctx.Done():
		return kindf(ErrTimeout, "process %s still runs after SIGKILL: %w", id, ctx.Err())
	}
}

// isGone: the process ended before the signal, and its exit is on the way.
func isGone(err error) bool {
	return errors.Is(err, keeper.ErrUnknown) || errors.Is(err, keeper.ErrState)
}

func forget(ctx context.Context, client *keeper.Client, id string) error {
	if err := client.Forget(ctx, id); err != nil && !errors.Is(err, keeper.ErrUnknown) {
		return fmt.Errorf("make the keeper forget %s: %w", id, err)
	}
	return nil
}

// RemoveContainer removes a container, killing it first if it runs; the log stays. An unknown id is success.
func (m *containerManager) RemoveContainer(ctx context.Context, id string) error {
	c, err := m.containers.find("container", id)
	if errors.Is(err, ErrNotFound) {
		return m.removeBadContainer(ctx, id)
	}
	if err != nil {
		return err
	}
	return m.ops.during(ctx, kindRemoveContainer, containerName(m.core, c), c.id, func(op *Operation) error {
		if err := c.op.lock(ctx, op); err != nil {
			return err
		}
		defer c.op.unlock()
		back, cancel := teardownContext(ctx)
		defer cancel()
		err := m.stopContainer(back, op, c, 0)
		if err == nil {
			op.at("take away")
			err = m.teardownContainer(back, c)
		}
		if err != nil {
			return fmt.Errorf("remove container %s: %w", c.id, err)
		}
		return nil
	})
}

// teardownContainer is the one way back of a failed create, of Remove and of recovery; the record goes last.
func (m *containerManager) teardownContainer(ctx context.Context, c *container) error {
	err := m.releaseRun(ctx, c)
	if client := m.keeper.Load(); client != nil {
		err = errors.Join(err, forget(ctx, client, c.id))
	}
	if rmErr := os.RemoveAll(m.stateDir(c.id)); rmErr != nil {
		err = errors.Join(err, fmt.Errorf("remove writable layer: %w", rmErr))
	}
	if err = errors.Join(err, releaseImages(ctx, m.cfg.Images, c.record())); err != nil {
		return err
	}
	if err := m.deleteContainer(c); err != nil {
		return fmt.Errorf("delete record: %w", err)
	}
	was := m.containers.delete(c.id)
	m.containerKeys.CompareAndDelete(containerKey(c.record().SandboxID, c.config.GetMetadata()), c.id)
	if was {
		m.events.tell(eventDeleted, c.id, podOf(m.core, c.record().SandboxID))
	}
	return nil
}
