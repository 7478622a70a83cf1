package sys

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// OnThread calls fn on a thread of its own and waits for it. fn may change what the thread has: namespaces, priority, what it
// may do, or trace others: the goroutine ends without unlocking it, so the Go runtime lets the thread die and nothing else
// ever runs there (runtime.LockOSThread).
func OnThread(fn func() error) error {
	done := make(chan error, 1)
	// Owner: this call, which waits for it. It stops when fn returns.
	go threadMain(fn, done)
	return <-done
}

func threadMain(fn func() error, done chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		done <- fn()
		return
	}
	// The main thread never dies: the runtime only parks it, and /proc/<pid>/ns
	// of the whole daemon would be the sandbox's from then on. While it is held
	// here, the next goroutine cannot land on it too. It changed nothing, so it
	// may be unlocked.
	inner := make(chan error, 1)
	// Owner: this goroutine, which waits for it.
	go threadMain(fn, inner)
	err := <-inner
	runtime.UnlockOSThread()
	done <- err
}
