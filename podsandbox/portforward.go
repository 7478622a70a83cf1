package podsandbox

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/podwright/podwright/podsandbox/record"
)

// Forwarded is a client's end of one forwarded connection. It stays the caller's.
type Forwarded interface {
	io.ReadWriter
	// CloseWrite tells the client that nothing more comes; ErrNotSupported where its protocol can't.
	CloseWrite() error
	// Reset ends the connection in both directions, and a Read that is under way.
	Reset() error
}

const (
	dialPatience = 10 * time.Second // for a listener whose queue is full
	// sandboxWatch is how often a forwarded connection looks whether its sandbox is still there: its socket would keep
	// the network namespace of a stopped one.
	sandboxWatch = time.Second
)

// forwardFrom are the addresses a server in a sandbox may listen on, in the order they are tried (B32).
var forwardFrom = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// ReadySandbox gives the id of the ready sandbox that id, or its beginning, names.
func (m *sandboxManager) ReadySandbox(id string) (string, error) {
	s, err := m.ready(id)
	if err != nil {
		return "", err
	}
	return s.id, nil
}

func (m *sandboxManager) ready(id string) (*sandbox, error) {
	s, err := m.sandboxes.find("sandbox", id)
	if err != nil {
		return nil, err
	}
	if s.record().Phase != record.SandboxReady {
		return nil, kindf(ErrPrecondition, "sandbox %s: it is not ready", s.id)
	}
	return s, nil
}

// PortForward connects client with a TCP port on the loopback of the sandbox and copies until both directions have
// ended, the server resets the connection, ctx ends or the sandbox stops. A reset reaches the client as one, and is no
// error: clients take an error for the end of all their connections (kubernetes #74551).
func (m *sandboxManager) PortForward(ctx context.Context, id string, port int32, client Forwarded) error {
	if port < 1 || port > 65535 {
		return kindf(ErrInvalid, "forward port %d of sandbox %q: not within 1-65535", port, id)
	}
	s, err := m.ready(id)
	if err != nil {
		return fmt.Errorf("forward port %d: %w", port, err)
	}
	server, err := m.dialLoopback(ctx, s, uint16(port))
	if err != nil {
		return kindf(ErrUnavailable, "forward port %d of sandbox %s: %w", port, s.id, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Owner: this call; ends with its context. Nobody waits: it only looks at the record.
	go func() {
		tick := time.NewTicker(sandboxWatch)
		defer tick.Stop()
		for s.record().Phase == record.SandboxReady {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
		cancel()
	}()
	forward(ctx, client, server)
	return nil
}

func (m *sandboxManager) dialLoopback(ctx context.Context, s *sandbox, port uint16) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	var failure error
	for _, address := range forwardFrom {
		to := netip.AddrPortFrom(address, port)
		var conn *net.TCPConn
		var err error
		if s.record().NetPath == "" { // the host's
			conn, err = dialHost(ctx, to)
		} else {
			conn, err = m.cfg.Namespaces.DialTCP(ctx, s.id, to)
		}
		if err == nil {
			return conn, nil
		}
		if failure == nil {
			failure = err
		} else {
			failure = fmt.Errorf("%w; %w", failure, err)
		}
	}
	return nil, fmt.Errorf("failed to connect to localhost:%d: %w", port, failure)
}

func dialHost(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// forward copies both ways and closes server. An end of either direction is handed on, and the other goes on.
func forward(ctx context.Context, client Forwarded, server *net.TCPConn) {
	toServer, toClient := make(chan error, 1), make(chan error, 1)
	// Owner: this call, which waits for it below; ends with the client's input, or by Reset.
	go func() {
		_, err := io.Copy(server, client)
		if err == nil {
			err = server.CloseWrite()
		}
		if err != nil {
			// The server takes no more, and may still have something to say. Unread input would hold up others'.
			io.Copy(io.Discard, client)
		}
		toServer <- err
	}()
	// Owner: this call, which waits for it below; ends with the server's output, or when server is closed.
	go func() {
		_, err := io.Copy(client, server)
		if err == nil {
			err = client.CloseWrite()
		}
		toClient <- err
	}()
	clientDone, serverDone, broken := false, false, false
	for !(clientDone && serverDone) && !broken {
		select {
		case <-toServer: // an error of it is one of reading the client, or shows when the server is read
			clientDone = true
		case err := <-toClient:
			serverDone, broken = true, err != nil
		case <-ctx.Done():
			broken = true
		}
	}
	if broken {
		client.Reset()
	}
	server.Close()
	if !clientDone {
		<-toServer
	}
	if !serverDone {
		<-toClient
	}
}
