package podsandbox

import (
	"context"
	"errors"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox/isolation"
	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/runtime/wire"
)

// What the watch knows of a running container's isolation; the values of a metric's label.
const (
	isolationConfirmed = "confirmed"
	isolationWeaker    = "weaker"  // less holds than was asked
	isolationUnknown   = "unknown" // not looked at yet, or the look failed
)

const (
	watchTick     = 5 * time.Second       // between two looks at what there is to do
	watchPause    = 20 * time.Millisecond // between two containers: a full node after a restart is no reason to hurry
	watchPatience = 5 * time.Second       // for one look; longer it goes on alone
)

// isolationWatch makes the isolation report of every running container some seconds after its start and again each
// interval, beside everything else and one at a time. It counts and logs what differs, and ends nothing.
type isolationWatch struct {
	*core
	look     func(*container) (*isolation.Report, error)
	interval time.Duration // 0: no watch

	mu       sync.Mutex         // mu guards verdicts and what is in them.
	verdicts map[string]verdict // by container id, of running ones
}

type verdict struct {
	at          time.Time
	state       string
	differences string
	looking     bool // a look is under way: never two at one container
}

func newIsolationWatch(m *core) *isolationWatch {
	w := &isolationWatch{core: m, interval: m.cfg.IsolationInterval, verdicts: map[string]verdict{}}
	w.look = func(c *container) (*isolation.Report, error) {
		rec := c.record()
		ociSpec, err := m.recordedSpec(c.id)
		if err != nil {
			return nil, err
		}
		return m.isolationReport(c, wire.Process{PID: rec.PID, StartTime: rec.StartTime}, ociSpec)
	}
	return w
}

// run goes on until ctx or the daemon's leave ends it.
func (w *isolationWatch) run(ctx context.Context) {
	if w.interval == 0 {
		return
	}
	ticks := time.NewTicker(watchTick)
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
			w.pass(ctx, time.Now())
		case <-w.leaving:
			return
		case <-ctx.Done():
			return
		}
	}
}

// pass looks at every container that is due.
func (w *isolationWatch) pass(ctx context.Context, now time.Time) {
	running := map[string]*container{}
	w.containers.each(func(c *container) {
		if rec := c.record(); rec.Phase == record.ContainerRunning && now.Sub(time.Unix(0, rec.StartedNanos)) >= watchTick {
			running[c.id] = c
		}
	})
	w.mu.Lock()
	for id, v := range w.verdicts {
		switch {
		case running[id] == nil && !v.looking:
			delete(w.verdicts, id)
		case v.looking || now.Sub(v.at) < w.interval:
			delete(running, id)
		}
	}
	w.mu.Unlock()
	for _, c := range running {
		w.judge(ctx, c)
		select {
		case <-time.After(watchPause):
		case <-w.leaving:
			return
		case <-ctx.Done():
			return
		}
	}
}

// judge looks at one container, and waits for no more than watchPatience.
func (w *isolationWatch) judge(ctx context.Context, c *container) {
	w.mu.Lock()
	before := w.verdicts[c.id]
	w.verdicts[c.id] = verdict{at: time.Now(), state: isolationUnknown, looking: true}
	w.mu.Unlock()
	done := make(chan struct{})
	// Owner: the watch, which waits; one that hangs in the kernel is nobody's until it answers.
	go func() {
		defer close(done)
		report, err := w.look(c)
		w.settle(ctx, c, before, report, err)
	}()
	select {
	case <-done:
	case <-time.After(watchPatience):
		klog.FromContext(ctx).Info("The kernel does not tell what isolates a container", "containerID", c.id)
	case <-w.leaving:
	case <-ctx.Done():
	}
}

func (w *isolationWatch) settle(ctx context.Context, c *container, before verdict, report *isolation.Report, err error) {
	v := verdict{at: time.Now(), state: isolationConfirmed}
	log := klog.FromContext(ctx)
	switch {
	case errors.Is(err, isolation.ErrGone) || c.record().Phase != record.ContainerRunning:
		w.mu.Lock()
		delete(w.verdicts, c.id)
		w.mu.Unlock()
		return
	case err != nil:
		v.state = isolationUnknown
		log.Error(err, "Could not look at what isolates a container", "containerID", c.id)
	default:
		if v.differences = differences(report); v.differences != "" {
			v.state = isolationWeaker
		}
		if v.differences != before.differences && v.state == isolationWeaker { // once, not each interval
			log.Error(nil, "A container is isolated less than was asked", "containerID", c.id, "differences", v.differences)
		}
	}
	w.mu.Lock()
	w.verdicts[c.id] = v
	w.mu.Unlock()
}

// counts says of how many running containers what is known. It reads memory only.
func (w *isolationWatch) counts() map[string]int {
	counts := map[string]int{isolationConfirmed: 0, isolationWeaker: 0, isolationUnknown: 0}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.containers.each(func(c *container) {
		if c.record().Phase != record.ContainerRunning {
			return
		}
		if v, ok := w.verdicts[c.id]; ok {
			counts[v.state]++
		} else {
			counts[isolationUnknown]++
		}
	})
	return counts
}
