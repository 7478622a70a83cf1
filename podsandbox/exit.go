package podsandbox

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/wire"
)

// exitDeadline bounds the work after an exit: reading the cgroup, killing what is left, recording.
const exitDeadline = 30 * time.Second

// OnExit is for the keeper's client to call for every process that ended, once or more often. It never blocks.
// Exits that come before recovery is done wait for it, but for those that recovery itself waits for: of processes it ends.
func (m *Manager) OnExit(id string, exit wire.Exit) {
	if m.answerWaiter(id, exit) {
		return
	}
	m.exits.Add(1)
	// Owner: Manager; ends by exitDeadline after recovery, or with a daemon that leaves before; Shutdown waits for it.
	go func() {
		defer m.exits.Done()
		select {
		case <-m.recovered:
		case <-m.leaving: // the keeper keeps it for the next daemon, unless recovery is done too
			if m.Recovered() != nil {
				return
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), exitDeadline)
		defer cancel()
		m.handleExit(ctx, id, exit)
	}()
}

// answerWaiter hands an exit to whoever waits for it.
func (m *Manager) answerWaiter(id string, exit wire.Exit) bool {
	waiter, ok := m.waiters.Load(id)
	if ok {
		select {
		case waiter.(chan wire.Exit) <- exit:
		default: // it has its answer
		}
	}
	return ok
}

func (m *Manager) handleExit(ctx context.Context, id string, exit wire.Exit) {
	if m.answerWaiter(id, exit) {
		return
	}
	if c, err := m.containers.find("container", id); err == nil && c.id == id {
		if err := m.finish(ctx, c, exit); err != nil {
			klog.FromContext(ctx).Error(err, "Could not record an exit; the keeper keeps it", "containerID", id)
		}
		return
	}
	if s, err := m.sandboxes.find("sandbox", id); err == nil && s.id == id {
		m.reaperExited(ctx, s)
		return
	}
	if client := m.keeper.Load(); strings.HasPrefix(id, execPrefix) && client != nil {
		// Its caller gave up on it, and nobody else would ever ask the keeper.
		if err := forget(ctx, client, id); err != nil {
			klog.FromContext(ctx).Error(err, "Left a finished exec in the keeper", "execID", id)
		}
	}
}

// finish records a container's exit. What decides the reason is read before EXITED is visible, and nothing of the
// container runs any more by then (B19, B22).
func (m *containerManager) finish(ctx context.Context, c *container, exit wire.Exit) error {
	rec := c.record()
	if rec.Phase != record.ContainerRunning {
		return nil // not recorded as started yet: startContainer asks for the exit when it is
	}
	reason, message := m.exitReason(c, exit)
	group := rec.CgroupPath
	if err := m.cfg.Cgroups.Kill(ctx, group); err != nil {
		klog.FromContext(ctx).Error(err, "Could not kill what an exited container left", "containerID", c.id)
	}
	unwritten := m.changeContainer(c, func(r *record.Container) bool {
		if r.Phase != record.ContainerRunning {
			return false
		}
		r.Phase, r.ExitCode, r.Reason, r.Message = record.ContainerExited, int32(exit.Code), reason, message
		r.FinishedNanos = max(exit.Time.UnixNano(), r.StartedNanos)
		return true
	})
	klog.FromContext(ctx).V(2).Info("Container exited", "containerID", c.id, "exitCode", exit.Code, "reason", reason)
	err := m.cfg.Cgroups.Remove(ctx, group)
	if rmErr := os.RemoveAll(m.runDir(c.id)); rmErr != nil {
		err = errors.Join(err, rmErr)
	}
	if client := m.keeper.Load(); client != nil && unwritten == nil {
		err = errors.Join(err, forget(ctx, client, c.id))
	}
	if err != nil {
		// Remove goes the same way again.
		klog.FromContext(ctx).Error(err, "Left parts of an exited container until its removal", "containerID", c.id)
	}
	return unwritten // the keeper keeps the exit for the next daemon
}

// exitReason gives an exit the field's words (B18).
func (m *containerManager) exitReason(c *container, exit wire.Exit) (reason, message string) {
	switch {
	case exit.Lost:
		return "ExitCodeLost", "the exit code is lost: keeper and anchor ended together while the container ran"
	case exit.Code == 0:
		return "Completed", ""
	}
	rec := c.record()
	events, err := m.cfg.Cgroups.OOM(rec.CgroupPath)
	if err != nil && !errors.Is(err, cgroup.ErrNotSupported) {
		klog.ErrorS(err, "Could not learn whether a container ended for want of memory", "containerID", c.id)
	}
	asked, killed := c.stop.sent()
	if own := events.Kills - min(events.Kills, rec.CommandOOMKills); oomEnd(exit.Code, own, asked, killed) {
		return oomReason, oomMessage(m.core, c, exit, events)
	}
	return "Error", endOfTarget(m.core, c, exit, asked || killed)
}

// deliverEarlyExit handles an exit that came before the container was recorded as running.
func (m *containerManager) deliverEarlyExit(c *container) {
	client := m.keeper.Load()
	if client == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), exitDeadline)
	defer cancel()
	exit, exited, err := client.Exit(ctx, c.id)
	if err != nil || !exited {
		return
	}
	if err := m.finish(ctx, c, exit); err != nil {
		klog.FromContext(ctx).Error(err, "Could not record an exit; the keeper keeps it", "containerID", c.id)
	}
}

// reaperExited: without its PID 1 a shared PID namespace is dead, and with it every process inside (B11).
func (m *sandboxManager) reaperExited(ctx context.Context, s *sandbox) {
	if s.record().Phase != record.SandboxReady {
		return
	}
	err := m.changeSandbox(s, func(r *record.Sandbox) {
		r.Phase, r.Reason = record.SandboxNotReady, "the sandbox's PID 1 ended"
	})
	if err != nil {
		klog.FromContext(ctx).Error(err, "Could not record the end of a sandbox's PID 1", "sandboxID", s.id)
	}
}

// awaitExit makes a place for the exit of a process that is no container; the caller deletes it from execs.
func (m *core) awaitExit(id string) chan wire.Exit {
	waiter := make(chan wire.Exit, 1)
	m.waiters.Store(id, waiter)
	return waiter
}
