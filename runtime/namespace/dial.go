package namespace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DialTCP connects to a port inside the sandbox's network namespace, until ctx ends. Only the socket is made there,
// on a thread that ends right after: a listener whose queue is full costs no thread while it is waited for.
func (p *Pins) DialTCP(ctx context.Context, id string, to netip.AddrPort) (*net.TCPConn, error) {
	fd := -1
	err := p.Run(ctx, id, func() (err error) {
		fd, err = unix.Socket(family(to), unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", to, err)
	}
	socket := os.NewFile(uintptr(fd), to.String())
	conn, err := net.FileConn(socket) // a duplicate
	socket.Close()
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", to, err)
	}
	tcp := conn.(*net.TCPConn)
	if err := connect(ctx, tcp, to); err != nil {
		tcp.Close()
		return nil, fmt.Errorf("dial %s: %w", to, err)
	}
	return tcp, nil
}

func family(to netip.AddrPort) int {
	if to.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	if to.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}

// connect does what net.Dialer does with a socket of its own: connect(2), then wait until it is writable.
func connect(ctx context.Context, conn *net.TCPConn, to netip.AddrPort) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetWriteDeadline(time.Unix(1, 0)) })
	begun := false
	var failure error
	err = raw.Write(func(fd uintptr) (done bool) {
		if !begun {
			begun = true
			failure = unix.Connect(int(fd), sockaddr(to))
			return !errors.Is(failure, unix.EINPROGRESS) && !errors.Is(failure, unix.EINTR)
		}
		if code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
			failure = errors.Join(err, errno(code))
			return true
		}
		// A socket that was never connected is writable, too.
		_, failure = unix.Getpeername(int(fd))
		return !errors.Is(failure, unix.ENOTCONN)
	})
	if !stop() {
		return ctx.Err() // the deadline is set by now, or will be any moment
	}
	if err != nil {
		return err
	}
	return os.NewSyscallError("connect", failure)
}

func errno(code int) error {
	if code == 0 {
		return nil
	}
	return syscall.Errno(code)
}
