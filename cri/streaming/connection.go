package streaming

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxConnections bounds what anybody who reaches the port can take of the daemon, with a token or without.
const maxConnections = 4096

// connections are those that are open. They tell when a client has left: the library reads a connection only as far as
// the session takes what came before, and net/http ceases to look once a session has taken the connection over.
type connections struct {
	patience time.Duration // of a write that the client does not take

	mu     sync.Mutex // mu guards what follows.
	open   map[*connection]bool
	closed bool
	ended  chan struct{} // closed by closeAll; nil before watch
}

// listener hands out connections that are watched.
type listener struct {
	net.Listener
	connections *connections
}

func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.connections.add(conn.(*net.TCPConn)), nil
}

// connection is a TCP connection whose end, by either side, ends its context.
type connection struct {
	net.Conn // not the TCP connection itself: its ReadFrom and WriteTo would pass Read and Write by
	tcp      *net.TCPConn
	all      *connections

	mu   sync.Mutex // mu guards gone.
	gone context.CancelFunc
}

func (c *connections) add(tcp *net.TCPConn) *connection {
	conn := &connection{Conn: tcp, tcp: tcp, all: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.open) >= maxConnections {
		tcp.Close()
		return conn
	}
	if c.open == nil {
		c.open = map[*connection]bool{}
	}
	c.open[conn] = true
	return conn
}

// contextOf makes the context of everything that is done for a connection.
func (c *connections) contextOf(ctx context.Context, conn net.Conn) context.Context {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	ctx, cancel := context.WithCancel(ctx)
	own := conn.(*connection)
	own.mu.Lock()
	own.gone = cancel
	own.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.open[own] {
		cancel()
	}
	return ctx
}

// Read notices the client's end. There is no half-closed session: SPDY and WebSocket end streams by messages.
func (c *connection) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.Close()
	}
	return n, err
}

// Write gives the client as long as a session may be idle: one that reads nothing at all is gone, and the library's own
// idle timer waits for the write.
func (c *connection) Write(b []byte) (int, error) {
	c.Conn.SetWriteDeadline(time.Now().Add(c.all.patience))
	n, err := c.Conn.Write(b)
	if err != nil {
		c.Close()
	}
	return n, err
}

func (c *connection) Close() error {
	c.all.mu.Lock()
	delete(c.all.open, c)
	c.all.mu.Unlock()
	c.mu.Lock()
	gone := c.gone
	c.mu.Unlock()
	if gone != nil {
		gone()
	}
	return c.Conn.Close()
}

// peerLeft: the other side has closed, whatever it sent before that nobody has read yet.
func (c *connection) peerLeft() bool {
	raw, err := c.tcp.SyscallConn()
	if err != nil {
		return true
	}
	left := false
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		left = err == nil && (info.State == unix.BPF_TCP_CLOSE_WAIT || info.State == unix.BPF_TCP_CLOSE)
	})
	return left || err != nil
}

// watch looks for clients that left while what they sent is not read to its end: input that a command does not take.
func (c *connections) watch(every time.Duration) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	ended := make(chan struct{})
	c.ended = ended
	c.mu.Unlock()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ended:
			return
		}
		for _, conn := range c.list() {
			if conn.peerLeft() {
				conn.Close()
			}
		}
	}
}

func (c *connections) list() []*connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]*connection, 0, len(c.open))
	for conn := range c.open {
		list = append(list, conn)
	}
	return list
}

func (c *connections) closeAll() {
	c.mu.Lock()
	if c.closed = true; c.ended != nil {
		close(c.ended)
		c.ended = nil
	}
	c.mu.Unlock()
	for _, conn := range c.list() {
		conn.Close()
	}
}

// Hijack is how the library takes a connection over.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(h.ResponseWriter).Hijack()
	h.conn = conn
	return conn, buffered, err
}
