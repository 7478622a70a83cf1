package podsandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/podwright/podwright/runtime/selinux"
)

// walkOf is a volume's walk that ends when it is told to.
type walkOf struct {
	finish chan error
	mu     sync.Mutex // mu guards what follows.
	runs   int
	ended  error // what the last run ended with
}

func newWalk() *walkOf { return &walkOf{finish: make(chan error, 1)} }

func (w *walkOf) Run(ctx context.Context) error {
	w.mu.Lock()
	w.runs++
	w.mu.Unlock()
	var err error
	select {
	case err = <-w.finish:
	case <-ctx.Done():
		err = ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = err
	return err
}

func (w *walkOf) ran() (runs int, ended error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.runs, w.ended
}

func (w *walkOf) Progress() selinux.Progress {
	return selinux.Progress{Seen: 1200, Changed: 34, Dir: `"a/b"`}
}

func relabelCore() *core {
	m := &core{leaving: make(chan struct{})}
	m.relabels = newRelabels(&m.ops, m.leaving)
	return m
}

func volumeOf(t *testing.T, label string) volume {
	t.Helper()
	top, err := os.OpenFile(filepath.Join(t.TempDir(), "top"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	return volume{path: "/srv/data", label: label, id: volumeID{1, 2}, top: top}
}

func goesOn() error { return nil }

// closed says whether relabel has let go of a volume.
func closed(v volume) bool {
	_, err := v.top.Stat()
	return errors.Is(err, os.ErrClosed)
}

// A retry joins what its predecessor began, and ops show how far it is, both of who waits and of the job.
func TestRelabelIsDoneOnceAndOutlivesTheCreate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, first, second := relabelCore(), newWalk(), newWalk()
		v, again := volumeOf(t, "label"), volumeOf(t, "label")
		impatient, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := m.relabels.do(impatient, nil, v, first, goesOn)
		if !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), `1200 files seen, 34 labelled, at "a/b"`) {
			t.Errorf("got %v, want ErrTimeout with the progress", err)
		}
		retry := m.ops.begin(kindCreateContainer, "ns/pod/c", "id")
		answer := make(chan error)
		go func() {
			_, err := m.relabels.do(t.Context(), retry, again, second, goesOn)
			answer <- err
		}()
		synctest.Wait()
		manager := &Manager{core: m}
		for _, op := range m.ops.list() {
			waits := manager.Waits(op)
			if len(waits) != 1 || waits[0].For != WaitVolume || waits[0].Name != "/srv/data" || !strings.Contains(waits[0].Detail, "1200 files") {
				t.Errorf("%s waits for %+v, want the volume and its progress", op.Kind, waits)
			}
		}
		if n := len(m.ops.list()); n != 2 {
			t.Errorf("%d operations, want the create and the job", n)
		}
		first.finish <- nil
		if err := <-answer; err != nil {
			t.Errorf("the retry: %v", err)
		}
		synctest.Wait()
		if runs, _ := first.ran(); runs != 1 {
			t.Errorf("the walk ran %d times, want once", runs)
		}
		if runs, _ := second.ran(); runs != 0 {
			t.Error("the retry walked itself")
		}
		if !closed(v) || !closed(again) || len(m.relabels.running) != 0 {
			t.Error("the job or a volume is still held")
		}
	})
}

// Of two labels for one volume the last one asked for is there in the end, and never do two walks run at once.
func TestRelabelWithAnotherLabelComesAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, first, second := relabelCore(), newWalk(), newWalk()
		answers := make(chan error, 2)
		ask := func(label string, walk *walkOf) {
			_, err := m.relabels.do(t.Context(), nil, volumeOf(t, label), walk, goesOn)
			answers <- err
		}
		go ask("one", first)
		synctest.Wait()
		go ask("two", second)
		synctest.Wait()
		if runs, _ := second.ran(); runs != 0 {
			t.Error("both walks run at once")
		}
		boom := errors.New("boom")
		first.finish <- boom
		if err := <-answers; !errors.Is(err, boom) {
			t.Errorf("the first: got %v, want its own error", err)
		}
		synctest.Wait()
		if runs, _ := second.ran(); runs != 1 {
			t.Errorf("the second walk ran %d times after the first had ended, want once", runs)
		}
		second.finish <- nil
		if err := <-answers; err != nil {
			t.Errorf("the second: %v", err)
		}
	})
}

