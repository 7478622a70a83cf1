package podsandbox

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/podwright/podwright/runtime/diskuse"
)

// layers knows what containers' writable layers take on disk. Nobody waits for a count: who asks gets the last one, and
// sees to it that there are more: for as long as layerInterest after the last question a layer is counted again within
// a second, or less often if counting takes long. Nothing is counted for nobody.
//
// Two lanes count, one layer at a time each. In the fast one a count may look at fastEntries files and take fastDeadline; a
// layer with more goes to the slow one, so that it holds up no other. Each lane works for laneShare of the time at most,
// with some credit for the first of many questions. A count that hangs in the kernel is left behind after a while, and its
// layer not counted again before it answers.
//
//	asked ──> fast lane ──counted──> due again, while somebody is interested
//	              └──too many files──> slow lane ──counted──> due again later
type layers struct {
	count func(ctx context.Context, id string, step func(entries int) error) (diskuse.Use, error)
	stop  <-chan struct{}
	run   func(func()) // starts a goroutine that Shutdown waits for

	mu     sync.Mutex // mu guards what follows.
	known  map[string]*layer
	lanes  [2]lane
	pruned time.Time
}

// layer is one container's, and layerUse what the last count of it found.
type layer struct {
	asked time.Time
	due   time.Time // when to count next
	large bool      // in the slow lane
	under bool      // a count is under way, or was left behind
	use   *layerUse
}

type layerUse struct {
	at time.Time
	diskuse.Use
}

// lane counts while it has something to count.
type lane struct {
	large   bool
	running bool
	wake    chan struct{}
}

const (
	layerInterest = 15 * time.Second // longer than the 10 s after which the kubelet asks again
	layerEvery    = 750 * time.Millisecond
	layerMemory   = 10 * time.Minute
	largeEvery    = 30 * time.Second
	largeDeadline = 10 * time.Minute // what was counted by then is taken for at least
	fastEntries   = 10_000
	fastDeadline  = 500 * time.Millisecond
	layerPatience = 5 * time.Second // beyond its deadline a count hangs
	laneShare     = 20              // one part of so many
	laneCredit    = 100 * time.Millisecond
	slowSlice     = 5 * time.Millisecond // of work in the slow lane, before it rests
)

func newLayers(stop <-chan struct{}, run func(func()), count func(context.Context, string, func(int) error) (diskuse.Use, error)) *layers {
	l := &layers{count: count, stop: stop, run: run, known: map[string]*layer{}}
	for i := range l.lanes {
		l.lanes[i] = lane{large: i == 1, wake: make(chan struct{}, 1)}
	}
	return l
}

// of gives what is known of containers' layers, nil for what was never counted, and has them counted.
func (l *layers) of(ids ...string) []*layerUse {
	now := time.Now()
	out := make([]*layerUse, len(ids))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pruneLocked(now)
	for i, id := range ids {
		one := l.known[id]
		if one == nil {
			one = &layer{}
			l.known[id] = one
		}
		one.asked, out[i] = now, one.use
	}
	for i := range l.lanes {
		l.startLocked(&l.lanes[i], now)
	}
	return out
}

// pruneLocked forgets, now and then, what nobody asks for: removed containers among them.
func (l *layers) pruneLocked(now time.Time) {
	if now.Sub(l.pruned) < layerMemory {
		return
	}
	l.pruned = now
	for id, one := range l.known {
		if now.Sub(one.asked) > layerMemory {
			delete(l.known, id)
		}
	}
}

// startLocked starts a lane that has something to do, or tells it that there may be more.
func (l *layers) startLocked(one *lane, now time.Time) {
	select {
	case <-l.stop:
		return
	default:
	}
	if _, _, work := l.dueLocked(one.large, now); !work {
		return
	}
	if one.running {
		select {
		case one.wake <- struct{}{}:
		default: // told already
		}
		return
	}
	one.running = true
	// Owner: layers; ends when nobody is interested any more, or with stop; Shutdown waits for it.
	l.run(func() { l.serve(one) })
}

