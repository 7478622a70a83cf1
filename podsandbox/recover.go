package podsandbox

import (
	"context"
	"errors"
	"os"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/keeper"
	"github.com/podwright/podwright/runtime/namespace"
	"github.com/podwright/podwright/runtime/wire"
)

// What is reported of containers whose end nobody saw. 255 is what the field uses (B12).
const (
	lostCode       = 255
	reasonUnknown  = "Unknown"
	reasonOrphaned = "Orphaned"
	reasonCodeLost = "ExitCodeLost"
)

// recovery is one pass; children that a record claims are deleted from the map, the rest are nobody's.
type recovery struct {
	m           *Manager
	client      *keeper.Client
	children    map[string]wire.Child
	interrupted error // the keeper went away before it could say what decides over a container
}

// all brings every record in line with kernel and keeper: sandboxes first, since their containers need them.
func (r *recovery) all(ctx context.Context) {
	r.m.sandboxes.each(func(s *sandbox) { r.sandbox(ctx, s) })
	r.m.containers.each(func(c *container) { r.container(ctx, c) })
	r.strangers(ctx)
}

func (r *recovery) loadSandbox(ctx context.Context, rec *record.Sandbox) {
	holdSandboxLabel(r.m.core, rec) // also where nothing else of it can be read
	config := &criv1.PodSandboxConfig{}
	err := protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(rec.Config, config)
	digest, digestErr := digestOf(config)
	if err := errors.Join(err, digestErr); err != nil {
		r.m.unreadable.keep(ctx, []record.Bad{{ID: rec.ID, Kind: kindSandbox, Err: err}})
		return
	}
	r.m.clock.seen(rec.CreatedNanos)
	r.m.sandboxes.put(rec.ID, newSandbox(rec, config, digest))
	r.m.sandboxKeys.Store(sandboxKey(config.GetMetadata()), rec.ID)
}

func (r *recovery) loadContainer(ctx context.Context, rec *record.Container) {
	config := &criv1.ContainerConfig{}
	err := protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(rec.Config, config)
	digest, digestErr := digestOf(config)
	_, resourcesErr := decodeResources(rec.Resources)
	if err := errors.Join(err, digestErr, resourcesErr); err != nil {
		r.m.unreadable.keep(ctx, []record.Bad{{ID: rec.ID, Kind: kindContainer, Err: err}})
		return
	}
	r.m.clock.seen(rec.CreatedNanos)
	holdContainerLabel(r.m.core, rec, config)
	if err := holdImages(r.m.cfg.Images, rec); err != nil && rec.Phase != record.ContainerCreating {
		klog.FromContext(ctx).Error(err, "Could not hold the images of a recovered container", "containerID", rec.ID)
	}
	r.m.containers.put(rec.ID, newContainer(rec, config, digest))
	r.m.containerKeys.Store(containerKey(rec.SandboxID, config.GetMetadata()), rec.ID)
}

// sandbox brings one sandbox's record in line with the kernel.
func (r *recovery) sandbox(ctx context.Context, s *sandbox) {
	rec := s.record()
	child, known := r.children[s.id]
	delete(r.children, s.id)
	log := klog.FromContext(ctx)
	switch {
	case rec.Phase == record.SandboxCreating:
		back, cancel := teardownContext(ctx)
		defer cancel()
		if err := r.m.teardownSandbox(back, s); err != nil {
			log.Error(err, "Left a sandbox whose creation was interrupted", "sandboxID", s.id)
			r.notReady(ctx, s, err.Error())
		}
	case rec.Phase == record.SandboxNotReady:
		if rec.BootID != r.m.cfg.BootID {
			r.notReady(ctx, s, rec.Reason)
		}
	case rec.BootID != r.m.cfg.BootID:
		r.notReady(ctx, s, "the node was restarted")
	case !r.namespacesAlive(s):
		r.notReady(ctx, s, "one of its namespaces is gone")
	case rec.ReaperPID != 0 && (!known || child.Exit != nil) && !r.adoptReaper(ctx, s):
		r.notReady(ctx, s, "its PID 1 is gone")
	}
}

