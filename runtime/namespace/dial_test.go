package namespace

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDialReachesBothLoopbacksOfTheSandbox(t *testing.T) {
	p := newPins(t)
	ctx := context.Background()
	if err := p.Create(ctx, "sb1", all("")); err != nil {
		t.Fatal(err)
	}
	defer p.Remove(ctx, "sb1")
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		var listener net.Listener
		err := p.Run(ctx, "sb1", func() (err error) {
			listener, err = net.Listen("tcp", address)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		to := netip.MustParseAddrPort(listener.Addr().String())
		// Owner: this test; ends with its one connection.
		go func() {
			if conn, err := listener.Accept(); err == nil {
				io.Copy(conn, conn)
				conn.Close()
			}
		}()
		conn, err := p.DialTCP(ctx, "sb1", to)
		if err != nil {
			t.Fatalf("%s: %v", address, err)
		}
		conn.Write([]byte("hello"))
		conn.CloseWrite()
		if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
			t.Errorf("%s: got %q, %v, want the echo", address, got, err)
		}
		conn.Close()
		listener.Close()
		if _, err := p.DialTCP(ctx, "sb1", to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: nobody listens: got %v, want ECONNREFUSED", address, err)
		}
	}
}

// A full queue answers no connect; ctx ends it, and meanwhile no thread waits.
func TestDialWaitsOnNoThread(t *testing.T) {
	p := newPins(t)
	ctx := context.Background()
	if err := p.Create(ctx, "sb1", all("")); err != nil {
		t.Fatal(err)
	}
	defer p.Remove(ctx, "sb1")
	var fd int
	err := p.Run(ctx, "sb1", func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Listen(fd, 0)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*unix.SockaddrInet4).Port))
	threads := func() int {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(tasks)
	}
	before := threads()
	const dials = 50
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	done := make(chan error, dials)
	for range dials {
		// Owner: this test, which waits for all below.
		go func() {
			conn, err := p.DialTCP(short, "sb1", to)
			if err == nil {
				defer conn.Close()
			}
			done <- err
		}()
	}
	time.Sleep(time.Second)
	if now := threads(); now > before+20 {
		t.Errorf("threads while %d dials wait: got %d, before %d", dials, now, before)
	}
	late := 0
	for range dials {
		if err := <-done; errors.Is(err, context.DeadlineExceeded) {
			late++
		} else if err != nil {
			t.Errorf("got %v, want it connected or out of time", err)
		}
	}
	if late == 0 {
		t.Error("no dial met a full queue: the test shows nothing")
	}
}
