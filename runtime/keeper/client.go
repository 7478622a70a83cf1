// Package keeper is the daemon's client of the keeper. It owns the connection: it starts keeper and anchor where none
// run, reconnects, pairs answers with requests, and delivers every exit at least once. It may not know what a container
// is, nor keep what the keeper can tell; it decides nothing about a child but that a launch nobody waits for is undone.
// Source: DESIGN "What the keeper promises"; protocol: package wire.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// Errors that callers branch on.
var (
	// ErrDisconnected: the keeper was not reachable, or went away before it answered; the request may have been done.
	ErrDisconnected = errors.New("keeper is not connected")
	// ErrUnknown: the keeper has no such child. Of Adopt: there is no such process any more.
	ErrUnknown = errors.New("unknown to the keeper")
	// ErrExists: the id is taken.
	ErrExists = errors.New("exists in the keeper")
	// ErrState: the child is not in the state this needs; a signal to an exited one, for example.
	ErrState = errors.New("child is in the wrong state")
	// ErrNone: no keeper runs, and the client is not to start one.
	ErrNone = errors.New("no keeper runs")
)

// Config says where the keeper is, and how to start one.
type Config struct {
	RunDir       string // e.g. /run/podwright/keeper; made where missing, mode 0700
	KeeperBinary string // copied to a sealed memfd at every start: the file may be replaced at any time
	InitBinary   string
	// CgroupProcs are cgroup.procs files, open for writing, of the keeper's own cgroup: one of v2, or one per
	// hierarchy of v1. They stay the caller's, open until Close.
	CgroupProcs []*os.File
	// Log gets what keeper and anchor log, for as long as they live; a file, not a pipe of the daemon's own. Nil: os.Stderr.
	Log *os.File
	// OnExit is told of every exit, in order, from one goroutine. After a reconnection an exit may come again.
	OnExit func(id string, e wire.Exit)
	// OnFresh is called after a reconnection to a keeper that knows none of the children before: keeper and anchor
	// died at once. It should Adopt what still runs; Connected is false until it returns.
	OnFresh func()
	// NoStart: reach a keeper that runs, and start none.
	NoStart bool
}

// Client speaks to one keeper, whichever process that is at present.
type Client struct {
	config    Config
	connected atomic.Bool
	again     atomic.Uint64 // connections after the first
	closing   context.CancelFunc
	done      sync.WaitGroup
	exits     exitQueue
	anchorPID int         // that we started, to be waited for; 0: none
	greeted   bool        // a keeper has answered, ever
	fresh     bool        // we started a pair, and OnFresh has not been called for it
	stopping  atomic.Bool // Shutdown: the end of the session is meant

	mu sync.Mutex // guards session
	// session is the present connection; nil between two.
	session *session
}

const (
	helloTimeout = 15 * time.Second // an upgrade in place may take as long
	minBackoff   = 10 * time.Millisecond
	maxBackoff   = 2 * time.Second
)

// Connect reaches the keeper, starting one if there is none, and stays connected until Close.
func Connect(ctx context.Context, config Config) (*Client, error) {
	if config.RunDir == "" || config.KeeperBinary == "" || config.InitBinary == "" || config.OnExit == nil {
		return nil, errors.New("keeper client: RunDir, KeeperBinary, InitBinary and OnExit are required")
	}
	for _, dir := range []string{config.RunDir, config.RunDir + "/" + wire.ExitsDir, config.RunDir + "/" + wire.ChildrenDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make keeper's directory: %w", err)
		}
	}
	c := &Client{config: config}
	c.exits.init(config.OnExit)
	var s *session
	err := retry(ctx, func() (err error) {
		if s, err = c.connect(ctx); err == nil {
			err = c.resync(ctx, s)
		}
		return err
	}, isPermanent)
	if err != nil {
		return nil, err
	}
	c.fresh = false // the caller asks for the list anyway
	lifetime, cancel := context.WithCancel(context.Background())
	c.closing = cancel
	c.connected.Store(true)
	c.done.Add(2)
	go func() { defer c.done.Done(); c.keepConnected(lifetime, s) }() // stopped and waited for by Close
	go func() { defer c.done.Done(); c.exits.run() }()                // stopped and waited for by Close
	return c, nil
}

// Connected tells, without a lock, whether requests can be made.
func (c *Client) Connected() bool { return c.connected.Load() }

// Reconnects counts the connections that were made anew since Connect.
func (c *Client) Reconnects() uint64 { return c.again.Load() }

// Close ends the client; keeper and children go on. It must not be called from OnExit.
func (c *Client) Close() {
	c.connected.Store(false)
	c.closing()
	c.exits.close()
	c.mu.Lock()
	s := c.session
	c.mu.Unlock()
	if s != nil {
		s.close()
	}
	c.done.Wait()
}

