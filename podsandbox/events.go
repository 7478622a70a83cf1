package podsandbox

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventQueue is how many events a subscriber may be behind before its stream ends.
const eventQueue = 1000

// What happens to an object, in the API's words. A sandbox is told of like a container, under its own id.
const (
	eventCreated = criv1.ContainerEventType_CONTAINER_CREATED_EVENT
	eventStarted = criv1.ContainerEventType_CONTAINER_STARTED_EVENT
	eventStopped = criv1.ContainerEventType_CONTAINER_STOPPED_EVENT
	eventDeleted = criv1.ContainerEventType_CONTAINER_DELETED_EVENT
)

// events tells subscribers what happens to sandboxes and containers, once lists and statuses show it.
//
// Each event is made and queued with mu held: the statuses in it are never older than those of the event before it.
// Whoever publishes holds the object's commit lock, so that its events come in the order of its life. A subscriber that
// is eventQueue behind loses its stream, not single events: it has to list again, and knows it.
type events struct {
	listening atomic.Int32 // subscribers; for none of them nothing is made

	mu     sync.Mutex // mu guards queues, and the closing of each.
	queues map[chan *criv1.ContainerEventResponse]bool
}

// tell publishes an event of the object id. It waits for nobody but other publishers, who wait for nothing.
func (e *events) tell(kind criv1.ContainerEventType, id string, pod func() (*criv1.PodSandboxStatus, []*criv1.ContainerStatus)) {
	if e.listening.Load() == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	event := &criv1.ContainerEventResponse{ContainerId: id, ContainerEventType: kind, CreatedAt: time.Now().UnixNano()}
	event.PodSandboxStatus, event.ContainersStatuses = pod()
	for queue := range e.queues {
		select {
		case queue <- event: // never changed from here on: all subscribers share it
		default:
			e.dropLocked(queue)
		}
	}
}

func (e *events) subscribe() chan *criv1.ContainerEventResponse {
	queue := make(chan *criv1.ContainerEventResponse, eventQueue)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.queues == nil {
		e.queues = map[chan *criv1.ContainerEventResponse]bool{}
	}
	e.queues[queue] = true
	e.listening.Add(1)
	return queue
}

func (e *events) unsubscribe(queue chan *criv1.ContainerEventResponse) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dropLocked(queue)
}

// dropLocked closes a queue, whose reader still gets what is in it; one that was dropped before is done.
func (e *events) dropLocked(queue chan *criv1.ContainerEventResponse) {
	if e.queues[queue] {
		delete(e.queues, queue)
		e.listening.Add(-1)
		close(queue)
	}
}

// WatchEvents calls subscribed and then send with every event from that moment on, until ctx ends, one of them fails, the
// daemon stops (ErrUnavailable), or send is so slow that events would be lost (ErrResourceLimit). What happened before,
// and what recovery finds before the socket opens, is in the lists: a client subscribes first and lists then.
func (m *Manager) WatchEvents(ctx context.Context, subscribed func() error, send func(*criv1.ContainerEventResponse) error) error {
	queue := m.events.subscribe()
	defer m.events.unsubscribe(queue)
	if err := subscribed(); err != nil {
		return err
	}
	for {
		select {
		case event, ok := <-queue:
			if !ok {
				return kindf(ErrResourceLimit, "watch events: the client is more than %d events behind; list, and watch again", eventQueue)
			}
			if err := send(event); err != nil {
				return err
			}
		case <-m.leaving:
			return kindf(ErrUnavailable, "watch events: podwright is restarting; watch again, and list")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// containerEvent is what a change of phase is to subscribers. A start that failed is a stop: the container has its end.
func containerEvent(was, now criv1.ContainerState) (criv1.ContainerEventType, bool) {
	switch {
	case was == now:
	case now == criv1.ContainerState_CONTAINER_RUNNING:
		return eventStarted, true
	case now == criv1.ContainerState_CONTAINER_EXITED:
		return eventStopped, true
	}
	return 0, false
}

// podOf gives what an event about a container tells of its pod, as the lists show it now. The status is nil where the
// sandbox is not known.
func podOf(m *core, sandboxID string) func() (*criv1.PodSandboxStatus, []*criv1.ContainerStatus) {
	return func() (*criv1.PodSandboxStatus, []*criv1.ContainerStatus) {
		var status *criv1.PodSandboxStatus
		if s, ok := m.sandboxes.get(sandboxID); ok {
			status = sandboxStatus(s, s.record())
		} else if b, ok := m.unreadable.find(kindSandbox, sandboxID); ok {
			status = badSandboxStatus(b)
		}
		return status, statusesOf(m, sandboxID)
	}
}

// lastOf gives what the deletion of a sandbox tells: its last status, and no containers.
func lastOf(status *criv1.PodSandboxStatus) func() (*criv1.PodSandboxStatus, []*criv1.ContainerStatus) {
	return func() (*criv1.PodSandboxStatus, []*criv1.ContainerStatus) { return status, nil }
}

// showSandbox lists a sandbox that was made, or whose teardown did not finish, and tells of it.
func showSandbox(m *core, s *sandbox) {
	s.commit.Lock()
	defer s.commit.Unlock()
	m.sandboxes.put(s.id, s)
	m.sandboxKeys.Store(sandboxKey(s.config.GetMetadata()), s.id)
	m.events.tell(eventCreated, s.id, podOf(m, s.id))
	if sandboxState(s.record()) == criv1.PodSandboxState_SANDBOX_READY {
		m.events.tell(eventStarted, s.id, podOf(m, s.id))
	}
}

// showContainer does the same for a container. It holds the commit lock, or a client that found the container in a list
// and started it could be told of that first.
func showContainer(m *core, c *container) {
	c.commit.Lock()
	defer c.commit.Unlock()
	m.containers.put(c.id, c)
	m.events.tell(eventCreated, c.id, podOf(m, c.record().SandboxID))
}