func (r *recovery) notReady(ctx context.Context, s *sandbox, reason string) {
	err := r.m.changeSandbox(s, func(rec *record.Sandbox) {
		rec.Phase, rec.Reason = record.SandboxNotReady, reason
		if rec.BootID != r.m.cfg.BootID {
			rec.ReaperPID, rec.ReaperStartTime, rec.BootID = 0, 0, r.m.cfg.BootID
		}
	})
	if err != nil {
		klog.FromContext(ctx).Error(err, "Could not record a sandbox as not ready", "sandboxID", s.id)
	}
}

func (r *recovery) namespacesAlive(s *sandbox) bool {
	own := spec.SandboxNamespaces(s.config)
	for kind, has := range map[namespace.Kind]bool{
		namespace.Net: own.Net, namespace.IPC: own.IPC, namespace.UTS: own.UTS, namespace.User: spec.SandboxUser(s.config) != nil,
	} {
		if has && !r.m.cfg.Namespaces.Alive(s.id, kind) {
			return false
		}
	}
	return true
}

func (r *recovery) adoptReaper(ctx context.Context, s *sandbox) bool {
	rec := s.record()
	process := wire.Process{PID: rec.ReaperPID, StartTime: rec.ReaperStartTime}
	if !sameProcess(process) {
		return false
	}
	err := r.client.Adopt(ctx, keeper.Adoption{Child: wire.Child{ID: s.id, Kind: wire.KindReaper, Process: process}})
	return err == nil
}

// container brings one container's record in line with kernel and keeper.
func (r *recovery) container(ctx context.Context, c *container) {
	rec := c.record()
	child, known := r.children[c.id]
	delete(r.children, c.id)
	switch {
	case rec.Phase == record.ContainerCreating:
		back, cancel := teardownContext(ctx)
		defer cancel()
		if err := r.m.teardownContainer(back, c); err != nil {
			klog.FromContext(ctx).Error(err, "Left a container whose creation was interrupted", "containerID", c.id)
		}
	case rec.Phase == record.ContainerExited:
		r.clean(ctx, c)
	case rec.BootID != r.m.cfg.BootID && rec.Phase == record.ContainerRunning:
		r.lost(ctx, c, reasonUnknown, "the node was restarted while the container ran")
	case known:
		r.running(ctx, c, child)
	case rec.Phase == record.ContainerRunning:
		r.unknown(ctx, c)
	}
}

// running: the keeper has it. A container recorded as created was being started when the daemon ended.
func (r *recovery) running(ctx context.Context, c *container, child wire.Child) {
	err := r.m.changeContainer(c, func(rec *record.Container) bool {
		if rec.Phase == record.ContainerRunning {
			return false
		}
		rec.Phase, rec.PID, rec.StartTime, rec.StartedNanos = record.ContainerRunning, child.Process.PID, child.Process.StartTime, time.Now().UnixNano()
		return true
	})
	if err != nil {
		klog.FromContext(ctx).Error(err, "Could not record a running container", "containerID", c.id)
		return
	}
	if child.Exit != nil {
		if err := r.m.finish(ctx, c, *child.Exit); err != nil {
			klog.FromContext(ctx).Error(err, "Could not record an exit; the keeper keeps it", "containerID", c.id)
		}
	}
}

// unknown: the keeper does not know a container that is recorded as running. An exit file tells its end; else the
// process is adopted if it is proven to be the same; else what is left of it is killed.
func (r *recovery) unknown(ctx context.Context, c *container) {
	rec := c.record()
	log := klog.FromContext(ctx)
	exit, exited, err := r.client.Exit(ctx, c.id)
	if r.isInterrupted(err) {
		return
	}
	if err == nil && exited {
		if err := r.m.finish(ctx, c, exit); err != nil {
			log.Error(err, "Could not record an exit; the keeper keeps it", "containerID", c.id)
		}
		return
	}
	process := wire.Process{PID: rec.PID, StartTime: rec.StartTime}
	if sameProcess(process) {
		err := r.adopt(ctx, c, process)
		if err == nil {
			log.Info("Adopted a container that its keeper had lost", "containerID", c.id, "pid", rec.PID)
			return
		}
		if r.isInterrupted(err) {
			return
		}
		log.Error(err, "Could not adopt a running container", "containerID", c.id, "pid", rec.PID)
	}
	populated, err := r.m.cfg.Cgroups.Populated(rec.CgroupPath)
	if err == nil && populated {
		r.lost(ctx, c, reasonOrphaned, "its first process was gone and others of it still ran; they were killed")
		return
	}
	r.lost(ctx, c, reasonCodeLost, "it ended while nobody could see its exit code")
}

