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
	"time"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/wire"
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
	// ErrLimit: there are as many as there may be.
	ErrLimit = errors.New("limit reached")
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
	// Start starts a keeper in a way of its own, by its unit, and returns when there is one; where it fails the client starts
	// one itself. Optional.
	Start func(ctx context.Context) error
	// NoStart: reach a keeper that runs, and start none.
	NoStart bool
	// Patience is how long Connect waits for a keeper that does not answer. It then gives a client that is not connected and
	// goes on trying. 0: as long as its context lasts.
	Patience time.Duration
}

// Client speaks to one keeper, whichever process that is at present.
type Client struct {
	link
	closing context.CancelFunc
	done    sync.WaitGroup
}

// Connect reaches the keeper, starting one if there is none, and stays connected until Close. What trying again won't
// change is an error, at this time only.
func Connect(ctx context.Context, config Config) (*Client, error) {
	if config.RunDir == "" || config.KeeperBinary == "" || config.InitBinary == "" || config.OnExit == nil {
		return nil, errors.New("keeper client: RunDir, KeeperBinary, InitBinary and OnExit are required")
	}
	if err := makeRunDir(config.RunDir); err != nil {
		return nil, err
	}
	c := &Client{link: link{config: config, reached: make(chan struct{}), failed: make(chan error, 1)}}
	c.exits.init(config.OnExit)
	lifetime, cancel := context.WithCancel(context.Background())
	c.closing = cancel
	c.done.Add(2)
	go func() { defer c.done.Done(); c.keepConnected(lifetime) }() // stopped and waited for by Close
	go func() { defer c.done.Done(); c.exits.run() }()             // stopped and waited for by Close
	if err := c.firstConnection(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Start starts a keeper where none runs, and leaves it to itself. It stays in this process's control groups.
func Start(config Config) error {
	if err := makeRunDir(config.RunDir); err != nil {
		return err
	}
	l := &link{config: config}
	socket, err := l.dial()
	if err == nil {
		return socket.Close()
	}
	return l.startPair()
}

func makeRunDir(runDir string) error {
	for _, dir := range []string{runDir, runDir + "/" + wire.ExitsDir, runDir + "/" + wire.ChildrenDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make keeper's directory: %w", err)
		}
	}
	return nil
}

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
	case wire.CodeLimit:
		return fmt.Errorf("%s: %w", e.Text, ErrLimit)
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