// A job that nobody waits for any more does not hold up who wants another label.
func TestRelabelWithAnotherLabelEndsWhatNobodyWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, old, fresh := relabelCore(), newWalk(), newWalk()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		m.relabels.do(ctx, nil, volumeOf(t, "old"), old, goesOn)
		begin := time.Now()
		go func() { fresh.finish <- nil }()
		patient, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := m.relabels.do(patient, nil, volumeOf(t, "new"), fresh, goesOn); err != nil {
			t.Errorf("got %v", err)
		}
		if _, ended := old.ran(); !errors.Is(ended, context.Canceled) || time.Since(begin) > time.Second {
			t.Errorf("the old walk ended with %v, the new one after %s, want it cancelled at once", ended, time.Since(begin))
		}
	})
}

// What nobody waits for ends after a while, and lets go of the volume; who waits keeps it going.
func TestRelabelThatNobodyWaitsForEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, walk := relabelCore(), newWalk()
		for range 3 { // three creates, each of which gives up before the next
			ctx, cancel := context.WithTimeout(t.Context(), createDeadline)
			if _, err := m.relabels.do(ctx, nil, volumeOf(t, "label"), walk, goesOn); !errors.Is(err, ErrTimeout) {
				t.Errorf("got %v, want ErrTimeout", err)
			}
			cancel()
			time.Sleep(unattended - time.Second)
		}
		if runs, ended := walk.ran(); runs != 1 || ended != nil {
			t.Errorf("ran %d times, ended with %v, want one that still runs", runs, ended)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if _, ended := walk.ran(); !errors.Is(ended, context.Canceled) || len(m.relabels.running) != 0 {
			t.Errorf("ended with %v, %d jobs left, want it cancelled and gone", ended, len(m.relabels.running))
		}
	})
}

// A create that comes while a job is being given up starts its own.
func TestRelabelAfterOneThatWasGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, fresh := relabelCore(), newWalk()
		stuck := &stuckWalk{walkOf: newWalk(), release: make(chan struct{})}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		m.relabels.do(ctx, nil, volumeOf(t, "label"), stuck, goesOn)
		time.Sleep(unattended + time.Second)
		answer := make(chan error)
		go func() {
			_, err := m.relabels.do(t.Context(), nil, volumeOf(t, "label"), fresh, goesOn)
			answer <- err
		}()
		synctest.Wait()
		if runs, _ := fresh.ran(); runs != 0 {
			t.Error("a second walk runs beside one that does not end")
		}
		close(stuck.release)
		fresh.finish <- nil
		if err := <-answer; err != nil {
			t.Errorf("got %v", err)
		}
		if runs, _ := fresh.ran(); runs != 1 {
			t.Errorf("its own walk ran %d times, want once", runs)
		}
	})
}

// stuckWalk is on a file system that doesn't answer: it hears of nothing.
type stuckWalk struct {
	*walkOf
	release chan struct{}
}

func (w *stuckWalk) Run(ctx context.Context) error {
	<-w.release
	return ctx.Err()
}

func TestRelabelIsLeftWithItsSandboxAndWithTheDaemon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, walk := relabelCore(), newWalk()
		gone := kindf(ErrPrecondition, "stopped")
		if _, err := m.relabels.do(t.Context(), nil, volumeOf(t, "label"), walk, func() error { return gone }); !errors.Is(err, ErrPrecondition) {
			t.Errorf("got %v, want ErrPrecondition", err)
		}
		answer := make(chan error)
		go func() {
			_, err := m.relabels.do(t.Context(), nil, volumeOf(t, "label"), newWalk(), goesOn)
			answer <- err
		}()
		synctest.Wait()
		m.Leave()
		if err := <-answer; !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
		synctest.Wait()
		if _, ended := walk.ran(); !errors.Is(ended, context.Canceled) {
			t.Errorf("the walk ended with %v, want it cancelled", ended)
		}
	})
}