// isInterrupted: err says nothing about the container, which must not be killed for it.
func (r *recovery) isInterrupted(err error) bool {
	if !errors.Is(err, keeper.ErrDisconnected) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	r.interrupted = err
	return true
}

func (r *recovery) adopt(ctx context.Context, c *container, process wire.Process) error {
	rec := c.record()
	a := keeper.Adoption{Child: wire.Child{ID: c.id, Kind: wire.KindContainer, Terminal: c.config.GetTty(), StdinOnce: c.config.GetStdinOnce(), Process: process}}
	if !c.config.GetTty() {
		s := &streams{}
		defer s.close()
		owner, err := r.m.sandboxes.find("sandbox", rec.SandboxID)
		if err != nil {
			return err
		}
		uid, gid := outside(owner.config, uint32(rec.UID), uint32(rec.GID))
		if err := s.open(r.m.runDir(c.id), uid, gid, false, c.config.GetStdin(), ""); err != nil {
			return err
		}
		if rec.LogPath != "" {
			if s.log, err = openLog(owner.config.GetLogDirectory(), c.config.GetLogPath()); err != nil {
				return err
			}
		}
		a.StdoutRead, a.StderrRead, a.StdinWrite, a.Log = s.stdoutRead, s.stderrRead, s.stdinWrite, s.log
		if c.config.GetStdinOnce() { // it read an end of file when the keeper was lost, and may have had its client
			a.StdinWrite = nil
		}
	}
	return r.client.Adopt(ctx, a)
}

// lost records an end that nobody saw, after what is left of the container was killed.
func (r *recovery) lost(ctx context.Context, c *container, reason, message string) {
	back, cancel := teardownContext(ctx)
	defer cancel()
	log := klog.FromContext(ctx)
	if err := r.m.releaseRun(back, c); err != nil {
		log.Error(err, "Left parts of a lost container until its removal", "containerID", c.id)
	}
	err := r.m.changeContainer(c, func(rec *record.Container) bool {
		rec.Phase, rec.ExitCode, rec.Reason, rec.Message = record.ContainerExited, lostCode, reason, message
		rec.FinishedNanos = max(time.Now().UnixNano(), rec.StartedNanos)
		return true
	})
	if err != nil {
		log.Error(err, "Could not record a lost container", "containerID", c.id)
	}
}

// clean finishes what an exit's processing could not.
func (r *recovery) clean(ctx context.Context, c *container) {
	back, cancel := teardownContext(ctx)
	defer cancel()
	if err := errors.Join(r.m.releaseRun(back, c), forget(back, r.client, c.id)); err != nil {
		klog.FromContext(ctx).Error(err, "Left parts of an exited container until its removal", "containerID", c.id)
	}
}

// strangers ends what the keeper has and no record claims: execs whose caller is gone, and creates that left no record.
func (r *recovery) strangers(ctx context.Context) {
	for _, b := range r.m.unreadable.all("") {
		delete(r.children, b.ID) // its record is there, if nobody can read it
	}
	for id := range r.children {
		klog.FromContext(ctx).Info("Ended a process that no record claims", "keeperID", id)
		if err := r.endStranger(ctx, id); err != nil {
			klog.FromContext(ctx).Error(err, "Could not end a process that no record claims", "keeperID", id)
		}
	}
}

func (r *recovery) endStranger(ctx context.Context, id string) error {
	if r.children[id].Exit == nil {
		return r.m.killProcess(ctx, id)
	}
	return forget(ctx, r.client, id)
}

// sameProcess says whether the process that has the pid now is the one that was recorded.
func sameProcess(p wire.Process) bool {
	if p.PID <= 0 {
		return false
	}
	now, err := readMember(p.PID)
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	return err == nil && now.start == p.StartTime && now.state != 'Z'
}
