package podsandbox

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/podwright/podwright/podsandbox/record"
)

// operations holds the work under way, and of the creates among it the identity the client gave the object.
//
// A create is a job of its own, and the RPC that asked for it only waits: a client that vanishes
// changes nothing, and a retry with the same identity joins the job and gets its answer (B3, B4, B5).
// "name is reserved" cannot happen.
type operations struct {
	// observe is told of every operation that ended; nil without anybody who wants to know.
	observe func(ctx context.Context, op *Operation, err error)

	mu      sync.Mutex            // mu guards what follows.
	all     map[*Operation]bool   // the set of those under way
	running map[string]*Operation // creates, by key
	wait    sync.WaitGroup        // jobs under way
}

// The kinds of operations; metrics and spans are named by them.
const (
	kindRunSandbox      = "run sandbox"
	kindStopSandbox     = "stop sandbox"
	kindRemoveSandbox   = "remove sandbox"
	kindCreateContainer = "create container"
	kindStartContainer  = "start container"
	kindStopContainer   = "stop container"
	kindRemoveContainer = "remove container"
	kindUpdateContainer = "update container"
	kindReopenLog       = "reopen log"
	kindExec            = "exec"
	kindExecSession     = "exec session"
	kindAttachSession   = "attach session"
	kindRelabel         = "label volume"
)

// OperationKinds gives them all.
func OperationKinds() []string {
	return []string{
		kindRunSandbox, kindStopSandbox, kindRemoveSandbox, kindCreateContainer, kindStartContainer, kindStopContainer, kindRemoveContainer,
		kindUpdateContainer, kindReopenLog, kindExec, kindExecSession, kindAttachSession, kindRelabel,
	}
}

// Operation is one piece of work under way: what it does to what, since when, the step it is at and what it waits for.
// A nil one takes everything and remembers nothing: recovery works without.
type Operation struct {
	Kind    string
	Name    string // of what, as its client calls it: kubeNamespace/pod, kubeNamespace/pod/container
	Started time.Time

	mu    sync.Mutex // mu guards what follows.
	id    string     // of the sandbox or container, once it has one
	steps []Step     // the last is under way until the operation has ended
	ended bool
	took  time.Duration // once it has ended
	wait  Wait

	// Of creates only.
	key    string
	digest [sha256.Size]byte
	done   chan struct{} // closed once id and err are final
	err    error
}

// Step is one part of an operation. Its names are few and fixed.
type Step struct {
	Name  string
	Began time.Time
	Took  time.Duration // 0 while it is under way
}

// Step names what the operation does now.
func (o *Operation) Step() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.steps) == 0 {
		return ""
	}
	return o.steps[len(o.steps)-1].Name
}

// Steps gives the steps so far, in their order.
func (o *Operation) Steps() []Step {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]Step(nil), o.steps...)
}

// Took is how long it took; 0 while it is under way.
func (o *Operation) Took() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.took
}

// ID is the sandbox's or container's, "" before it has one.
func (o *Operation) ID() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.id
}

// at begins a step, and ends the one before it with what that waited for.
func (o *Operation) at(step string) {
	if o == nil {
		return
	}
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended { // by a caller that left its work to others
		return
	}
	o.endStepLocked(now)
	o.steps = append(o.steps, Step{Name: step, Began: now})
	o.wait = Wait{}
}

func (o *Operation) endStepLocked(now time.Time) {
	if last := len(o.steps) - 1; last >= 0 {
		o.steps[last].Took = now.Sub(o.steps[last].Began)
	}
}

// on says what the step waits for from now on.
func (o *Operation) on(w Wait) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.wait = w
}

func (o *Operation) is(id string) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.id = id
}

// timings are the finished steps as a record keeps them; the one under way writes that record.
func (o *Operation) timings() []record.Step {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []record.Step
	for i, s := range o.steps {
		if i == len(o.steps)-1 && !o.ended {
			break
		}
		list = append(list, record.Step{Name: s.Name, Micros: s.Took.Microseconds()})
	}
	return list
}

// create is what identifies a create to a client that asks again.
type create struct {
	kind, name string
	key        string // kind of object and identity, e.g. "sandbox ns/name/uid/0"
	digest     [sha256.Size]byte
}

