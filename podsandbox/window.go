package podsandbox

import (
	"context"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// window follows the size of a client's terminal.
type window struct {
	sizes bool          // the client sends sizes
	known chan struct{} // closed at the first size, or when there will be none

	mu      sync.Mutex // mu guards what follows.
	size    TerminalSize
	console *os.File
}

// watchWindow takes sizes until ctx ends, whether anybody wants them or not: one that nobody takes holds up what else
// the client sends (B30).
func watchWindow(ctx context.Context, sizes <-chan TerminalSize) *window {
	w := &window{sizes: sizes != nil, known: make(chan struct{})}
	if !w.sizes {
		close(w.known)
		return w
	}
	// Owner: the session; ends with its context or when the client's stream of sizes ends. Nobody waits: it touches
	// nothing but the console, which may be closed.
	go func() {
		var once sync.Once
		known := func() { close(w.known) }
		defer once.Do(known)
		for {
			select {
			case size, ok := <-sizes:
				if !ok {
					return
				}
				w.set(size)
				once.Do(known)
			case <-ctx.Done():
				return
			}
		}
	}()
	return w
}

// first is the size the client began with, if it comes in time.
func (w *window) first(ctx context.Context) (TerminalSize, bool) {
	select {
	case <-w.known:
	case <-time.After(firstSizePatience):
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.size, w.size != TerminalSize{}
}

// of says which terminal it is, nil for none.
func (w *window) of(console *os.File) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.console = console
	w.applyLocked()
}

func (w *window) set(size TerminalSize) {
	if size.Columns == 0 || size.Rows == 0 {
		return // no window has such a size, and programs divide by it
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.size = size
	w.applyLocked()
}

// applyLocked tells the kernel, which sends SIGWINCH where the size differs (ioctl_tty(2)).
func (w *window) applyLocked() {
	if w.console == nil || w.size == (TerminalSize{}) {
		return
	}
	if raw, err := w.console.SyscallConn(); err == nil { // an error: it is closed
		raw.Control(func(fd uintptr) {
			unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: w.size.Rows, Col: w.size.Columns})
		})
	}
}
