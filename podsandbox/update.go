package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"google.golang.org/protobuf/encoding/protojson"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/cgroup"
)

// Updates of resources in place
//
// The record has the resources as updates left them; the configuration and the spec stay as the container was created
// with, so that a retry of its create still joins, and whoever reads the spec gets both put together (recordedSpec).
//
// Of a running container the record first says what is about to be written to the group, then the group is written, then
// the record says that it is so. A daemon that dies in between does the write again when it is back: its client never got
// an answer, and record, status and group say the same afterwards. Where the kernel refuses, the group has its old limits
// back, and the record never had others.

// updateManager changes resources of what exists.
type updateManager struct{ *core }

// UpdateContainer changes the resources that are given and leaves the others: at once where the container runs, at its
// start where it is created. All of them are changed, or none.
func (m *updateManager) UpdateContainer(ctx context.Context, id string, change *criv1.LinuxContainerResources) error {
	c, err := m.containers.find("container", id)
	if err != nil {
		return fmt.Errorf("update container: %w", err)
	}
	// The kernel may reclaim for a while before it takes a lower limit.
	return toItsEnd(ctx, m.core, c, kindUpdateContainer, "update container", teardownDeadline, func(ctx context.Context, op *Operation) error {
		return m.updateContainer(ctx, op, c, change)
	})
}

func (m *updateManager) updateContainer(ctx context.Context, op *Operation, c *container, change *criv1.LinuxContainerResources) error {
	if now, ok := m.containers.get(c.id); !ok || now != c {
		return kindf(ErrNotFound, "it was removed meanwhile")
	}
	rec := c.record()
	if rec.Phase != record.ContainerCreated && rec.Phase != record.ContainerRunning {
		return kindf(ErrPrecondition, "it is %s, neither created nor running", rec.Phase)
	}
	op.at("check limits")
	update, err := spec.UpdateResources(resourcesOf(c, rec), change, m.cfg.Node)
	if err != nil {
		return invalidSpec(err)
	}
	if _, err := m.cfg.Cgroups.Notes(update.Limits); err != nil {
		return limitError(fmt.Errorf("linux: %w", err))
	}
	all, err := protojson.Marshal(update.All)
	if err != nil {
		return kindf(ErrInvalid, "encode resources: %w", err)
	}
	if rec.Phase == record.ContainerCreated {
		op.at("record")
		return m.changeContainer(c, func(r *record.Container) bool {
			r.Resources = all
			return true
		})
	}
	op.at("announce")
	raw, err := protojson.Marshal(change)
	if err != nil {
		return kindf(ErrInvalid, "encode resources: %w", err)
	}
	if err := m.changeContainer(c, func(r *record.Container) bool { r.Updating = raw; return true }); err != nil {
		return err // nothing is written yet
	}
	op.at("write limits")
	op.on(Wait{For: WaitKernel, Name: "cgroup " + rec.CgroupPath})
	err = m.write(ctx, c, update)
	m.settle(ctx, c, all, err == nil)
	return err
}

// write changes a running container's group and processes, or puts back what it changed.
func (m *updateManager) write(ctx context.Context, c *container, update *spec.Update) error {
	group := c.record().CgroupPath
	score := func(from, to int) error {
		if from == to {
			return nil
		}
		return m.cfg.Cgroups.SetOOMScore(group, from, to)
	}
	err := score(update.WasAdj, update.WillAdj)
	if err == nil {
		err = m.cfg.Cgroups.Update(ctx, group, update.Limits)
	}
	if err == nil {
		return nil
	}
	// A file that this kernel lacks is not there either, and the group still is.
	gone := errors.Is(err, fs.ErrNotExist) && !errors.Is(err, cgroup.ErrNotSupported)
	if phase := c.record().Phase; phase != record.ContainerRunning || gone {
		return kindf(ErrPrecondition, "it ended meanwhile: %w", err)
	}
	if back := score(update.WillAdj, update.WasAdj); back != nil {
		err = errors.Join(err, fmt.Errorf("put oom_score_adj back: %w", back))
	}
	if errors.Is(err, cgroup.ErrBelowUsage) {
		return kindf(ErrPrecondition, "linux.memory_limit_in_bytes \"%d\": %w; the limits are as before", update.All.GetMemoryLimitInBytes(), err)
	}
	return limitError(err)
}

// settle records how a write went. That it is over holds in memory even where the disk takes no record: after a restart
// the announced write is made again, which changes nothing or does what its client was told.
func (m *updateManager) settle(ctx context.Context, c *container, all []byte, written bool) {
	err := m.changeContainer(c, func(r *record.Container) bool {
		if r.Updating = nil; written {
			r.Resources = all
		}
		return true
	})
	if err != nil {
		klog.FromContext(ctx).Error(err, "The end of an update is known in memory only", "containerID", c.id)
	}
}

// finishUpdates makes the writes again that a daemon announced and did not see the end of.
func (m *updateManager) finishUpdates(ctx context.Context) {
	m.containers.each(func(c *container) {
		rec := c.record()
		if len(rec.Updating) == 0 {
			return
		}
		var all []byte
		change, err := decodeResources(rec.Updating)
		if err == nil && rec.Phase == record.ContainerRunning {
			var update *spec.Update
			if update, err = spec.UpdateResources(resourcesOf(c, rec), change, m.cfg.Node); err == nil {
				if all, err = protojson.Marshal(update.All); err == nil {
					err = m.write(ctx, c, update)
				}
			}
		}
		if err != nil {
			klog.FromContext(ctx).Error(err, "Could not finish an update that was interrupted", "containerID", c.id)
		}
		m.settle(ctx, c, all, err == nil && all != nil)
	})
}

// resourcesOf gives what a container was created with and updates made of it.
func resourcesOf(c *container, rec *record.Container) *criv1.LinuxContainerResources {
	if len(rec.Resources) > 0 {
		if all, err := decodeResources(rec.Resources); err == nil { // loadContainer refuses others
			return all
		}
	}
	return c.config.GetLinux().GetResources()
}

func decodeResources(raw []byte) (*criv1.LinuxContainerResources, error) {
	out := &criv1.LinuxContainerResources{}
	if len(raw) == 0 {
		return out, nil
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, out); err != nil {
		return nil, fmt.Errorf("decode resources: %w", err)
	}
	return out, nil
}

// UpdateSandbox records what the kubelet makes of a pod's resources. It enforces them itself, on the pod's group, which it
// owns; verbose status shows them.
func (m *updateManager) UpdateSandbox(id string, overhead, resources *criv1.LinuxContainerResources) error {
	s, err := m.sandboxes.find("sandbox", id)
	if err != nil {
		return fmt.Errorf("update sandbox: %w", err)
	}
	given := map[string]*criv1.LinuxContainerResources{"overhead": overhead, "resources": resources}
	raw := map[string][]byte{}
	for field, value := range given {
		if value == nil {
			continue
		}
		if raw[field], err = protojson.Marshal(value); err != nil {
			return kindf(ErrInvalid, "update sandbox %s: %s: %w", s.id, field, err)
		}
	}
	return m.changeSandbox(s, func(r *record.Sandbox) {
		if raw["overhead"] != nil {
			r.Overhead = raw["overhead"]
		}
		if raw["resources"] != nil {
			r.Resources = raw["resources"]
		}
	})
}
