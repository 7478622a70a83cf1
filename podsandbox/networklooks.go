package podsandbox

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/podwright/podwright/runtime/namespace"
)

// networkFigures are the interfaces of one sandbox.
type networkFigures struct {
	at    time.Time
	links []namespace.Link
}

// networkLooks looks into network namespaces whenever somebody asks. Each call takes one thread; where the kernel holds
// all of networkThreads up, further calls get nothing once they have waited for lookPatience.
type networkLooks struct {
	read    func(ctx context.Context, ids []string, visit func(id string, links []namespace.Link, err error))
	threads chan struct{} // a slot for each

	mu   sync.Mutex // mu guards slow.
	slow map[string]bool
}

const (
	networkThreads = 4
	// networkSlow is how long a look at an ordinary namespace never takes: those that did are looked at last.
	networkSlow     = 20 * time.Millisecond
	maxSlowNetworks = 1000
)

func newNetworkLooks(read func(context.Context, []string, func(string, []namespace.Link, error))) *networkLooks {
	return &networkLooks{read: read, threads: make(chan struct{}, networkThreads), slow: map[string]bool{}}
}

// at looks at the namespaces of sandboxes. Those that are gone, or did not answer, are missing.
func (n *networkLooks) at(ctx context.Context, ids []string) map[string]networkFigures {
	if len(ids) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	select {
	case n.threads <- struct{}{}:
	case <-ctx.Done():
		return nil
	}
	type answer struct {
		id string
		networkFigures
	}
	answers, done := make(chan answer, len(ids)), make(chan struct{})
	// Owner: this call; ends with the last namespace or ctx. One that hangs in the kernel is nobody's until it answers.
	go func() {
		defer func() { <-n.threads }()
		defer close(done)
		began := time.Now()
		n.read(ctx, n.slowLast(ids), func(id string, links []namespace.Link, err error) {
			now := time.Now()
			n.note(id, now.Sub(began) > networkSlow && err == nil)
			if began = now; err == nil {
				answers <- answer{id, networkFigures{now, links}}
			}
		})
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	found := make(map[string]networkFigures, len(ids))
	for {
		select {
		case a := <-answers:
			found[a.id] = a.networkFigures
		default:
			return found
		}
	}
}

func (n *networkLooks) slowLast(ids []string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.slow) == 0 {
		return ids
	}
	order := slices.Clone(ids)
	slices.SortStableFunc(order, func(a, b string) int {
		switch {
		case n.slow[a] == n.slow[b]:
			return 0
		case n.slow[a]:
			return 1
		}
		return -1
	})
	return order
}

func (n *networkLooks) note(id string, slow bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slow {
		delete(n.slow, id)
		return
	}
	if len(n.slow) >= maxSlowNetworks { // of sandboxes that are long gone
		clear(n.slow)
	}
	n.slow[id] = true
}
