package anchor

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Poller is an epoll instance that the Go runtime's own poller waits for. A goroutine that blocks in epoll_wait(2)
// itself keeps its scheduler slot for up to 10 ms, in which the runtime's monitor thread wakes 80 times: more
// processor time than a start's whole work.
type Poller struct {
	fd    int
	file  *os.File
	raw   syscall.RawConn
	timed bool
}

// NewPoller makes one.
func NewPoller() (*Poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // or the runtime takes it for a regular file
		return nil, fmt.Errorf("epoll: %w", err)
	}
	p := &Poller{fd: fd, file: os.NewFile(uintptr(fd), "epoll")}
	if p.raw, err = p.file.SyscallConn(); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return p, nil
}

// Control is epoll_ctl(2).
func (p *Poller) Control(op, fd int, events uint32) error {
	if err := unix.EpollCtl(p.fd, op, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// Wait gives the number of events that are ready, 0 once timeout is over; a negative one is none.
func (p *Poller) Wait(events []unix.EpollEvent, timeout time.Duration) (n int, err error) {
	if timeout >= 0 || p.timed {
		deadline := time.Time{}
		if timeout >= 0 {
			deadline = time.Now().Add(max(timeout, time.Millisecond))
		}
		p.timed = timeout >= 0
		if err := p.file.SetReadDeadline(deadline); err != nil {
			return 0, fmt.Errorf("epoll: %w", err)
		}
	}
	var errno syscall.Errno
	err = p.raw.Read(func(fd uintptr) bool {
		var ready uintptr
		// It doesn't block, so the scheduler needn't know of it.
		ready, _, errno = unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, fd, uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
		n = int(ready)
		return errno != 0 || n > 0
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, nil
	case errno != 0 && errno != unix.EINTR:
		return 0, fmt.Errorf("epoll_wait: %w", errno)
	case errno != 0:
		return 0, nil
	}
	return n, err
}