// keepConnected waits for the end of a session and begins the next.
func (c *Client) keepConnected(ctx context.Context, s *session) {
	for {
		select {
		case <-s.ended:
		case <-ctx.Done():
		}
		c.connected.Store(false)
		c.setSession(nil)
		s.close()
		if c.stopping.Load() {
			return
		}
		err := retry(ctx, func() (err error) {
			if s, err = c.connect(ctx); err != nil {
				return err
			}
			if c.fresh && c.config.OnFresh != nil {
				c.config.OnFresh()
			}
			return c.resync(ctx, s)
		}, func(error) bool { return false })
		if err != nil {
			return
		}
		c.fresh = false
		c.again.Add(1)
		c.connected.Store(true)
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
func (c *Client) connect(ctx context.Context) (*session, error) {
	socket, err := c.dial()
	if c.config.NoStart && (errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT)) {
		return nil, permanentError{fmt.Errorf("%w on %s", ErrNone, c.config.RunDir)}
	}
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
		if err = c.startPair(); err == nil {
			c.fresh = true
			socket, err = c.dial()
		}
	}
	if err != nil {
		return nil, err
	}
	s := newSession(socket, func(m *wire.Message) { c.exits.add(m.ID, m.Exit) })
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	if _, _, err = s.call(ctx, &wire.Message{Op: wire.OpHello}, nil); err != nil {
		s.close()
		return nil, fmt.Errorf("greet keeper: %w", errors.Join(err, c.anchorFate()))
	}
	c.greeted = true
	c.setSession(s)
	_ = c.anchorFate() // one that died alone was replaced by its keeper; as its parent we reap it
	return s, nil
}

// resync delivers the exits that were missed. Those that come twice are filtered by the queue.
func (c *Client) resync(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	m, _, err := s.call(ctx, &wire.Message{Op: wire.OpList}, nil)
	if err != nil {
		c.setSession(nil)
		s.close()
		return fmt.Errorf("list children: %w", err)
	}
	for i := range m.Children {
		if child := &m.Children[i]; child.Exit != nil {
			c.exits.add(child.ID, child.Exit)
		}
	}
	return nil
}

func (c *Client) setSession(s *session) {
	c.mu.Lock()
	c.session = s
	c.mu.Unlock()
}

// call makes a request on the present session.
func (c *Client) call(ctx context.Context, m *wire.Message, fds []int) (*wire.Message, []int, error) {
	c.mu.Lock()
	s := c.session
	c.mu.Unlock()
	if s == nil {
		return nil, nil, ErrDisconnected
	}
	return s.call(ctx, m, fds)
}

// failure turns an answer's error into what callers know.
func failure(e *wire.Error) error {
	switch e.Code {
	case wire.CodeStep:
		return &launch.StepError{Step: e.Text, Errno: e.Errno, Path: e.Path}
	case wire.CodeUnknown:
		return fmt.Errorf("%s: %w", e.Text, ErrUnknown)
	case wire.CodeExists:
		return fmt.Errorf("%s: %w", e.Text, ErrExists)
	case wire.CodeState:
		return fmt.Errorf("%s: %w", e.Text, ErrState)
	}
	return fmt.Errorf("keeper: %w", e)
}

// exitQueue delivers exits in order from one goroutine, so that a slow OnExit holds up no answer. It grows with the
// children that have exited and were not forgotten, no further.
type exitQueue struct {
	deliver func(id string, e wire.Exit)

	mu    sync.Mutex // guards what follows
	ready *sync.Cond
	list  []queuedExit
	// seen are the ids whose exit was queued since they were launched.
	seen   map[string]bool
	closed bool
}

type queuedExit struct {
	id   string
	exit wire.Exit
}

func (q *exitQueue) init(deliver func(string, wire.Exit)) {
	q.deliver, q.seen = deliver, map[string]bool{}
	q.ready = sync.NewCond(&q.mu)
}

func (q *exitQueue) add(id string, e *wire.Exit) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if e != nil && !q.seen[id] {
		q.seen[id] = true
		q.list = append(q.list, queuedExit{id, *e})
		q.ready.Signal()
	}
}

// reset makes an id new again: it was forgotten, or a launch of it begins.
func (q *exitQueue) reset(id string) {
	q.mu.Lock()
	delete(q.seen, id)
	q.mu.Unlock()
}

func (q *exitQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.ready.Signal()
	q.mu.Unlock()
}

func (q *exitQueue) run() {
	for {
		q.mu.Lock()
		for len(q.list) == 0 && !q.closed {
			q.ready.Wait()
		}
		if q.closed {
			q.mu.Unlock()
			return
		}
		next := q.list[0]
		q.list = q.list[1:]
		q.mu.Unlock()
		q.deliver(next.id, next.exit)
	}
}
