package podsandbox

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sort"
	"strings"
	"sync"
	"sync/atomic"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox/record"
)

// sandbox is one sandbox in memory.
//
//	Creating ──> Ready ──Stop, lost netns──> NotReady ──Remove──> gone
//	    └─ any failure ── teardown ──> gone, or NotReady where the way back did not finish
type sandbox struct {
	id     string
	config *criv1.PodSandboxConfig // never changed
	digest [sha256.Size]byte       // of config
	op     *opLock                 // serialises Run, Stop, Remove

	// commit serialises writers of the record, on disk and here; readers take cur without it.
	commit  sync.Mutex
	cur     atomic.Pointer[record.Sandbox]
	listed  atomic.Pointer[entry[record.Sandbox]]
	deleted bool // commit guards it: the record is deleted, and nobody may write it again
}

func (s *sandbox) record() *record.Sandbox { return s.cur.Load() }

// container is one container in memory.
//
//	Creating ──> Created ──Start──> Running ──exit──> Exited ──Remove──> gone
//	                └─ failed start ── Exited (StartError, 128)
type container struct {
	id     string
	config *criv1.ContainerConfig // never changed
	digest [sha256.Size]byte      // of config and sandbox
	op     *opLock                // serialises Start and Remove; Stop passes through it

	commit  sync.Mutex
	cur     atomic.Pointer[record.Container]
	listed  atomic.Pointer[entry[record.Container]]
	deleted bool          // as a sandbox's
	exited  chan struct{} // closed once the record says Exited
	stop    stopRequest
	exec    atomic.Pointer[execTemplate] // made by the first exec without a terminal
	execTTY atomic.Pointer[execTemplate] // and with one
}

func (c *container) record() *record.Container { return c.cur.Load() }

func newSandbox(rec *record.Sandbox, config *criv1.PodSandboxConfig, digest [sha256.Size]byte) *sandbox {
	s := &sandbox{id: rec.ID, config: config, digest: digest, op: newOpLock()}
	s.cur.Store(rec)
	return s
}

func newContainer(rec *record.Container, config *criv1.ContainerConfig, digest [sha256.Size]byte) *container {
	c := &container{id: rec.ID, config: config, digest: digest, op: newOpLock(), exited: make(chan struct{})}
	c.cur.Store(rec)
	c.stop.signalled, c.stop.killed = rec.Signalled, rec.Killed
	if rec.Phase == record.ContainerExited {
		close(c.exited)
	}
	return c
}

// table holds objects of one kind by id. Readers never wait for writers.
type table[T any] struct {
	byID sync.Map // id -> *T
}

func (t *table[T]) put(id string, v *T) { t.byID.Store(id, v) }

// delete says whether it was there.
func (t *table[T]) delete(id string) bool {
	_, was := t.byID.LoadAndDelete(id)
	return was
}

// get takes a whole id only.
func (t *table[T]) get(id string) (*T, bool) {
	v, ok := t.byID.Load(id)
	if !ok {
		return nil, false
	}
	return v.(*T), true
}

func (t *table[T]) each(fn func(*T)) {
	t.byID.Range(func(_, v any) bool { fn(v.(*T)); return true })
}

// find takes a whole id or an unambiguous prefix of one (B6).
func (t *table[T]) find(kind, id string) (*T, error) {
	if v, ok := t.byID.Load(id); ok {
		return v.(*T), nil
	}
	if id == "" {
		return nil, kindf(ErrNotFound, "%s %q: not found", kind, id)
	}
	var found []*T
	t.byID.Range(func(k, v any) bool {
		if strings.HasPrefix(k.(string), id) {
			found = append(found, v.(*T))
		}
		return len(found) < 2
	})
	switch len(found) {
	case 0:
		return nil, kindf(ErrNotFound, "%s %q: not found", kind, id)
	case 1:
		return found[0], nil
	}
	return nil, kindf(ErrInvalid, "%s %q: the prefix fits more than one id", kind, id)
}

