package podsandbox

import (
	"sort"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox/record"
)

// Encoded is one entry of a list, a PodSandbox or a Container, as protobuf sends it.
type Encoded []byte

// entry is what a list says of an object, kept for as long as the object's record is the same: encoding an entry takes ten
// times as long as all the rest, and the kubelet asks for all of them every second.
type entry[R any] struct {
	record *R
	bytes  Encoded
}

// dated is an entry with what lists are sorted by.
type dated struct {
	created int64
	bytes   Encoded
}

func newestFirst(list []dated) []Encoded {
	sort.Slice(list, func(i, j int) bool { return list[i].created > list[j].created })
	out := make([]Encoded, len(list))
	for i := range list {
		out[i] = list[i].bytes
	}
	return out
}

// ListSandboxes gives the sandboxes that match every part of filter, newest first. It reads memory only and
// takes no lock, whatever else is stuck.
func (m *core) ListSandboxes(filter *criv1.PodSandboxFilter) []Encoded {
	var list []dated
	m.sandboxes.each(func(s *sandbox) {
		rec := s.record()
		if !idMatches(filter.GetId(), s.id) || !labelsMatch(filter.GetLabelSelector(), s.config.GetLabels()) {
			return
		}
		if want := filter.GetState(); want != nil && want.State != sandboxState(rec) {
			return
		}
		list = append(list, dated{rec.CreatedNanos, s.entry(rec)})
	})
	for _, bad := range m.unreadable.sandboxes(filter) {
		list = append(list, dated{bad.CreatedAt, encode(bad, nil)})
	}
	return newestFirst(list)
}

// entry is what lists say of the sandbox as rec has it.
func (s *sandbox) entry(rec *record.Sandbox) Encoded {
	if e := s.listed.Load(); e != nil && e.record == rec {
		return e.bytes
	}
	bare := &criv1.PodSandbox{Id: s.id, State: sandboxState(rec), CreatedAt: rec.CreatedNanos}
	bytes := encode(&criv1.PodSandbox{
		Id: s.id, Metadata: s.config.GetMetadata(), State: sandboxState(rec), CreatedAt: rec.CreatedNanos,
		Labels: s.config.GetLabels(), Annotations: s.config.GetAnnotations(), RuntimeHandler: rec.Handler,
	}, bare)
	s.listed.Store(&entry[record.Sandbox]{rec, bytes})
	return bytes
}

// ListContainers gives the containers that match every part of filter, newest first, from memory like ListSandboxes.
func (m *core) ListContainers(filter *criv1.ContainerFilter) []Encoded {
	var list []dated
	m.containers.each(func(c *container) {
		rec := c.record()
		if !idMatches(filter.GetId(), c.id) || !idMatches(filter.GetPodSandboxId(), rec.SandboxID) ||
			!labelsMatch(filter.GetLabelSelector(), c.config.GetLabels()) {
			return
		}
		if want := filter.GetState(); want != nil && want.State != containerState(rec) {
			return
		}
		list = append(list, dated{rec.CreatedNanos, c.entry(rec)})
	})
	for _, bad := range m.unreadable.containers(filter) {
		list = append(list, dated{bad.CreatedAt, encode(bad, nil)})
	}
	return newestFirst(list)
}

// entry is what lists say of the container as rec has it.
func (c *container) entry(rec *record.Container) Encoded {
	if e := c.listed.Load(); e != nil && e.record == rec {
		return e.bytes
	}
	bare := &criv1.Container{Id: c.id, PodSandboxId: rec.SandboxID, State: containerState(rec), CreatedAt: rec.CreatedNanos}
	bytes := encode(&criv1.Container{
		Id: c.id, PodSandboxId: rec.SandboxID, Metadata: c.config.GetMetadata(), Image: c.config.GetImage(),
		ImageRef: rec.ImageRef, ImageId: rec.ImageID, State: containerState(rec), CreatedAt: rec.CreatedNanos,
		Labels: c.config.GetLabels(), Annotations: c.config.GetAnnotations(),
	}, bare)
	c.listed.Store(&entry[record.Container]{rec, bytes})
	return bytes
}

// encode falls back to bare for a text that is no UTF-8: protobuf takes none, so that none came in a request, but a record on
// disk may hold what it likes.
func encode(full, bare proto.Message) Encoded {
	bytes, err := proto.Marshal(full)
	if err != nil {
		klog.ErrorS(err, "Listed an object without its names: they cannot be sent")
		bytes, _ = proto.Marshal(bare) // nothing but what podwright made itself
	}
	return bytes
}

// sideBySide makes the entries of a list, several at a time: figures change from call to call, so that each is made anew.
func sideBySide[T any](of []T, entry func(T) dated) []dated {
	out := make([]dated, len(of))
	share := (len(of) + lookers - 1) / lookers
	var all sync.WaitGroup
	for begin := 0; begin < len(of); begin += share {
		// Owner: this call, which waits; ends with its share.
		all.Go(func() {
			for i := begin; i < min(begin+share, len(of)); i++ {
				out[i] = entry(of[i])
			}
		})
	}
	all.Wait()
	return out
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
