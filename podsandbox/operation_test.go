package podsandbox

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func nothing() (string, [sha256.Size]byte, bool) { return "", [sha256.Size]byte{}, false }

func digestFor(t *testing.T, hostname string) [sha256.Size]byte {
	t.Helper()
	sum, err := digestOf(&criv1.PodSandboxConfig{Hostname: hostname})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// B3, B4: a retry of a create that still runs gets that create's answer, and the job runs once.
func TestRetriedCreateJoinsTheRunningOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ops operations
		var runs int
		finish := make(chan struct{})
		job := func(context.Context, *Operation) (string, error) {
			runs++
			<-finish
			return "id-1", nil
		}
		digest := digestFor(t, "a")
		var wait sync.WaitGroup
		answers := make([]string, 3)
		for i := range answers {
			wait.Add(1)
			go func() {
				defer wait.Done()
				answers[i], _ = ops.do(t.Context(), "sandbox a", digest, time.Minute, nothing, job)
			}()
		}
		synctest.Wait() // all wait for the one job
		close(finish)
		wait.Wait()
		for i, id := range answers {
			if id != "id-1" {
				t.Errorf("caller %d got %q, want id-1", i, id)
			}
		}
		if runs != 1 || len(ops.list()) != 0 {
			t.Errorf("the job ran %d times and %d operations are left, want 1 and 0", runs, len(ops.list()))
		}
	})
}

func TestSameIdentityWithAnotherConfigIsRefused(t *testing.T) {
	var ops operations
	release := make(chan struct{})
	running := make(chan struct{})
	go ops.do(t.Context(), "sandbox a", digestFor(t, "a"), time.Minute, nothing, func(context.Context, *Operation) (string, error) {
		close(running)
		<-release
		return "id", nil
	})
	<-running
	_, err := ops.do(t.Context(), "sandbox a", digestFor(t, "b"), time.Minute, nothing, nil)
	if !errors.Is(err, ErrExists) {
		t.Errorf("while it runs: got %v, want ErrExists", err)
	}
	close(release)
	finished := func() (string, [sha256.Size]byte, bool) { return "id", digestFor(t, "a"), true }
	for len(ops.list()) > 0 {
		time.Sleep(time.Millisecond)
	}
	if _, err := ops.do(t.Context(), "sandbox a", digestFor(t, "b"), time.Minute, finished, nil); !errors.Is(err, ErrExists) {
		t.Errorf("when it is finished: got %v, want ErrExists", err)
	}
	if id, err := ops.do(t.Context(), "sandbox a", digestFor(t, "a"), time.Minute, finished, nil); id != "id" || err != nil {
		t.Errorf("same config: got %q, %v, want the finished object", id, err)
	}
}

// B5: a client that vanishes leaves the job running, and the next caller gets its answer.
func TestVanishedClientDoesNotStopTheCreate(t *testing.T) {
	var ops operations
	release := make(chan struct{})
	job := func(ctx context.Context, op *Operation) (string, error) {
		op.at("attach network")
		<-release
		return "id-1", ctx.Err()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := ops.do(ctx, "sandbox a", digestFor(t, "a"), time.Minute, nothing, job)
	if !errors.Is(err, ErrTimeout) {
		t.Fatalf("got %v, want ErrTimeout", err)
	}
	if text := err.Error(); text == "" || len(ops.list()) != 1 || ops.list()[0].Step() != "attach network" {
		t.Errorf("got %q and %v, want the step named and the job running", text, ops.list())
	}
	got := make(chan string)
	go func() {
		id, _ := ops.do(t.Context(), "sandbox a", digestFor(t, "a"), time.Minute, nothing, nil)
		got <- id
	}()
	time.Sleep(10 * time.Millisecond)
	close(release)
	if id := <-got; id != "id-1" {
		t.Errorf("the retry got %q, want id-1", id)
	}
	if err := ops.drain(t.Context()); err != nil {
		t.Errorf("drain: %v", err)
	}
}

func TestOpLockIsLeftByACancelledCaller(t *testing.T) {
	l := newOpLock()
	if err := l.lock(t.Context(), "stop"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := l.lock(ctx, "stop"); !errors.Is(err, ErrTimeout) {
		t.Errorf("got %v, want ErrTimeout", err)
	}
	l.unlock()
	if err := l.lock(t.Context(), "stop"); err != nil {
		t.Errorf("after unlock: %v", err)
	}
}

// B7: creation times strictly increase, however the system clock steps.
func TestCreationTimesStrictlyIncrease(t *testing.T) {
	var c clock
	future := time.Now().Add(time.Hour).UnixNano()
	c.seen(future)
	for range 1000 {
		next := c.now()
		if next <= future {
			t.Fatalf("got %d after %d", next, future)
		}
		future = next
	}
}
