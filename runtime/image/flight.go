package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrAbandoned cancels a pull that nobody waits for any more (B44).
var ErrAbandoned = errors.New("every caller has left")

// flights joins callers that want the same thing: the first starts the work,
// the others wait for its answer. The work lives as long as one of them waits.
type flights struct {
	progressTimeout time.Duration
	observe         func(context.Context, Pulled) // nil without anybody who wants to know
	running         sync.WaitGroup

	// mu guards closed, open and every flight's waiters.
	mu     sync.Mutex
	closed bool
	open   map[string]*flight
}

type flight struct {
	monitor *monitor
	cancel  context.CancelCauseFunc
	waiters int
	done    chan struct{} // closed after image and err are set
	image   Image
	err     error
}

// do runs work under key, or waits for the one that runs. work gets a context
// that outlives this caller's.
func (f *flights) do(ctx context.Context, key, ref string, watch func(Progress),
	work func(context.Context, *monitor) (Image, error)) (Image, error) {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return Image{}, ErrClosed
	}
	fl := f.open[key]
	if fl == nil {
		fl = f.startLocked(ctx, key, ref, work)
	}
	fl.waiters++
	f.mu.Unlock()

	stop := fl.monitor.watch(watch)
	defer stop()
	select {
	case <-fl.done:
		return fl.image.clone(), fl.err
	case <-ctx.Done():
		f.leave(key, fl)
		return Image{}, fmt.Errorf("pull image %q: %w", ref, ctx.Err())
	}
}

func (f *flights) startLocked(ctx context.Context, key, ref string,
	work func(context.Context, *monitor) (Image, error)) *flight {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	fl := &flight{monitor: newMonitor(ref), cancel: cancel, done: make(chan struct{})}
	f.open[key] = fl
	f.running.Add(2)
	// Owned by flights, ended by cancel, waited for by close.
	go func() {
		defer f.running.Done()
		fl.monitor.run(ctx, f.progressTimeout, cancel)
	}()
	go func() {
		defer f.running.Done()
		fl.image, fl.err = work(ctx, fl.monitor)
		if fl.err != nil {
			fl.err = pullFailure(ref, fl.err, context.Cause(ctx))
		}
		f.forget(key, fl)
		if f.observe != nil {
			f.observe(ctx, fl.monitor.pulled(fl.err))
		}
		cancel(nil)
		close(fl.done)
	}()
	return fl
}

// alone runs work in the caller's goroutine, with progress reports, and so
// that close ends it. No registry is involved, so none can stop sending.
func (f *flights) alone(ctx context.Context, ref string, watch func(Progress), work func(context.Context, *monitor) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	fl := &flight{monitor: newMonitor(ref), cancel: cancel}
	key := "alone " + rand.Text()
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		cancel(nil)
		return ErrClosed
	}
	f.open[key] = fl
	f.running.Add(2)
	f.mu.Unlock()
	defer f.running.Done()
	defer f.forget(key, fl)
	defer cancel(nil)
	// Owned by flights, ended by cancel, waited for by close.
	go func() {
		defer f.running.Done()
		fl.monitor.run(ctx, 0, cancel)
	}()
	stop := fl.monitor.watch(watch)
	defer stop()
	err := work(ctx, fl.monitor)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// leave counts a caller out. The last one's leaving cancels the work, and
// takes it out of the way of whoever asks next.
func (f *flights) leave(key string, fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.waiters--
	if fl.waiters == 0 {
		fl.cancel(ErrAbandoned)
		f.forgetLocked(key, fl)
	}
}

func (f *flights) forget(key string, fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgetLocked(key, fl)
}

func (f *flights) forgetLocked(key string, fl *flight) {
	if f.open[key] == fl {
		delete(f.open, key)
	}
}

// close cancels what runs and waits until it has ended.
func (f *flights) close() {
	f.mu.Lock()
	f.closed = true
	for _, fl := range f.open {
		fl.cancel(ErrClosed)
	}
	f.mu.Unlock()
	f.running.Wait()
}
