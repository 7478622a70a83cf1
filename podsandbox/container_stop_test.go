package podsandbox

import (
	"errors"
	"testing"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/runtime/keeper"
)

// A daemon that is asked to end does not wait for a container's grace period, and does not cut it short.
func TestLeavingDaemonEndsStopsAndKillsNothing(t *testing.T) {
	m := &containerManager{core: &core{leaving: make(chan struct{})}}
	m.keeper.Store(&keeper.Client{}) // reaches no keeper: a signal is an error that is logged
	c := newContainer(&record.Container{ID: record.NewID(), Phase: record.ContainerRunning}, &criv1.ContainerConfig{}, [32]byte{})
	done := make(chan error, 1)
	go func() { done <- m.stopContainer(t.Context(), nil, c, time.Hour) }()
	time.Sleep(20 * time.Millisecond)
	m.Leave()
	select {
	case err := <-done:
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v, want unavailable", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the stop still waits")
	}
	if _, killed := c.stop.sent(); killed {
		t.Error("the container was killed")
	}
}
