package podsandbox

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/record"
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
				answers[i], _ = ops.do(t.Context(), create{key: "sandbox a", digest: digest}, time.Minute, nothing, job)
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
	go ops.do(t.Context(), create{key: "sandbox a", digest: digestFor(t, "a")}, time.Minute, nothing, func(context.Context, *Operation) (string, error) {
		close(running)
		<-release
		return "id", nil
	})
	<-running
	_, err := ops.do(t.Context(), create{key: "sandbox a", digest: digestFor(t, "b")}, time.Minute, nothing, nil)
	if !errors.Is(err, ErrExists) {
		t.Errorf("while it runs: got %v, want ErrExists", err)
	}
	close(release)
	finished := func() (string, [sha256.Size]byte, bool) { return "id", digestFor(t, "a"), true }
	for len(ops.list()) > 0 {
		time.Sleep(time.Millisecond)
	}
	if _, err := ops.do(t.Context(), create{key: "sandbox a", digest: digestFor(t, "b")}, time.Minute, finished, nil); !errors.Is(err, ErrExists) {
		t.Errorf("when it is finished: got %v, want ErrExists", err)
	}
	if id, err := ops.do(t.Context(), create{key: "sandbox a", digest: digestFor(t, "a")}, time.Minute, finished, nil); id != "id" || err != nil {
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
	_, err := ops.do(ctx, create{key: "sandbox a", digest: digestFor(t, "a")}, time.Minute, nothing, job)
	if !errors.Is(err, ErrTimeout) {
		t.Fatalf("got %v, want ErrTimeout", err)
	}
	if text := err.Error(); text == "" || len(ops.list()) != 1 || ops.list()[0].Step() != "attach network" {
		t.Errorf("got %q and %v, want the step named and the job running", text, ops.list())
	}
	got := make(chan string)
	go func() {
		id, _ := ops.do(t.Context(), create{key: "sandbox a", digest: digestFor(t, "a")}, time.Minute, nothing, nil)
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
	if err := l.lock(t.Context(), &Operation{Kind: "stop"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := l.lock(ctx, &Operation{Kind: "stop"}); !errors.Is(err, ErrTimeout) {
		t.Errorf("got %v, want ErrTimeout", err)
	}
	l.unlock()
	if err := l.lock(t.Context(), &Operation{Kind: "stop"}); err != nil {
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

// Whoever waits for another operation's turn names it, while it waits and in its error.
func TestWaitingOperationNamesWhomItWaitsFor(t *testing.T) {
	var ops operations
	var m Manager
	l := newOpLock()
	stop := ops.begin(kindStopSandbox, "ns/pod", "3f2a91")
	if err := l.lock(t.Context(), stop); err != nil {
		t.Fatal(err)
	}
	stop.at("release network and namespaces")
	remove := ops.begin(kindRemoveSandbox, "ns/pod", "3f2a91")
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() { failed <- l.lock(ctx, remove) }()
	var waits []Wait
	for len(waits) == 0 {
		time.Sleep(time.Millisecond)
		waits = m.Waits(remove)
	}
	if want := "stop sandbox 3f2a91: release network and namespaces"; waits[0].For != WaitOperation || waits[0].Name != want {
		t.Errorf("got %+v, want an operation called %q", waits, want)
	}
	cancel()
	if err := <-failed; !strings.Contains(err.Error(), "stop sandbox: release network") {
		t.Errorf("got %v, want the operation that holds it up named", err)
	}
	l.unlock()
	if waits := m.Waits(remove); len(waits) != 0 {
		t.Errorf("after the other's end: got %+v, want nothing to wait for", waits)
	}
}

// An operation's end is told with every step and how long it took, and a step that comes later is nobody's.
func TestObserverHearsEveryStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heard []Step
		var result error
		ops := operations{observe: func(_ context.Context, op *Operation, err error) { heard, result = op.Steps(), err }}
		boom := errors.New("boom")
		var late *Operation
		err := ops.during(t.Context(), kindStartContainer, "ns/pod/c", "id", func(op *Operation) error {
			op.at("compile plan")
			time.Sleep(2 * time.Second)
			op.at("start process")
			time.Sleep(3 * time.Second)
			if got := op.timings(); len(got) != 1 || got[0] != (record.Step{Name: "compile plan", Micros: 2e6}) {
				t.Errorf("timings under way: got %v, want the finished step alone", got)
			}
			late = op
			return boom
		})
		late.at("too late")
		if err != boom || result != boom || len(heard) != 2 || heard[0].Took != 2*time.Second || heard[1].Took != 3*time.Second || heard[1].Name != "start process" {
			t.Errorf("got %v, %v, %+v, want both steps and the error", err, result, heard)
		}
		if len(ops.list()) != 0 || len(late.Steps()) != 2 {
			t.Errorf("afterwards: %d operations, steps %v", len(ops.list()), late.Steps())
		}
	})
}

// A kind that is not listed has no figures until its first operation, and no place in the documentation.
func TestEveryKindOfOperationIsListed(t *testing.T) {
	source, err := os.ReadFile("operation.go")
	if err != nil {
		t.Fatal(err)
	}
	kinds := regexp.MustCompile(`(?m)^\tkind\w+ += "(.*)"$`).FindAllStringSubmatch(string(source), -1)
	for _, kind := range kinds {
		if !slices.Contains(OperationKinds(), kind[1]) {
			t.Errorf("%q is not among %q", kind[1], OperationKinds())
		}
	}
	if len(kinds) != len(OperationKinds()) {
		t.Errorf("%d kinds in the source, %d listed", len(kinds), len(OperationKinds()))
	}
}