// dueLocked gives the layers of a lane that are due, longest first, or when the next one is. Without any that somebody is
// interested in there is no work.
func (l *layers) dueLocked(large bool, now time.Time) (due []string, next time.Time, work bool) {
	for id, one := range l.known {
		if one.large != large || one.under || now.Sub(one.asked) > layerInterest {
			continue
		}
		if !one.due.After(now) {
			due = append(due, id)
		}
		if !work || one.due.Before(next) {
			next, work = one.due, true
		}
	}
	slices.SortFunc(due, func(a, b string) int { return l.known[a].due.Compare(l.known[b].due) })
	return due, next, work
}

func (l *layers) serve(one *lane) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// Owner: this call; ends with it.
	go func() {
		select {
		case <-l.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	credit, last := laneCredit, time.Now()
	for {
		l.mu.Lock()
		due, next, work := l.dueLocked(one.large, time.Now())
		if !work || ctx.Err() != nil {
			one.running = false
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		if len(due) == 0 {
			select {
			case <-time.After(time.Until(next)):
			case <-one.wake:
			case <-ctx.Done():
			}
		}
		for _, id := range due {
			took := l.countOne(ctx, id, one.large)
			if one.large || ctx.Err() != nil { // it rested while it counted
				continue
			}
			credit = min(laneCredit, credit+time.Since(last)/laneShare) - took
			if last = time.Now(); credit < 0 {
				rest(ctx, -credit*laneShare)
			}
		}
	}
}

var errTooLarge = errors.New("too much for the fast lane")

// countOne waits for one count, but not for one that hangs.
func (l *layers) countOne(ctx context.Context, id string, large bool) (took time.Duration) {
	began, limit := time.Now(), fastDeadline
	if large {
		limit = largeDeadline
	}
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	step := func(entries int) error {
		if entries > fastEntries || within.Err() != nil {
			return errTooLarge
		}
		return nil
	}
	if large {
		step = slowly(within)
	}
	if !l.take(id) {
		return 0
	}
	done := make(chan struct{})
	// Owner: this call; ends with the count or ctx. One that hangs in the kernel is nobody's until it answers.
	go func() {
		defer close(done)
		use, err := l.count(within, id, step)
		l.note(ctx, id, layerUse{began, use}, large, err)
	}()
	hangs := time.NewTimer(limit + layerPatience)
	defer hangs.Stop()
	select {
	case <-done:
	case <-ctx.Done():
	case <-hangs.C:
		klog.InfoS("The count of a writable layer hangs: the disk does not answer", "containerID", id)
		return 0 // it did not work
	}
	return time.Since(began)
}

// take says whether there is still something to count.
func (l *layers) take(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.known[id]
	if one == nil || one.under {
		return false
	}
	one.under = true
	return true
}

// note takes what a count found.
func (l *layers) note(ctx context.Context, id string, use layerUse, large bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.known[id]
	if one == nil {
		return
	}
	one.under, one.due = false, time.Now().Add(layerEvery)
	switch {
	case !large && (errors.Is(err, errTooLarge) || errors.Is(err, context.DeadlineExceeded)):
		one.large, one.due = true, time.Time{}
		l.startLocked(&l.lanes[1], time.Now())
	case errors.Is(err, fs.ErrNotExist): // removed
		delete(l.known, id)
	case errors.Is(err, context.DeadlineExceeded):
		if one.use == nil || use.Bytes > one.use.Bytes {
			one.use = &use
		}
		one.due = time.Now().Add(largeDeadline)
	case err != nil:
		if ctx.Err() == nil {
			klog.V(2).InfoS("Could not count a writable layer", "containerID", id, "err", err)
		}
		one.due = time.Now().Add(largeEvery)
	default:
		one.use = &use
		if large {
			one.large = use.Inodes > fastEntries/2
			one.due = time.Now().Add(max(largeEvery, time.Since(use.at)))
		}
	}
}

// slowly is a step that rests after each slice of work.
func slowly(ctx context.Context) func(int) error {
	began := time.Now()
	return func(int) error {
		if worked := time.Since(began); worked > slowSlice {
			rest(ctx, worked*laneShare)
			began = time.Now()
		}
		return ctx.Err()
	}
}

func rest(ctx context.Context, pause time.Duration) {
	select {
	case <-time.After(pause):
	case <-ctx.Done():
	}
}
