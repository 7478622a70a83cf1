package podsandbox

import (
	"context"
	"io/fs"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/podwright/podwright/runtime/diskuse"
)

// counted is layers over counts that a test decides, with fake time.
type counted struct {
	*layers
	stop  chan struct{}
	lanes sync.WaitGroup
	count func(ctx context.Context, id string, step func(int) error) (diskuse.Use, error)
	calls atomic.Int32
}

func withLayers(t *testing.T, test func(t *testing.T, c *counted)) {
	synctest.Test(t, func(t *testing.T) {
		c := &counted{stop: make(chan struct{})}
		c.count = func(context.Context, string, func(int) error) (diskuse.Use, error) {
			time.Sleep(50 * time.Microsecond)
			return diskuse.Use{Bytes: 10, Inodes: 1}, nil
		}
		c.layers = newLayers(c.stop, func(f func()) { c.lanes.Go(f) }, func(ctx context.Context, id string, step func(int) error) (diskuse.Use, error) {
			c.calls.Add(1)
			return c.count(ctx, id, step)
		})
		test(t, c)
		close(c.stop)
		c.lanes.Wait()
		time.Sleep(time.Minute) // for a count that nobody waits for any more
	})
}

func TestLayersAreCountedWhileSomebodyAsks(t *testing.T) {
	withLayers(t, func(t *testing.T, c *counted) {
		time.Sleep(time.Hour)
		if c.calls.Load() != 0 {
			t.Fatalf("%d counts for nobody", c.calls.Load())
		}
		if use := c.of("a", "b"); use[0] != nil || use[1] != nil {
			t.Errorf("the first answer: got %v, want none: nobody waits for a count", use)
		}
		for range 40 {
			time.Sleep(250 * time.Millisecond)
			for i, use := range c.of("a", "b") {
				if use == nil || use.Bytes != 10 || time.Since(use.at) > time.Second {
					t.Errorf("layer %d: got %+v at %v, want a count of the last second", i, use, time.Now())
				}
			}
		}
		asked := c.calls.Load()
		time.Sleep(time.Hour)
		synctest.Wait()
		if more := c.calls.Load() - asked; more > 2*int32(layerInterest/layerEvery)+2 {
			t.Errorf("%d counts after the last question", more)
		}
		for _, one := range c.layers.lanes {
			if one.running {
				t.Error("a lane works an hour after the last question")
			}
		}
		c.of("c")
		if len(c.known) != 1 {
			t.Errorf("%d layers are remembered, want the one that is asked for", len(c.known))
		}
	})
}

// A layer with many files is counted aside and slowly, and holds up no other.
func TestALargeLayerHoldsUpNoOther(t *testing.T) {
	withLayers(t, func(t *testing.T, c *counted) {
		worked := atomic.Int64{}
		c.count = func(_ context.Context, id string, step func(int) error) (diskuse.Use, error) {
			use := diskuse.Use{}
			for use.Inodes < 3 || id == "large" && use.Inodes < 100*fastEntries {
				use.Inodes, use.Bytes = use.Inodes+1000, use.Bytes+1000
				time.Sleep(time.Millisecond)
				worked.Add(int64(time.Millisecond))
				if err := step(int(use.Inodes)); err != nil {
					return use, err
				}
			}
			return use, nil
		}
		began := time.Now()
		c.of("large", "small")
		for time.Since(began) < 10*time.Second {
			time.Sleep(time.Second)
			if use := c.of("large", "small")[1]; use == nil || time.Since(use.at) > time.Second {
				t.Fatalf("the small one: got %+v", use)
			}
		}
		for c.of("large")[0] == nil {
			if time.Sleep(time.Second); time.Since(began) > 2*time.Minute {
				t.Fatal("the large one is never counted")
			}
		}
		if use := c.of("large")[0]; use.Inodes != 100*fastEntries {
			t.Errorf("the large one: got %+v", use)
		}
		if share := float64(worked.Load()) / float64(time.Since(began)); share > 2.5/laneShare {
			t.Errorf("the lanes worked %.3f of the time, want a %dth each at most", share, laneShare)
		}
	})
}

// What can't be counted within a deadline is at least what was counted by then.
func TestAnEndlessLayerIsCountedUpToADeadline(t *testing.T) {
	withLayers(t, func(t *testing.T, c *counted) {
		c.count = func(_ context.Context, _ string, step func(int) error) (diskuse.Use, error) {
			use := diskuse.Use{}
			for {
				use.Inodes, use.Bytes = use.Inodes+1, use.Bytes+1
				time.Sleep(time.Millisecond)
				if err := step(int(use.Inodes)); err != nil {
					return use, err
				}
			}
		}
		c.of("endless")
		for began := time.Now(); time.Since(began) < largeDeadline+time.Minute; {
			time.Sleep(5 * time.Second)
			c.of("endless")
		}
		if use := c.of("endless")[0]; use == nil || use.Bytes == 0 {
			t.Errorf("got %+v", use)
		}
	})
}

func TestACountThatHangsIsLeftBehind(t *testing.T) {
	withLayers(t, func(t *testing.T, c *counted) {
		release := make(chan struct{})
		hung := atomic.Int32{}
		c.count = func(_ context.Context, id string, _ func(int) error) (diskuse.Use, error) {
			if id == "stuck" {
				hung.Add(1)
				<-release
			}
			return diskuse.Use{Bytes: 1}, nil
		}
		c.of("stuck")
		synctest.Wait()
		for range 60 {
			began := time.Now()
			c.of("stuck", "a")
			if time.Since(began) > 0 {
				t.Fatal("somebody waited for a count")
			}
			time.Sleep(time.Second)
		}
		if use := c.of("a")[0]; use == nil || time.Since(use.at) > time.Second || hung.Load() != 1 {
			t.Errorf("got %+v beside %d counts that hang, want a fresh figure and one", use, hung.Load())
		}
		close(release)
		time.Sleep(time.Second)
		if use := c.of("stuck")[0]; use == nil {
			t.Error("the layer that answers again has no figure")
		}
	})
}

func TestARemovedLayerIsForgotten(t *testing.T) {
	withLayers(t, func(t *testing.T, c *counted) {
		c.count = func(context.Context, string, func(int) error) (diskuse.Use, error) {
			return diskuse.Use{}, fs.ErrNotExist
		}
		c.of("gone")
		synctest.Wait()
		if c.mu.Lock(); len(c.known) != 0 {
			t.Errorf("%d layers are remembered", len(c.known))
		}
		c.mu.Unlock()
	})
}

// The daemon's stop waits for no count, and nothing is counted afterwards.
func TestCountsEndWithTheDaemon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop, lanes, release := make(chan struct{}), sync.WaitGroup{}, make(chan struct{})
		calls := 0
		l := newLayers(stop, func(f func()) { lanes.Go(f) }, func(context.Context, string, func(int) error) (diskuse.Use, error) {
			calls++
			<-release
			return diskuse.Use{}, nil
		})
		l.of("a")
		synctest.Wait()
		began := time.Now()
		close(stop)
		lanes.Wait()
		l.of("b")
		synctest.Wait()
		if calls != 1 || time.Since(began) > 0 {
			t.Errorf("%d counts, and %v until the lanes ended", calls, time.Since(began))
		}
		close(release)
	})
}
