package keeper

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// link is the client's connection: it makes the first one, and another when that ends, with a keeper where there is none.
type link struct {
	config    Config
	connected atomic.Bool
	again     atomic.Uint64 // connections after the first
	exits     exitQueue
	anchorPID int         // that we started, to be waited for; 0: none
	greeted   bool        // a keeper has answered, ever
	fresh     bool        // we started a pair, and OnFresh has not been called for it
	stopping  atomic.Bool // Shutdown: the end of the session is meant

	reached chan struct{} // closed by the first connection
	failed  chan error    // why there will be none; has room for the one
	settled atomic.Bool   // Connect has, or is about to have, its answer: from now on nothing is given up

	mu sync.Mutex // guards what follows
	// session is the present connection; nil between two.
	session *session
	trouble error // of the last attempt to connect; nil while connected
}

const (
	helloTimeout = 15 * time.Second // an upgrade in place may take as long
	lookInterval = 5 * time.Second  // between two looks whether a connected keeper answers
	lookTimeout  = 5 * time.Second  // after which it is said not to
	minBackoff   = 10 * time.Millisecond
	maxBackoff   = 2 * time.Second
)

// firstConnection waits for it, or for the end of the patience.
func (l *link) firstConnection(ctx context.Context) error {
	var patience <-chan time.Time
	if l.config.Patience > 0 {
		timer := time.NewTimer(l.config.Patience)
		defer timer.Stop()
		patience = timer.C
	}
	select {
	case <-l.reached:
		return nil
	case err := <-l.failed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("connect to keeper: %w", errors.Join(l.Trouble(), ctx.Err()))
	case <-patience:
	}
	if l.settled.CompareAndSwap(false, true) {
		return nil
	}
	select { // it was connected, or given up, at the same moment
	case <-l.reached:
		return nil
	case err := <-l.failed:
		return err
	}
}

// Connected tells, without a lock, whether requests can be made.
func (l *link) Connected() bool { return l.connected.Load() }

// Reached is closed by the first connection.
func (l *link) Reached() <-chan struct{} { return l.reached }

// Trouble is why the last attempt to connect failed; nil while connected, and before one has failed.
func (l *link) Trouble() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.trouble
}

// Reconnects counts the connections that were made anew since Connect.
func (l *link) Reconnects() uint64 { return l.again.Load() }

// keepConnected begins a session, waits for its end and begins the next.
func (l *link) keepConnected(ctx context.Context) {
	for first := true; ; first = false {
		var s *session
		err := retry(ctx, func() (err error) {
			s, err = l.begin(ctx, first)
			l.mu.Lock()
			l.trouble = err
			l.mu.Unlock()
			return err
		}, func(err error) bool { return isPermanent(err) && l.settled.CompareAndSwap(false, true) })
		if err != nil {
			l.failed <- err
			return
		}
		l.fresh = false
		if l.connected.Store(true); first {
			l.settled.Store(true)
			close(l.reached)
		} else {
			l.again.Add(1)
		}
		l.attend(ctx, s)
		l.connected.Store(false)
		l.setSession(nil)
		s.close()
		if l.stopping.Load() {
			return
		}
	}
}

// begin makes a session through which all exits so far were told. Of a pair that was started for the first one OnFresh
// is not told: who connects asks for the children anyway.
func (l *link) begin(ctx context.Context, first bool) (*session, error) {
	s, err := l.connect(ctx)
	if err != nil {
		return nil, err
	}
	if l.fresh && !first && l.config.OnFresh != nil {
		l.config.OnFresh()
	}
	return s, l.resync(ctx, s)
}

// attend waits for the end of a session. Where the keeper stops answering, Connected is false until it does again.
func (l *link) attend(ctx context.Context, s *session) {
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	for {
		select {
		case <-s.ended:
			return
		case <-ctx.Done():
			return
		case <-look.C:
		}
		soon, cancel := context.WithTimeout(ctx, lookTimeout)
		_, _, err := s.call(soon, &wire.Message{Op: wire.OpHello}, nil)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			l.connected.Store(false)
			_, _, err = s.call(ctx, &wire.Message{Op: wire.OpHello}, nil)
		}
		if err != nil {
			return
		}
		l.connected.Store(true)
	}
}

// retry calls f, ever more seldom, until it succeeds, gives up, or ctx ends.
func retry(ctx context.Context, f func() error, giveUp func(error) bool) error {
	for wait := minBackoff; ; wait = min(2*wait, maxBackoff) {
		err := ctx.Err()
		if err == nil {
			err = f()
		}
		if err == nil || giveUp(err) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("connect to keeper: %w", errors.Join(err, ctx.Err()))
		}
	}
}

// permanentError is what trying again won't change: a program is missing, an anchor can't do its work here.
type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

func isPermanent(err error) bool {
	var permanent permanentError
	return errors.As(err, &permanent)
}

// connect makes the session through which requests go, and a keeper where there is none.
func (l *link) connect(ctx context.Context) (*session, error) {
	socket, err := l.dial()
	if l.config.NoStart && (errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT)) {
		return nil, permanentError{fmt.Errorf("%w on %s", ErrNone, l.config.RunDir)}
	}
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
		if err = l.start(ctx); err == nil {
			l.fresh = true
			socket, err = l.dial()
		}
	}
	if err != nil {
		return nil, err
	}
	s := newSession(socket, func(m *wire.Message) { l.exits.add(m.ID, m.Exit) })
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	if _, _, err = s.call(ctx, &wire.Message{Op: wire.OpHello}, nil); err != nil {
		s.close()
		return nil, fmt.Errorf("greet keeper: %w", errors.Join(err, l.anchorFate()))
	}
	l.greeted = true
	l.setSession(s)
	_ = l.anchorFate() // one that died alone was replaced by its keeper; as its parent we reap it
	return s, nil
}

// start starts a keeper by its unit or, where there is none or it fails, by itself.
func (l *link) start(ctx context.Context) error {
	if l.config.Start == nil {
		return l.startPair()
	}
	if err := l.config.Start(ctx); err != nil {
		return l.startPair() // whoever starts the unit has said why it failed
	}
	return nil
}

// resync delivers the exits that were missed. Those that come twice are filtered by the queue.
func (l *link) resync(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	m, _, err := s.call(ctx, &wire.Message{Op: wire.OpList}, nil)
	if err != nil {
		l.setSession(nil)
		s.close()
		return fmt.Errorf("list children: %w", err)
	}
	for i := range m.Children {
		if child := &m.Children[i]; child.Exit != nil {
			l.exits.add(child.ID, child.Exit)
		}
	}
	return nil
}

func (l *link) setSession(s *session) {
	l.mu.Lock()
	l.session = s
	l.mu.Unlock()
}

// call makes a request on the present session.
func (l *link) call(ctx context.Context, m *wire.Message, fds []int) (*wire.Message, []int, error) {
	l.mu.Lock()
	s := l.session
	l.mu.Unlock()
	if s == nil {
		return nil, nil, ErrDisconnected
	}
	return s.call(ctx, m, fds)
}
