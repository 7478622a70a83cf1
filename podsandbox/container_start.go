package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/mounts"
	"github.com/podwright/podwright/runtime/wire"
)

// A failed start is an exit like any other to the kubelet.
const (
	startErrorReason = "StartError"
	startErrorCode   = 128
)

// StartContainer starts a created container. When it returns without error the workload's own program runs and
// its log file exists. A failed start leaves the container exited, reason StartError, code 128.
func (m *containerManager) StartContainer(ctx context.Context, id string) error {
	if err := m.Ready(); err != nil {
		return err
	}
	c, err := m.containers.find("container", id)
	if err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	op := m.ops.begin(kindStartContainer, containerName(m.core, c), c.id)
	if err := c.op.lock(ctx, op); err != nil {
		m.ops.end(ctx, op, err)
		return err
	}
	done := make(chan error, 1)
	// Owner: this call. A client that vanishes does not stop a start half way: it ends running or exited (B5, B13).
	go func() {
		defer c.op.unlock()
		detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), createDeadline)
		defer cancel()
		err := m.startContainer(detached, op, c)
		m.ops.end(detached, op, err)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return kindf(ErrTimeout, "start container %s: still starting: %w", c.id, ctx.Err())
	}
}

func (m *containerManager) startContainer(ctx context.Context, op *Operation, c *container) error {
	// A Remove may have had the lock before: recording anything now would bring the container back (B17).
	if now, err := m.containers.find("container", c.id); err != nil || now != c {
		return kindf(ErrNotFound, "start container %s: it was removed meanwhile", c.id)
	}
	rec := c.record()
	if rec.Phase != record.ContainerCreated {
		return kindf(ErrPrecondition, "start container %s: it is %s, not created", c.id, rec.Phase)
	}
	s, err := m.sandboxes.find("sandbox", rec.SandboxID)
	if err != nil {
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	if s.record().Phase != record.SandboxReady {
		return kindf(ErrPrecondition, "start container %s: sandbox %s is not ready", c.id, s.id)
	}
	begin, hits := time.Now(), podLimitHits(m.core, rec.CgroupPath)
	process, err := m.startProcess(ctx, op, s, c)
	if err != nil {
		m.recordFailedStart(ctx, op, c, err)
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	op.at("record as running")
	err = m.changeContainer(c, func(r *record.Container) bool {
		r.StartSteps, r.PodLimitHits = op.timings(), hits
		// A short-lived workload may have exited already; its exit waits in the keeper for this record.
		r.Phase, r.PID, r.StartTime, r.StartedNanos = record.ContainerRunning, process.PID, process.StartTime, time.Now().UnixNano()
		return true
	})
	if err != nil {
		// Running and not recorded is what recovery would have to guess at: end it.
		m.recordFailedStart(ctx, op, c, err)
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	klog.FromContext(ctx).V(2).Info("Started container", "containerID", c.id, "sandboxID", s.id, "pid", process.PID, "duration", time.Since(begin))
	m.deliverEarlyExit(c)
	return nil
}

// startProcess makes what only a running container has, and launches it.
func (m *containerManager) startProcess(ctx context.Context, op *Operation, s *sandbox, c *container) (wire.Process, error) {
	op.at("compile plan")
	namespace, err := joinedBy(m.core, s, c.config)
	if err != nil {
		return wire.Process{}, err
	}
	ociSpec, err := m.recordedSpec(c.id)
	if err != nil {
		return wire.Process{}, err
	}
	launchable, err := m.compile(c.id, ociSpec)
	if err != nil {
		return wire.Process{}, invalidSpec(err)
	}
	op.at("open layers and streams")
	layers, err := m.cfg.Images.Layers(ctx, c.record().ImageID)
	if err != nil {
		return wire.Process{}, err
	}
	root, err := m.rootSource(s, c, layers, ociSpec.Linux.MountLabel)
	if err != nil {
		return wire.Process{}, err
	}
	if root.IDMap != nil {
		defer root.IDMap.UserNS.Close()
	}
	streams, err := m.streamsOf(s, c, ociSpec, launchable)
	if err != nil {
		return wire.Process{}, err
	}
	defer streams.close()
	op.at("make cgroup")
	group := c.record().CgroupPath
	if err := m.cfg.Cgroups.Create(ctx, group, ociSpec.Linux.Resources); err != nil {
		return wire.Process{}, limitError(err)
	}
	if err := giveGroup(m.cfg.Cgroups, s, c); err != nil {
		return wire.Process{}, err
	}
	process, err := m.launch(ctx, launchRequest{
		op: op, id: c.id, kind: wire.KindContainer, launchable: launchable, cgroup: group, streams: streams, root: root, sandbox: s,
		joined: namespace, stdinOnce: c.config.GetStdinOnce(),
	})
	if err != nil {
		return wire.Process{}, tooLittleMemory(m.cfg.Cgroups, group, ociSpec.Linux.Resources, err)
	}
	return identity(process), verifyIsolation(m.core, c, identity(process), ociSpec)
}

// giveGroup lets the root of a user namespace make groups below the container's, where its view of them is writable. The
// node's root, in a pod without such a namespace, needs nothing.
func giveGroup(cgroups *cgroup.Manager, s *sandbox, c *container) error {
	if cgroups.Version() != 2 || spec.SandboxUser(s.config) == nil || !spec.CgroupsWritable(c.config, s.config) {
		return nil
	}
	uid, gid := outside(s.config, 0, 0)
	return cgroup.Delegate(cgroups, c.record().CgroupPath, uid, gid)
}

// tooLittleMemory says it where the kernel killed init at the container's own limit: "killed" alone explains nothing.
func tooLittleMemory(cgroups *cgroup.Manager, group string, limits *specs.LinuxResources, cause error) error {
	events, err := cgroups.OOM(group)
	if err != nil || events.Kills == 0 || limits == nil || limits.Memory == nil || limits.Memory.Limit == nil {
		return cause
	}
	return kindf(ErrInvalid, "linux.resources.memory_limit_in_bytes \"%d\": too little to start in: %w", *limits.Memory.Limit, cause)
}

// rootSource is the container's overlay. A volatile upper refuses a second mount, so each attempt starts with a work
// directory of its own (DESIGN decision 12).
func (m *containerManager) rootSource(s *sandbox, c *container, layers []string, label string) (*mounts.OverlaySource, error) {
	work := filepath.Join(m.stateDir(c.id), "work")
	if err := os.RemoveAll(work); err != nil {
		return nil, fmt.Errorf("clear work directory: %w", err)
	}
	if err := os.Mkdir(work, 0o711); err != nil {
		return nil, fmt.Errorf("make work directory: %w", err)
	}
	ids, err := idMap(m.cfg.Namespaces, s)
	if err != nil {
		return nil, err
	}
	upper := filepath.Join(m.stateDir(c.id), "upper")
	return &mounts.OverlaySource{Lower: layers, Upper: upper, Work: work, Volatile: true, IDMap: ids, MountLabel: label}, nil
}

func (m *containerManager) streamsOf(s *sandbox, c *container, ociSpec *specs.Spec, launchable *spec.Launchable) (*streams, error) {
	dir := m.runDir(c.id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make %s: %w", dir, err)
	}
	uid, gid := outside(s.config, ociSpec.Process.User.UID, ociSpec.Process.User.GID)
	return openStreams(dir, uid, gid, launchable.Terminal, c.config.GetStdin(), ociSpec.Linux.MountLabel, s.config.GetLogDirectory(), c.config.GetLogPath())
}

// recordFailedStart makes a failed start an exit that the kubelet understands, and gives back what the start took.
func (m *containerManager) recordFailedStart(ctx context.Context, op *Operation, c *container, cause error) {
	op.at("take back")
	back, cancel := teardownContext(ctx)
	defer cancel()
	log := klog.FromContext(ctx)
	if err := m.releaseRun(back, c); err != nil {
		log.Error(err, "Left parts of a failed start", "containerID", c.id)
	}
	now := time.Now().UnixNano()
	err := m.changeContainer(c, func(r *record.Container) bool {
		r.Phase, r.Reason, r.Message, r.ExitCode = record.ContainerExited, startErrorReason, cause.Error(), startErrorCode
		r.StartedNanos, r.FinishedNanos, r.StartSteps = now, now, op.timings()
		return true
	})
	if err != nil {
		log.Error(err, "Could not record a failed start", "containerID", c.id)
	}
}

// releaseRun gives back what a run took: processes, cgroup, FIFOs. Every part may be gone already.
func (m *containerManager) releaseRun(ctx context.Context, c *container) error {
	var errs []error
	group := c.record().CgroupPath
	if err := m.cfg.Cgroups.Kill(ctx, group); err != nil {
		errs = append(errs, fmt.Errorf("kill cgroup %s: %w", group, err))
	}
	if err := m.cfg.Cgroups.Remove(ctx, group); err != nil {
		errs = append(errs, fmt.Errorf("remove cgroup %s: %w", group, err))
	}
	if err := os.RemoveAll(m.runDir(c.id)); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