// changeSandbox writes what change makes of the record, to disk first and then to memory.
//
// What leads towards the end holds in memory even where the disk takes no record: a full disk must not keep a pod
// from being stopped, which is what frees it. After a restart recovery learns the same from kernel and keeper.
func (m *core) changeSandbox(s *sandbox, change func(*record.Sandbox)) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	if s.deleted {
		return nil
	}
	was := s.record()
	next := *was
	change(&next)
	err := m.cfg.Records.PutSandbox(&next)
	if err == nil || next.Phase == record.SandboxNotReady {
		s.cur.Store(&next)
		if was.Phase == record.SandboxReady && next.Phase == record.SandboxNotReady {
			m.events.tell(eventStopped, s.id, podOf(m, s.id))
		}
	}
	if err != nil {
		return fmt.Errorf("record sandbox %s: %w", s.id, err)
	}
	return nil
}

// endSandbox is changeSandbox on the way to the end, which an unwritten record does not stop.
func (m *core) endSandbox(ctx context.Context, s *sandbox, change func(*record.Sandbox)) {
	if err := m.changeSandbox(s, change); err != nil {
		klog.FromContext(ctx).Error(err, "A sandbox's end is known in memory only", "sandboxID", s.id)
	}
}

// changeContainer does the same for a container; change answers false to leave it as it is.
func (m *core) changeContainer(c *container, change func(*record.Container) bool) error {
	c.commit.Lock()
	defer c.commit.Unlock()
	was := c.record()
	next := *was
	if c.deleted || !change(&next) {
		return nil
	}
	err := m.cfg.Records.PutContainer(&next)
	updated := len(was.Updating) > 0 && len(next.Updating) == 0 // what was announced on disk is over
	if err == nil || next.Phase == record.ContainerExited || updated {
		c.cur.Store(&next)
		if next.Phase == record.ContainerExited && was.Phase != record.ContainerExited {
			close(c.exited)
		}
		if kind, ok := containerEvent(containerState(was), containerState(&next)); ok {
			m.events.tell(kind, c.id, podOf(m, next.SandboxID))
		}
	}
	if err != nil {
		return fmt.Errorf("record container %s: %w", c.id, err)
	}
	return nil
}

// deleteSandbox and deleteContainer delete the record for good: who still works on the object writes it no more.
func (m *core) deleteSandbox(s *sandbox) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	err := m.cfg.Records.DeleteSandbox(s.id)
	s.deleted = err == nil
	return err
}

func (m *core) deleteContainer(c *container) error {
	c.commit.Lock()
	defer c.commit.Unlock()
	err := m.cfg.Records.DeleteContainer(c.id)
	c.deleted = err == nil
	return err
}

// containersOf gives the containers of a sandbox.
func (m *core) containersOf(sandboxID string) []*container {
	var list []*container
	m.containers.each(func(c *container) {
		if c.record().SandboxID == sandboxID {
			list = append(list, c)
		}
	})
	return list
}

// statusesOf gives the statuses of a sandbox's containers, newest first as in lists.
func statusesOf(m *core, sandboxID string) []*criv1.ContainerStatus {
	var list []*criv1.ContainerStatus
	for _, c := range m.containersOf(sandboxID) {
		list = append(list, containerStatus(c, c.record()))
	}
	sort.Slice(list, func(i, j int) bool { return list[i].CreatedAt > list[j].CreatedAt })
	return list
}

// podName is how operators call a sandbox.
func podName(config *criv1.PodSandboxConfig) string {
	return config.GetMetadata().GetNamespace() + "/" + config.GetMetadata().GetName()
}

// sandboxKey is the identity a client gives a sandbox; containerKey that of a container.
func sandboxKey(md *criv1.PodSandboxMetadata) string {
	return fmt.Sprintf("sandbox %s/%s/%s/%d", md.GetNamespace(), md.GetName(), md.GetUid(), md.GetAttempt())
}

func containerKey(sandboxID string, md *criv1.ContainerMetadata) string {
	return fmt.Sprintf("container %s/%d in sandbox %s", md.GetName(), md.GetAttempt(), sandboxID)
}
