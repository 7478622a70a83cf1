package podsandbox

import (
	"errors"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/isolation"
	"github.com/podwright/podwright/podsandbox/record"
)

// watched is a watch over containers that run, by id.
func watched(look func(*container) (*isolation.Report, error), ids ...string) *isolationWatch {
	w := newIsolationWatch(&core{leaving: make(chan struct{}), cfg: Config{IsolationInterval: time.Hour}})
	w.look = look
	for _, id := range ids {
		rec := &record.Container{ID: id, Phase: record.ContainerRunning, StartedNanos: time.Now().Add(-time.Minute).UnixNano()}
		w.containers.put(id, newContainer(rec, &criv1.ContainerConfig{}, [32]byte{}))
	}
	return w
}

func tally(confirmed, weaker, unknown int) map[string]int {
	return map[string]int{isolationConfirmed: confirmed, isolationWeaker: weaker, isolationUnknown: unknown}
}

func wantCounts(t *testing.T, w *isolationWatch, want map[string]int) {
	t.Helper()
	if got := w.counts(); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestWatchCountsByWhatTheReportSays(t *testing.T) {
	var looks atomic.Int32
	w := watched(func(c *container) (*isolation.Report, error) {
		looks.Add(1)
		switch c.id {
		case "weak":
			return &isolation.Report{Findings: []isolation.Finding{{Aspect: "seccomp", Differs: true}}}, nil
		case "unread":
			return nil, errors.New("no such luck")
		}
		return &isolation.Report{Findings: []isolation.Finding{{Aspect: "seccomp"}}}, nil
	}, "good", "weak", "unread")
	wantCounts(t, w, tally(0, 0, 3)) // nobody has looked yet
	w.pass(t.Context(), time.Now())
	wantCounts(t, w, tally(1, 1, 1))
	w.pass(t.Context(), time.Now())
	if got := looks.Load(); got != 3 {
		t.Errorf("%d looks within one interval, want 3", got)
	}
	w.pass(t.Context(), time.Now().Add(2*time.Hour))
	if got := looks.Load(); got != 6 {
		t.Errorf("%d looks after another interval, want 6", got)
	}
	wantCounts(t, w, tally(1, 1, 1))

	young := newContainer(&record.Container{ID: "young", Phase: record.ContainerRunning, StartedNanos: time.Now().UnixNano()}, &criv1.ContainerConfig{}, [32]byte{})
	w.containers.put("young", young)
	w.pass(t.Context(), time.Now())
	wantCounts(t, w, tally(1, 1, 2)) // a start is not looked at before it is over

	for _, id := range []string{"weak", "young"} { // they end
		c, _ := w.containers.get(id)
		rec := *c.record()
		rec.Phase = record.ContainerExited
		c.cur.Store(&rec)
	}
	wantCounts(t, w, tally(1, 0, 1))
	w.pass(t.Context(), time.Now())
	if _, kept := w.verdicts["weak"]; kept {
		t.Error("what was said of a container is kept after its end")
	}
}

// A look that hangs in the kernel makes its container unknown, is never made twice, and keeps no daemon from ending.
func TestWatchIsNotHeldUpByALookThatHangs(t *testing.T) {
	hang, looks := make(chan struct{}), atomic.Int32{}
	w := watched(func(c *container) (*isolation.Report, error) {
		looks.Add(1)
		<-hang
		return &isolation.Report{}, nil
	}, "stuck")
	begin := time.Now()
	w.pass(t.Context(), time.Now())
	if took := time.Since(begin); took > watchPatience+2*time.Second {
		t.Errorf("it waited for %v", took)
	}
	wantCounts(t, w, tally(0, 0, 1))
	w.pass(t.Context(), time.Now().Add(2*time.Hour))
	if got := looks.Load(); got != 1 {
		t.Errorf("%d looks at a container that hangs, want 1", got)
	}
	close(hang)
	for end := time.Now().Add(5 * time.Second); w.counts()[isolationConfirmed] != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the late answer does not count: %v", w.counts())
		}
	}
	ended := make(chan struct{})
	go func() { w.run(t.Context()); close(ended) }()
	w.Leave()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("it goes on after the daemon left")
	}
}
