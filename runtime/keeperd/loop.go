package keeperd

import (
	"fmt"
	"sync"
	"time"

	"github.com/podwright/podwright/runtime/keeperd/internal/anchor"
	"golang.org/x/sys/unix"
)

// loop is one epoll instance and the functions to call when its descriptors are ready. There are two: control (the
// table, sockets, exits) and logs (the output of all containers), so that a log on a disk that hangs delays no
// start and no exit. Everything of a loop runs on its one goroutine, so what it owns needs no lock; another
// goroutine hands it work by post.
type loop struct {
	poller   *anchor.Poller
	wake     int // eventfd: something was posted
	handlers map[int]func()
	timers   []timer
	stopped  bool

	mu sync.Mutex // guards posted
	// posted is what other goroutines want done here.
	posted []func()
}

type timer struct {
	due time.Time
	f   func()
}

func newLoop() (*loop, error) {
	poller, err := anchor.NewPoller()
	if err != nil {
		return nil, err
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	l := &loop{poller: poller, wake: wake, handlers: map[int]func(){}}
	return l, l.watch(wake, unix.EPOLLIN, func() { unix.Read(wake, make([]byte, 8)) })
}

// watch calls f whenever fd is ready, level-triggered: one bounded piece of work per call is enough, and the others
// get their turn between two. A call may come without anything being ready (the number was another
// file's a moment ago), so f never blocks.
func (l *loop) watch(fd int, events uint32, f func()) error {
	op := unix.EPOLL_CTL_ADD
	if l.handlers[fd] != nil {
		op = unix.EPOLL_CTL_MOD
	}
	if err := l.poller.Control(op, fd, events); err != nil {
		return err
	}
	l.handlers[fd] = f
	return nil
}

// unwatch comes before every close of a watched fd: the anchor holds duplicates, and epoll goes on reporting a file
// until its last descriptor is gone (epoll(7)).
func (l *loop) unwatch(fd int) {
	if l.handlers[fd] != nil {
		delete(l.handlers, fd)
		l.poller.Control(unix.EPOLL_CTL_DEL, fd, 0)
	}
}

// post has f called on the loop's goroutine. It may be called from anywhere.
func (l *loop) post(f func()) {
	l.mu.Lock()
	l.posted = append(l.posted, f)
	l.mu.Unlock()
	unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// after has f called on the loop's goroutine, from which alone it may be called, once d is over.
func (l *loop) after(d time.Duration, f func()) {
	l.timers = append(l.timers, timer{time.Now().Add(d), f})
}

// run serves until stop is called on its goroutine.
func (l *loop) run() {
	events := make([]unix.EpollEvent, 64)
	for l.stopped = false; !l.stopped; {
		n, err := l.poller.Wait(events, l.timeout())
		if err != nil {
			panic(err) // EBADF or EFAULT: our own bug; the anchor restarts us
		}
		for i := 0; i < n; i++ {
			if f := l.handlers[int(events[i].Fd)]; f != nil {
				f()
			}
		}
		l.mu.Lock()
		posted := l.posted
		l.posted = nil
		l.mu.Unlock()
		for _, f := range posted {
			f()
		}
		l.fire()
	}
}

func (l *loop) stop() { l.stopped = true }

func (l *loop) timeout() time.Duration {
	wait := time.Duration(-1)
	for i := range l.timers {
		if left := max(0, time.Until(l.timers[i].due)); wait < 0 || left < wait {
			wait = left
		}
	}
	return wait
}

func (l *loop) fire() {
	now := time.Now()
	var due []timer
	kept := l.timers[:0]
	for _, t := range l.timers {
		if t.due.After(now) {
			kept = append(kept, t)
		} else {
			due = append(due, t)
		}
	}
	clear(l.timers[len(kept):])
	l.timers = kept
	for _, t := range due {
		t.f() // may add timers
	}
}
