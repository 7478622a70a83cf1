package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/namespace"
)

func usedBy(t target) *figures {
	stats := &cgroup.Stats{}
	stats.CPU.Time = time.Duration(len(t.group)) * time.Second
	return &figures{at: time.Now(), stats: stats}
}

func TestAHangingGroupCostsOneGoroutineAndOneWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release, reads := make(chan struct{}), map[string]*atomic.Int32{"a": {}, "stuck": {}, "b": {}, "gone": {}}
		l := newLooks(func(t target) (*figures, error) {
			reads[t.group].Add(1)
			switch t.group {
			case "stuck":
				<-release
			case "gone":
				return nil, fs.ErrNotExist
			}
			return usedBy(t), nil
		})
		targets := []target{{group: "stuck"}, {group: "a"}, {group: "gone"}, {group: "b"}}
		for i := range 5 {
			began := time.Now()
			got := l.at(t.Context(), targets)
			if took, most := time.Since(began), lookPatience*time.Duration(1-min(i, 1)); took > most {
				t.Errorf("look %d took %v, want at most %v", i, took, most)
			}
			if got[0] != nil || got[1] == nil || got[2] != nil || got[3] == nil {
				t.Errorf("look %d: got %v, want those that answer", i, got)
			}
		}
		if n := reads["stuck"].Load(); n != 1 {
			t.Errorf("the group that hangs was read %d times, want once", n)
		}
		close(release)
		synctest.Wait()
		if got := l.at(t.Context(), targets); got[0] == nil {
			t.Error("the group that answers again is missing")
		}
	})
}

// Those who ask at once share a look, and a caller who leaves does not take it from the others.
func TestLooksAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		l := newLooks(func(t target) (*figures, error) {
			reads++
			time.Sleep(10 * time.Millisecond)
			return usedBy(t), nil
		})
		impatient, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		answers := make(chan []*figures, 3)
		for _, ctx := range []context.Context{impatient, t.Context(), t.Context()} {
			// Owner: this test, which waits for all answers.
			go func() { answers <- l.at(ctx, []target{{group: "a"}}) }()
		}
		found := 0
		for range 3 {
			if got := <-answers; got[0] != nil {
				found++
			}
		}
		if reads != 1 || found != 2 {
			t.Errorf("%d reads, %d answers, want one read and the two who waited", reads, found)
		}
	})
}

func TestRateOfUse(t *testing.T) {
	start := time.Unix(1000, 0)
	type look struct {
		at, used time.Duration // since start
		want     string
	}
	for _, test := range []struct {
		name  string
		began time.Time
		looks []look
	}{
		{"young: the beginning is the other look", start, []look{{2 * time.Second, time.Second, "500000000"}}},
		{"too young to say", start, []look{{50 * time.Millisecond, 50 * time.Millisecond, "unknown"}}},
		{"old: known from the second look on", start.Add(-time.Hour), []look{
			{0, time.Hour, "unknown"}, {10 * time.Millisecond, time.Hour, "unknown"}, {time.Second, time.Hour + 250*time.Millisecond, "250000000"}}},
		{"often asked: over the last second or two", start.Add(-time.Hour), []look{
			{0, 0, "unknown"}, {time.Second, time.Second, "1000000000"}, {1500 * time.Millisecond, time.Second, "666666666"},
			{2 * time.Second, time.Second, "0"}, {2100 * time.Millisecond, time.Second, "0"}}},
		{"rarely asked: over the time between", start.Add(-time.Hour), []look{{0, 0, "unknown"}, {10 * time.Second, 20 * time.Second, "2000000000"}}},
		{"asked long ago: that is no more", start.Add(-time.Hour), []look{{0, 0, "unknown"}, {11 * time.Minute, time.Minute, "unknown"}, {11*time.Minute + time.Second, time.Minute + time.Second, "1000000000"}}},
		{"a counter that went back", start.Add(-time.Hour), []look{{0, time.Minute, "unknown"}, {time.Second, time.Second, "unknown"}}},
		{"no beginning", time.Time{}, []look{{time.Second, time.Second, "unknown"}}},
	} {
		r := rate{}
		for _, l := range test.looks {
			got := "unknown"
			if n, ok := r.now(cpuLook{start.Add(l.at), l.used}, test.began); ok {
				got = fmt.Sprint(n)
			}
			if got != l.want {
				t.Errorf("%s: at %v: got %s, want %s", test.name, l.at, got, l.want)
			}
		}
	}
}

func TestForgottenGroupsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLooks(func(t target) (*figures, error) { return usedBy(t), nil })
		for i := range 100 {
			l.at(t.Context(), []target{{group: fmt.Sprint(i)}})
		}
		time.Sleep(2 * rateMemory)
		l.at(t.Context(), []target{{group: "now"}})
		if len(l.rates) != 1 || len(l.underWay) != 0 {
			t.Errorf("%d rates and %d looks are kept", len(l.rates), len(l.underWay))
		}
	})
}

func TestANetworkThatHangsIsLookedAtLastAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release, running := make(chan struct{}), atomic.Int32{}
		n := newNetworkLooks(func(ctx context.Context, ids []string, visit func(string, []namespace.Link, error)) {
			running.Add(1)
			defer running.Add(-1)
			for _, id := range ids {
				switch id {
				case "slow":
					time.Sleep(10 * networkSlow)
				case "stuck":
					<-release
				case "gone":
					visit(id, nil, errors.New("gone"))
					continue
				}
				visit(id, []namespace.Link{{Name: id}}, nil)
			}
		})
		if got := n.at(t.Context(), []string{"slow", "gone", "a"}); len(got) != 2 || got["a"].links[0].Name != "a" {
			t.Errorf("got %v, want a and slow", got)
		}
		if order := n.slowLast([]string{"slow", "a", "b"}); order[2] != "slow" {
			t.Errorf("the next order is %v, want the slow one last", order)
		}
		for i := range 2 * networkThreads {
			began := time.Now()
			got := n.at(t.Context(), []string{"a", "stuck", "b"})
			if took := time.Since(began); took > lookPatience {
				t.Errorf("look %d took %v", i, took)
			}
			if _, ok := got["a"]; ok != (i < networkThreads) || len(got) > 1 {
				t.Errorf("look %d: got %v", i, got)
			}
		}
		if n := running.Load(); n != networkThreads {
			t.Errorf("%d threads hang, want %d at most", n, networkThreads)
		}
		close(release)
		synctest.Wait()
		if got := n.at(t.Context(), []string{"a", "b"}); len(got) != 2 {
			t.Errorf("afterwards: got %v", got)
		}
	})
}
