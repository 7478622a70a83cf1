package cri

import (
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Streams is the interceptor that ends the streams of the CRI when the daemon leaves. A client that reads nothing holds
// its handler in Send for as long as it likes: such a handler is left behind, and ends with its stream, which grpc closes
// once the interceptor has returned.
type Streams struct {
	Leaving <-chan struct{} // closed when the daemon stops
}

// streamGrace is how long a stream may go on once the daemon is leaving.
const streamGrace = time.Second

// Intercept is for grpc.ChainStreamInterceptor.
func (s Streams) Intercept(srv any, stream grpc.ServerStream, call *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if !strings.HasPrefix(call.FullMethod, "/runtime.v1.") {
		return handler(srv, stream) // an image that is being loaded has the time that creates have
	}
	done := make(chan error, 1)
	// Owner: this call, or the stream once the daemon leaves; ends with the handler.
	go func() { done <- handler(srv, stream) }()
	select {
	case err := <-done:
		return err
	case <-s.Leaving:
	}
	select {
	case err := <-done:
		return err
	case <-time.After(streamGrace):
		return status.Error(codes.Unavailable, "podwright is restarting; ask again")
	}
}
