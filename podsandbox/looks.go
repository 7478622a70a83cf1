package podsandbox

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/podwright/podwright/runtime/cgroup"
)

// depth is how much is looked at.
type depth int

const (
	depthUsage   depth = iota // what one container's entry in a list says
	depthProcess              // and how many processes there are, as a pod's says
	depthAll                  // and all else that metrics tell
)

// target is one control group to look at.
type target struct {
	group string
	depth depth
	began time.Time // when the group had used nothing yet
	pid   int       // depthAll: the first process of a container; 0 for a pod
}

// figures are what one look found.
type figures struct {
	at        time.Time
	stats     *cgroup.Stats // Usage only, but for depthAll
	processes int
	proc      *procFigures // depthAll of a container; nil where they could not be had
	nanoCores uint64
	hasRate   bool // whether nanoCores is known
}

// looks looks at control groups, several at a time, whenever somebody asks: nothing is read otherwise. A group is under
// one look at a time, which everybody who asks meanwhile waits for.
//
// The kernel may take its time to answer. Nobody waits longer than lookPatience, and for a group that did not answer
// within it before, not at all: it is missing in what they get. So a group that hangs costs one goroutine, and each list
// once its patience.
type looks struct {
	read func(target) (*figures, error)

	mu       sync.Mutex // mu guards what follows.
	underWay map[lookKey]*look
	rates    map[string]*rate // by group; those that nobody asks for are forgotten
	pruned   time.Time
}

type lookKey struct {
	group string
	depth depth
}

// look is one at a group, under way until done is closed; figures is nil then if there were none.
type look struct {
	done    chan struct{}
	began   time.Time
	figures *figures
}

const (
	// lookPatience bounds what a list waits for the kernel. crictl waits for 2 s, the kubelet for minutes.
	lookPatience = time.Second
	// lookers is how many groups one call looks at side by side.
	lookers = 4
)

func newLooks(read func(target) (*figures, error)) *looks {
	return &looks{read: read, underWay: map[lookKey]*look{}, rates: map[string]*rate{}}
}

// at looks at every target. What was not there, or did not answer, is nil.
func (l *looks) at(ctx context.Context, targets []target) []*figures {
	ctx, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	type answer struct {
		index int
		look  *look
	}
	answers := make(chan answer, len(targets)) // nobody waits to hand in an answer
	var next atomic.Int64
	for range min(lookers, len(targets)) {
		// Owner: this call; ends with the last target or ctx. One that hangs in the kernel is nobody's until it answers.
		go func() {
			for i := int(next.Add(1)) - 1; i < len(targets) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				answers <- answer{i, l.begin(targets[i])}
			}
		}()
	}
	found := make([]*look, len(targets))
	for range targets {
		select {
		case a := <-answers:
			found[a.index] = a.look
			continue
		case <-ctx.Done():
		}
		select { // what is there already
		case a := <-answers:
			found[a.index] = a.look
		default:
		}
	}
	out := make([]*figures, len(targets))
	for i, one := range found {
		if one == nil {
			continue
		}
		if time.Since(one.began) < lookPatience {
			select {
			case <-one.done:
			case <-ctx.Done():
			}
		}
		select {
		case <-one.done:
			out[i] = one.figures
		default:
		}
	}
	return out
}

// begin joins the look at t that is under way, or looks itself and is done when it returns.
func (l *looks) begin(t target) *look {
	key := lookKey{t.group, t.depth}
	l.mu.Lock()
	if one := l.underWay[key]; one != nil {
		l.mu.Unlock()
		return one
	}
	one := &look{done: make(chan struct{}), began: time.Now()}
	l.underWay[key] = one
	l.mu.Unlock()

	found, err := l.read(t)
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.underWay, key)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) { // it ended meanwhile
			klog.V(2).InfoS("Left a control group out of the statistics", "path", t.group, "err", err)
		}
	} else {
		found.nanoCores, found.hasRate = l.rateLocked(t, found)
		one.figures = found
	}
	close(one.done)
	return one
}

func (l *looks) rateLocked(t target, found *figures) (uint64, bool) {
	if now := found.at; now.Sub(l.pruned) > rateMemory {
		l.pruned = now
		for group, r := range l.rates {
			if now.Sub(r.newer.at) > rateMemory {
				delete(l.rates, group)
			}
		}
	}
	r := l.rates[t.group]
	if r == nil {
		r = &rate{}
		l.rates[t.group] = r
	}
	return r.now(cpuLook{found.at, found.stats.CPU.Time}, t.began)
}

// What a group uses of the processors is the difference between two looks that were at least rateWindow apart: how often
// somebody asks changes nothing. Until there are two, the beginning is the other look, if that is not long ago (rateYouth);
// older groups have no rate at the first look, and get it at the next. A look of long ago (rateMemory) counts no more.
const (
	rateWindow = time.Second
	rateYouth  = time.Minute
	rateMemory = 10 * time.Minute
	rateLeast  = 100 * time.Millisecond // between two looks, or what was used is mostly chance
)

type cpuLook struct {
	at   time.Time
	used time.Duration
}

// rate remembers two looks, rateWindow or more apart; callers serialise.
type rate struct{ older, newer cpuLook }

// now takes a look and gives nanoseconds of processor time per second.
func (r *rate) now(look cpuLook, began time.Time) (uint64, bool) {
	if look.at.Sub(r.newer.at) >= rateWindow {
		r.older, r.newer = r.newer, look
	}
	from := r.older
	if from.at.IsZero() || look.at.Sub(from.at) > rateMemory {
		from = cpuLook{at: began}
		if began.IsZero() || look.at.Sub(began) > rateYouth {
			return 0, false
		}
	}
	passed := look.at.Sub(from.at)
	if passed < rateLeast || look.used < from.used {
		return 0, false
	}
	return uint64(float64(look.used-from.used) / passed.Seconds()), true
}
