package streaming

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox"
)

// maxForwarded is how many connections one port-forward session carries at a time; each has a socket and goroutines.
const maxForwarded = 1000

// PortForward gives the URL of a session that forwards connections to ports of a sandbox. Where the request names
// ports, others are refused; a WebSocket can have no others.
func (s *Server) PortForward(req *criv1.PortForwardRequest) (string, error) {
	for _, port := range req.GetPort() {
		if port < 1 || port > 65535 {
			return "", invalid("forward ports of sandbox %q: port %d is not within 1-65535", req.GetPodSandboxId(), port)
		}
	}
	if len(req.GetPort()) > maxForwarded {
		return "", invalid("forward ports of sandbox %q: %d ports, more than %d", req.GetPodSandboxId(), len(req.GetPort()), maxForwarded)
	}
	id, err := s.cfg.Objects.ReadySandbox(req.GetPodSandboxId())
	if err != nil {
		return "", fmt.Errorf("forward ports: %w", err)
	}
	ports := slices.Clone(req.GetPort())
	return s.url("portforward", func(s *Server, w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		f := &forwarder{ports: ports, serve: func(port int32, stream io.ReadWriteCloser) error {
			ctx, cancel := context.WithCancel(ctx) // ends with the client's connection, of which the library's knows nothing
			defer cancel()
			client := forwardedOver(stream, cancel)
			// Of one that both sides finished, nothing. Else: input that nobody will read holds the library's reader up for ever.
			defer client.Reset()
			return unlessGone(ctx, s.cfg.Runtime.PortForward(ctx, id, port, client))
		}}
		portforward.ServePortForward(w, r, f, id, "", &portforward.V4Options{Ports: ports}, s.cfg.IdleTimeout, createTimeout, portforward.SupportedProtocols)
		cancel()
		f.close()
	})
}

// forwarder is one port-forward session as the library calls it: once for each connection, on a goroutine of its own.
type forwarder struct {
	ports []int32 // nil: any
	serve func(port int32, stream io.ReadWriteCloser) error

	mu      sync.Mutex // mu guards what follows.
	running int
	closed  bool
	wait    sync.WaitGroup
}

func (f *forwarder) begin() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return context.Canceled
	}
	if f.running == maxForwarded {
		return fmt.Errorf("this session forwards %d connections, no more are taken", maxForwarded)
	}
	f.running++
	f.wait.Add(1)
	return nil
}

func (f *forwarder) end() {
	f.mu.Lock()
	f.running--
	f.mu.Unlock()
	f.wait.Done()
}

// close waits for connections that still end; the session's context has ended.
func (f *forwarder) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.wait.Wait()
}

// PortForward serves one connection. An error becomes text on the connection's error stream.
func (f *forwarder) PortForward(_ context.Context, id, _ string, port int32, stream io.ReadWriteCloser) (err error) {
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	defer func() { // on a goroutine of the library's, which would end the daemon
		if p := recover(); p != nil {
			klog.Background().Error(nil, "A forwarded connection panicked", "sandboxID", id, "panic", p, "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	if f.ports != nil && !slices.Contains(f.ports, port) {
		return fmt.Errorf("port %d is none of those that were asked for, %v", port, f.ports)
	}
	return f.serve(port, stream)
}

// spdyStream is what a SPDY stream can beyond a WebSocket's channel.
type spdyStream interface {
	io.ReadWriteCloser // Close ends the sending side
	Reset() error
	IsFinished() bool // it was closed or reset, by us or by the client
}

func forwardedOver(stream io.ReadWriteCloser, cancel context.CancelFunc) podsandbox.Forwarded {
	if spdy, ok := stream.(spdyStream); ok {
		return &spdyForwarded{spdyStream: spdy, cancel: cancel}
	}
	return webSocketForwarded{stream}
}

// spdyForwarded tells a stream that the client reset from one that it has finished: the library's Read ends alike for
// both, and its Write goes on.
type spdyForwarded struct {
	spdyStream
	cancel context.CancelFunc

	mu     sync.Mutex // mu guards closed.
	closed bool       // by us
}

// resetDelay is how long after the end of input a reset is known as such.
const resetDelay = 100 * time.Millisecond

func (s *spdyForwarded) Read(b []byte) (int, error) {
	n, err := s.spdyStream.Read(b)
	if err != nil {
		time.AfterFunc(resetDelay, func() {
			if s.wasReset() {
				s.cancel()
			}
		})
	}
	return n, err
}

func (s *spdyForwarded) Write(b []byte) (int, error) {
	if s.wasReset() {
		return 0, io.ErrClosedPipe
	}
	return s.spdyStream.Write(b)
}

func (s *spdyForwarded) wasReset() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.closed && s.IsFinished()
}

func (s *spdyForwarded) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.spdyStream.Close()
}

// webSocketForwarded is a pair of channels, which end together.
type webSocketForwarded struct{ io.ReadWriteCloser }

func (w webSocketForwarded) CloseWrite() error { return podsandbox.ErrNotSupported }

// Reset ends a Read; the client learns it when the session ends.
func (w webSocketForwarded) Reset() error { return w.Close() }
