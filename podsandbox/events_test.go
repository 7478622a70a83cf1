package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func tellNumbered(e *events, i int) {
	e.tell(eventCreated, fmt.Sprint(i), lastOf(nil))
}

func TestEventsWithoutSubscribersCostNothing(t *testing.T) {
	var e events
	asked := false
	e.tell(eventCreated, "x", func() (*criv1.PodSandboxStatus, []*criv1.ContainerStatus) {
		asked = true
		return nil, nil
	})
	queue := e.subscribe()
	e.unsubscribe(queue)
	e.unsubscribe(queue) // twice is once
	tellNumbered(&e, 1)
	if asked || e.listening.Load() != 0 {
		t.Errorf("statuses were made for nobody, or %d subscribers are left", e.listening.Load())
	}
}

func TestStuckSubscriberGetsAnErrorAndHoldsNobodyUp(t *testing.T) {
	m := &Manager{core: &core{leaving: make(chan struct{})}}
	subscribed, stuck, end := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	sent := 0
	// Owner: the test, which waits for end.
	go func() {
		end <- m.WatchEvents(t.Context(), func() error { close(subscribed); return nil }, func(event *criv1.ContainerEventResponse) error {
			<-stuck
			if event.GetContainerId() != fmt.Sprint(sent) {
				t.Errorf("event %d is of %s", sent, event.GetContainerId())
			}
			sent++
			return nil
		})
	}()
	<-subscribed
	other := m.events.subscribe()
	begin, told := time.Now(), 0
	for ; m.events.listening.Load() == 2; told++ {
		tellNumbered(&m.events, told)
		<-other
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("%d events took %s", told, took)
	}
	close(stuck)
	if err := <-end; !errors.Is(err, ErrResourceLimit) || sent < eventQueue {
		t.Errorf("got %v after %d events, want ErrResourceLimit after at least %d", err, sent, eventQueue)
	}
	tellNumbered(&m.events, told)
	if event := <-other; event.GetContainerId() != fmt.Sprint(told) {
		t.Errorf("the other subscriber got %s, want %d", event.GetContainerId(), told)
	}
}

func TestWatchEndsWithItsClientAndWithTheDaemon(t *testing.T) {
	failed := errors.New("connection lost")
	never := func(*criv1.ContainerEventResponse) error { return nil }
	for name, test := range map[string]struct {
		run  func(m *Manager, cancel func())
		send func(*criv1.ContainerEventResponse) error
		want error
	}{
		"client leaves":   {func(_ *Manager, cancel func()) { cancel() }, never, context.Canceled},
		"daemon leaves":   {func(m *Manager, _ func()) { m.Leave() }, never, ErrUnavailable},
		"send that fails": {func(m *Manager, _ func()) { tellNumbered(&m.events, 1) }, func(*criv1.ContainerEventResponse) error { return failed }, failed},
	} {
		t.Run(name, func(t *testing.T) {
			m := &Manager{core: &core{leaving: make(chan struct{})}}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err := m.WatchEvents(ctx, func() error { test.run(m, cancel); return nil }, test.send)
			if !errors.Is(err, test.want) || m.events.listening.Load() != 0 {
				t.Errorf("got %v with %d subscribers left, want %v and none", err, m.events.listening.Load(), test.want)
			}
		})
	}
}
