package podsandbox

import (
	"sort"
	"strings"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/record"
)

// ListSandboxes gives the sandboxes that match every part of filter, newest first. It reads memory only and
// takes no lock, whatever else is stuck.
func (m *core) ListSandboxes(filter *criv1.PodSandboxFilter) []*criv1.PodSandbox {
	list := []*criv1.PodSandbox{}
	m.sandboxes.each(func(s *sandbox) {
		rec := s.record()
		if !idMatches(filter.GetId(), s.id) || !labelsMatch(filter.GetLabelSelector(), s.config.GetLabels()) {
			return
		}
		state := sandboxState(rec)
		if want := filter.GetState(); want != nil && want.State != state {
			return
		}
		list = append(list, &criv1.PodSandbox{
			Id: s.id, Metadata: s.config.GetMetadata(), State: state, CreatedAt: rec.CreatedNanos,
			Labels: s.config.GetLabels(), Annotations: s.config.GetAnnotations(), RuntimeHandler: rec.Handler,
		})
	})
	list = append(list, m.unreadable.sandboxes(filter)...)
	sort.Slice(list, func(i, j int) bool { return list[i].CreatedAt > list[j].CreatedAt })
	return list
}

// ListContainers gives the containers that match every part of filter, newest first, from memory like ListSandboxes.
func (m *core) ListContainers(filter *criv1.ContainerFilter) []*criv1.Container {
	list := []*criv1.Container{}
	m.containers.each(func(c *container) {
		rec := c.record()
		if !idMatches(filter.GetId(), c.id) || !idMatches(filter.GetPodSandboxId(), rec.SandboxID) ||
			!labelsMatch(filter.GetLabelSelector(), c.config.GetLabels()) {
			return
		}
		state := containerState(rec)
		if want := filter.GetState(); want != nil && want.State != state {
			return
		}
		list = append(list, &criv1.Container{
			Id: c.id, PodSandboxId: rec.SandboxID, Metadata: c.config.GetMetadata(), Image: c.config.GetImage(),
			ImageRef: rec.ImageRef, ImageId: rec.ImageID, State: state, CreatedAt: rec.CreatedNanos,
			Labels: c.config.GetLabels(), Annotations: c.config.GetAnnotations(),
		})
	})
	list = append(list, m.unreadable.containers(filter)...)
	sort.Slice(list, func(i, j int) bool { return list[i].CreatedAt > list[j].CreatedAt })
	return list
}

// idMatches: an empty id matches everything, and a prefix counts, as crictl's short ids need (B6).
func idMatches(want, id string) bool { return strings.HasPrefix(id, want) }

func labelsMatch(selector, labels map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

func sandboxState(rec *record.Sandbox) criv1.PodSandboxState {
	if rec.Phase == record.SandboxReady {
		return criv1.PodSandboxState_SANDBOX_READY
	}
	return criv1.PodSandboxState_SANDBOX_NOTREADY
}

func containerState(rec *record.Container) criv1.ContainerState {
	switch rec.Phase {
	case record.ContainerCreated:
		return criv1.ContainerState_CONTAINER_CREATED
	case record.ContainerRunning:
		return criv1.ContainerState_CONTAINER_RUNNING
	case record.ContainerExited:
		return criv1.ContainerState_CONTAINER_EXITED
	}
	return criv1.ContainerState_CONTAINER_UNKNOWN
}
