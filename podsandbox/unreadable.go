package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/cni"
	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/runtime/namespace"
)

// Records that cannot be read
//
// One bad record stops nothing (B14): what it stands for is listed, a sandbox as not ready, a container as unknown; what
// runs of it is left alone; and Remove takes away all that can be found by the id, the record last.

const (
	kindSandbox   = "sandbox"
	kindContainer = "container"
	// badName is what such an object is called: its own name is in the record.
	badName = "unreadable-record"
	// badAnnotation carries what is wrong with the record.
	badAnnotation = "podwright.dev/unreadable-record"
)

// unreadable are the records that could not be used; they stay on disk until they are removed.
type unreadable struct{ list atomic.Pointer[[]record.Bad] }

// keep adds some, and tells the operator.
func (u *unreadable) keep(ctx context.Context, bad []record.Bad) {
	if len(bad) == 0 {
		return
	}
	all := append([]record.Bad{}, u.all("")...)
	for _, b := range bad {
		klog.FromContext(ctx).Error(b.Err, "Kept a record that cannot be read; it is listed until it is removed", "kind", b.Kind, "id", b.ID, "path", b.Path)
		all = append(all, b)
	}
	u.list.Store(&all)
}

// all gives those of one kind, or of both for "".
func (u *unreadable) all(kind string) []record.Bad {
	all := u.list.Load()
	if all == nil {
		return nil
	}
	var list []record.Bad
	for _, b := range *all {
		if kind == "" || b.Kind == kind {
			list = append(list, b)
		}
	}
	return list
}

// find finds one by its id or an unambiguous beginning of it.
func (u *unreadable) find(kind, id string) (record.Bad, bool) {
	var found []record.Bad
	for _, b := range u.all(kind) {
		if id != "" && strings.HasPrefix(b.ID, id) {
			found = append(found, b)
		}
	}
	if len(found) != 1 {
		return record.Bad{}, false
	}
	return found[0], true
}

func (u *unreadable) drop(kind, id string) {
	var rest []record.Bad
	for _, b := range u.all("") {
		if b.ID != id || b.Kind != kind {
			rest = append(rest, b)
		}
	}
	u.list.Store(&rest)
}

// removeBadSandbox takes away what a sandbox is made of, found by its id. Which network it was on is not known any more:
// DEL runs with today's configuration.
func (m *sandboxManager) removeBadSandbox(ctx context.Context, id string) error {
	b, ok := m.unreadable.find(kindSandbox, id)
	if !ok {
		return nil
	}
	back, cancel := teardownContext(ctx)
	defer cancel()
	err := m.killProcess(back, b.ID)
	err = errors.Join(err, m.cfg.Network.Detach(back, cni.Pod{SandboxID: b.ID, NetnsPath: m.cfg.Namespaces.Path(b.ID, namespace.Net)}, nil))
	err = errors.Join(err, m.cfg.Namespaces.Remove(back, b.ID), m.cfg.Files.Remove(back, b.ID))
	if pod, podErr := m.cfg.Cgroups.Pod(m.cfg.CgroupParent, b.ID); podErr == nil {
		err = errors.Join(err, m.cfg.Cgroups.RemovePod(back, pod.Scope))
	}
	if err == nil {
		err = m.cfg.Records.DeleteSandbox(b.ID)
	}
	if err != nil {
		return fmt.Errorf("remove sandbox %s, whose record cannot be read: %w", b.ID, err)
	}
	unlabelSandbox(m.core, b.ID)
	m.unreadable.drop(kindSandbox, b.ID)
	m.events.tell(eventDeleted, b.ID, lastOf(badSandboxStatus(b)))
	return nil
}

// removeBadContainer does the same for a container. Its cgroup is looked for below the default parent only.
func (m *containerManager) removeBadContainer(ctx context.Context, id string) error {
	b, ok := m.unreadable.find(kindContainer, id)
	if !ok {
		return nil
	}
	back, cancel := teardownContext(ctx)
	defer cancel()
	group := m.cfg.Cgroups.Find(m.cfg.CgroupParent, b.ID)
	err := errors.Join(m.killProcess(back, b.ID), m.cfg.Cgroups.Kill(back, group), m.cfg.Cgroups.Remove(back, group),
		os.RemoveAll(m.runDir(b.ID)), os.RemoveAll(m.stateDir(b.ID)), m.cfg.Images.Release(back, b.ID))
	if err == nil {
		err = m.cfg.Records.DeleteContainer(b.ID)
	}
	if err != nil {
		return fmt.Errorf("remove container %s, whose record cannot be read: %w", b.ID, err)
	}
	m.unreadable.drop(kindContainer, b.ID)
	m.events.tell(eventDeleted, b.ID, lastOf(nil)) // which pod it was of is in the record
	return nil
}

// sandboxes gives those a filter can match: nothing but the id and the state is known.
func (u *unreadable) sandboxes(filter *criv1.PodSandboxFilter) []*criv1.PodSandbox {
	var list []*criv1.PodSandbox
	for _, b := range u.all(kindSandbox) {
		s := badSandboxStatus(b)
		if idMatches(filter.GetId(), b.ID) && len(filter.GetLabelSelector()) == 0 && (filter.GetState() == nil || filter.GetState().State == s.State) {
			list = append(list, &criv1.PodSandbox{Id: s.Id, Metadata: s.Metadata, State: s.State, CreatedAt: s.CreatedAt, Annotations: s.Annotations})
		}
	}
	return list
}

func (u *unreadable) containers(filter *criv1.ContainerFilter) []*criv1.Container {
	var list []*criv1.Container
	for _, b := range u.all(kindContainer) {
		c := badContainerStatus(b)
		if idMatches(filter.GetId(), b.ID) && len(filter.GetLabelSelector()) == 0 && filter.GetPodSandboxId() == "" &&
			(filter.GetState() == nil || filter.GetState().State == c.State) {
			list = append(list, &criv1.Container{
				Id: c.Id, Metadata: c.Metadata, State: c.State, CreatedAt: c.CreatedAt, Annotations: c.Annotations, Image: c.Image, ImageRef: c.ImageRef,
			})
		}
	}
	return list
}

func badSandboxStatus(b record.Bad) *criv1.PodSandboxStatus {
	return &criv1.PodSandboxStatus{
		Id: b.ID, State: criv1.PodSandboxState_SANDBOX_NOTREADY, CreatedAt: 1, // the kubelet takes 0 for no answer
		Metadata:    &criv1.PodSandboxMetadata{Name: badName, Namespace: badName, Uid: b.ID},
		Annotations: map[string]string{badAnnotation: b.Err.Error()},
		Network:     &criv1.PodSandboxNetworkStatus{},
	}
}

func badContainerStatus(b record.Bad) *criv1.ContainerStatus {
	return &criv1.ContainerStatus{
		Id: b.ID, State: criv1.ContainerState_CONTAINER_UNKNOWN, CreatedAt: 1,
		Metadata:    &criv1.ContainerMetadata{Name: badName},
		Annotations: map[string]string{badAnnotation: b.Err.Error()},
		Image:       &criv1.ImageSpec{Image: badName}, ImageRef: badName, Reason: "UnreadableRecord", Message: b.Err.Error(),
	}
}