// digestOf identifies a request: a retry is the same request, or it is another object with a taken name.
func digestOf(messages ...proto.Message) ([sha256.Size]byte, error) {
	h := sha256.New()
	for _, m := range messages {
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			return [sha256.Size]byte{}, kindf(ErrInvalid, "encode request: %w", err)
		}
		h.Write(raw)
		h.Write([]byte{0})
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// do joins the running job of want.key, or starts job on a goroutine of its own and waits for it. existing is asked,
// with the table locked, whether a finished object already has the identity; it answers that object's id and digest.
// The job's context outlives ctx's cancellation and ends by deadline.
func (o *operations) do(ctx context.Context, want create, deadline time.Duration,
	existing func() (id string, digest [sha256.Size]byte, ok bool), job func(context.Context, *Operation) (string, error)) (string, error) {
	o.mu.Lock()
	op := o.running[want.key]
	if op == nil {
		if id, have, ok := existing(); ok {
			o.mu.Unlock()
			if have != want.digest {
				return "", kindf(ErrExists, "%s exists as %s with another configuration", want.key, id)
			}
			return id, nil
		}
		op = &Operation{Kind: want.kind, Name: want.name, Started: time.Now(), key: want.key, digest: want.digest, done: make(chan struct{})}
		if o.running == nil {
			o.running = map[string]*Operation{}
		}
		o.running[want.key] = op
		o.addLocked(op)
		o.wait.Add(1)
		// Owner: operations; ends with the job, whose context has a deadline; drain waits for it.
		go o.run(context.WithoutCancel(ctx), op, deadline, job)
	}
	o.mu.Unlock()
	if op.digest != want.digest {
		return "", kindf(ErrExists, "%s is being created with another configuration", want.key)
	}
	select {
	case <-op.done:
		if op.err != nil {
			return "", op.err
		}
		return op.id, nil
	case <-ctx.Done():
		return "", kindf(ErrTimeout, "%s is still being created (%s, for %s): %w", want.key, op.Step(), time.Since(op.Started).Round(time.Millisecond), ctx.Err())
	}
}

func (o *operations) run(ctx context.Context, op *Operation, deadline time.Duration, job func(context.Context, *Operation) (string, error)) {
	defer o.wait.Done()
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	id, err := job(ctx, op)
	if op.err = err; err == nil {
		op.is(id)
	}
	o.end(ctx, op, err)
	close(op.done)
}

// begin lists an operation until its end.
func (o *operations) begin(kind, name, id string) *Operation {
	op := &Operation{Kind: kind, Name: name, Started: time.Now(), id: id}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.addLocked(op)
	return op
}

func (o *operations) addLocked(op *Operation) {
	if o.all == nil {
		o.all = map[*Operation]bool{}
	}
	o.all[op] = true
}

// end takes it off the list and tells who observes, before the caller has its answer.
func (o *operations) end(ctx context.Context, op *Operation, err error) {
	op.mu.Lock()
	now := time.Now()
	op.endStepLocked(now)
	op.ended, op.took = true, now.Sub(op.Started)
	op.mu.Unlock()
	o.mu.Lock()
	delete(o.all, op)
	if op.key != "" {
		delete(o.running, op.key)
	}
	o.mu.Unlock()
	if o.observe != nil {
		o.observe(ctx, op, err)
	}
}

// during makes work an operation.
func (o *operations) during(ctx context.Context, kind, name, id string, work func(*Operation) error) error {
	op := o.begin(kind, name, id)
	err := work(op)
	o.end(ctx, op, err)
	return err
}

// list gives the operations under way, oldest first.
func (o *operations) list() []*Operation {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := make([]*Operation, 0, len(o.all))
	for op := range o.all {
		all = append(all, op)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Started.Before(all[j].Started) })
	return all
}

// drain waits until no job runs, or ctx ends.
func (o *operations) drain(ctx context.Context) error {
	idle := make(chan struct{})
	// Owner: this call; ends with the last job, each of which has a deadline.
	go func() {
		o.wait.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// opLock serialises the life cycle verbs on one object. It is a one-slot channel, so that a caller
// whose context ends leaves the queue.
type opLock struct {
	slot   chan struct{}
	holder atomic.Pointer[Operation]
}

func newOpLock() *opLock { return &opLock{slot: make(chan struct{}, 1)} }

// lock is op's turn, or its context's end; until then op says whom it waits for.
func (l *opLock) lock(ctx context.Context, op *Operation) error {
	select {
	case l.slot <- struct{}{}:
		l.holder.Store(op)
		return nil
	default:
	}
	op.at("wait for its turn")
	op.on(Wait{For: WaitOperation, lock: l})
	select {
	case l.slot <- struct{}{}:
		l.holder.Store(op)
		return nil
	case <-ctx.Done():
		return kindf(ErrTimeout, "%s %s: another operation on it is still running%s: %w", op.Kind, op.ID(), l.heldBy(), ctx.Err())
	}
}

// heldBy names the holder for an error, "" where it has just left.
func (l *opLock) heldBy() string {
	holder := l.holder.Load()
	if holder == nil {
		return ""
	}
	return " (" + holder.Kind + ": " + holder.Step() + ")"
}

func (l *opLock) unlock() {
	l.holder.Store(nil)
	<-l.slot
}

// toItsEnd does one thing to a container, by itself. A caller that vanishes stops nothing half way; the deadline does.
// Its errors begin with what, which the container's id follows.
func toItsEnd(ctx context.Context, m *core, c *container, kind, what string, deadline time.Duration, job func(context.Context, *Operation) error) error {
	op := m.ops.begin(kind, containerName(m, c), c.id)
	if err := c.op.lock(ctx, op); err != nil {
		m.ops.end(ctx, op, err)
		return err
	}
	done := make(chan error, 1)
	m.exits.Add(1)
	// Owner: core; ends with its deadline; Shutdown waits for it.
	go func() {
		defer m.exits.Done()
		defer c.op.unlock()
		detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), deadline)
		defer cancel()
		err := job(detached, op)
		m.ops.end(detached, op, err)
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%s %s: %w", what, c.id, err)
		}
		return nil
	case <-ctx.Done():
		return kindf(ErrTimeout, "%s %s: still under way: %w", what, c.id, ctx.Err())
	}
}
