package podsandbox

import (
	"context"
	"crypto/sha256"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
)

// operations holds the creates under way, by the identity the client gave the object.
//
// A create is a job of its own, and the RPC that asked for it only waits: a client that vanishes
// changes nothing, and a retry with the same identity joins the job and gets its answer (B3, B4, B5).
// "name is reserved" cannot happen.
type operations struct {
	mu      sync.Mutex // mu guards running.
	running map[string]*Operation
	wait    sync.WaitGroup // jobs under way
}

// Operation is one job: what it makes, since when, and the step it is at.
type Operation struct {
	Key     string // kind and identity, e.g. "sandbox ns/name/uid/0"
	Started time.Time

	step   atomic.Pointer[string]
	digest [sha256.Size]byte
	done   chan struct{} // closed once id and err are final
	id     string
	err    error
}

// Step names what the operation does now.
func (o *Operation) Step() string {
	if s := o.step.Load(); s != nil {
		return *s
	}
	return ""
}

func (o *Operation) at(step string) { o.step.Store(&step) }

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

// do joins the running job of key, or starts job on a goroutine of its own and waits for it. existing is asked,
// with the table locked, whether a finished object already has the identity; it answers that object's id and digest.
// The job's context outlives ctx's cancellation and ends by deadline.
func (o *operations) do(ctx context.Context, key string, digest [sha256.Size]byte, deadline time.Duration,
	existing func() (id string, digest [sha256.Size]byte, ok bool), job func(context.Context, *Operation) (string, error)) (string, error) {
	o.mu.Lock()
	op := o.running[key]
	if op == nil {
		if id, have, ok := existing(); ok {
			o.mu.Unlock()
			if have != digest {
				return "", kindf(ErrExists, "%s exists as %s with another configuration", key, id)
			}
			return id, nil
		}
		op = &Operation{Key: key, Started: time.Now(), digest: digest, done: make(chan struct{})}
		if o.running == nil {
			o.running = map[string]*Operation{}
		}
		o.running[key] = op
		o.wait.Add(1)
		// Owner: operations; ends with the job, whose context has a deadline; drain waits for it.
		go o.run(context.WithoutCancel(ctx), op, deadline, job)
	}
	o.mu.Unlock()
	if op.digest != digest {
		return "", kindf(ErrExists, "%s is being created with another configuration", key)
	}
	select {
	case <-op.done:
		return op.id, op.err
	case <-ctx.Done():
		return "", kindf(ErrTimeout, "%s is still being created (%s, for %s): %w", key, op.Step(), time.Since(op.Started).Round(time.Millisecond), ctx.Err())
	}
}

func (o *operations) run(ctx context.Context, op *Operation, deadline time.Duration, job func(context.Context, *Operation) (string, error)) {
	defer o.wait.Done()
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	op.id, op.err = job(ctx, op)
	o.mu.Lock()
	delete(o.running, op.Key)
	o.mu.Unlock()
	close(op.done)
}

// list gives the operations under way, oldest first.
func (o *operations) list() []*Operation {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := make([]*Operation, 0, len(o.running))
	for _, op := range o.running {
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
type opLock chan struct{}

func newOpLock() opLock { return make(opLock, 1) }

func (l opLock) lock(ctx context.Context, what string) error {
	select {
	case l <- struct{}{}:
		return nil
	default:
	}
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return kindf(ErrTimeout, "%s: another operation on it is still running: %w", what, ctx.Err())
	}
}

func (l opLock) unlock() { <-l }
