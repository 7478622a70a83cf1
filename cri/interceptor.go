package cri

import (
	"context"
	"encoding/json"
	"path"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// MaxMessageBytes is what the kubelet takes in one answer, and what podwright takes in one request.
const MaxMessageBytes = 16 << 20

// LogCalls is the interceptor that writes one line for every call, and its error once: life cycle calls at
// V(2), the polls that come every second at V(4), failures always. Contents are never logged: they hold secrets.
func LogCalls(ctx context.Context, req any, call *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	begin := time.Now()
	log := klog.FromContext(ctx)
	resp, err := handler(ctx, req)
	method, took := path.Base(call.FullMethod), time.Since(begin)
	switch code := status.Code(err); {
	case err == nil && isPoll(method):
		log.V(4).Info("Answered call", append([]any{"method", method, "duration", took}, ids(req)...)...)
	case err == nil:
		log.V(2).Info("Answered call", append([]any{"method", method, "duration", took}, ids(req)...)...)
	case code == codes.NotFound || code == codes.Unimplemented:
		log.V(2).Info("Refused call", append([]any{"method", method, "duration", took, "code", code.String(), "err", status.Convert(err).Message()}, ids(req)...)...)
	default:
		log.Error(nil, "Call failed", append([]any{"method", method, "duration", took, "code", code.String(), "err", status.Convert(err).Message()}, ids(req)...)...)
	}
	return resp, err
}

// Streams is the interceptor of streams: it logs the end of each like LogCalls, and ends those of the CRI when the daemon
// leaves. A client that reads nothing holds its handler in Send for as long as it likes: such a handler is left behind, and
// ends with its stream, which grpc closes once the interceptor has returned.
type Streams struct {
	Leaving <-chan struct{} // closed when the daemon stops
}

// streamGrace is how long a stream may go on once the daemon is leaving.
const streamGrace = time.Second

// Intercept is for grpc.StreamInterceptor.
func (s Streams) Intercept(srv any, stream grpc.ServerStream, call *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	begin := time.Now()
	err := s.handle(srv, stream, call, handler)
	facts := []any{"method", path.Base(call.FullMethod), "duration", time.Since(begin)}
	log := klog.FromContext(stream.Context())
	switch code := status.Code(err); code {
	case codes.OK, codes.Canceled:
		log.V(4).Info("Ended stream", append(facts, "code", code.String())...)
	case codes.Unavailable, codes.ResourceExhausted, codes.NotFound, codes.Unimplemented:
		log.V(2).Info("Ended stream", append(facts, "code", code.String(), "err", status.Convert(err).Message())...)
	default:
		log.Error(nil, "Stream failed", append(facts, "code", code.String(), "err", status.Convert(err).Message())...)
	}
	return err
}

func (s Streams) handle(srv any, stream grpc.ServerStream, call *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
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

func isPoll(method string) bool {
	return strings.HasPrefix(method, "List") || strings.HasSuffix(method, "Status") || strings.HasSuffix(method, "Stats") ||
		method == "Version" || method == "ImageFsInfo" || method == "RuntimeConfig" || method == "ExecSync"
}

// ids names the objects of a request by the keys all log lines share.
func ids(req any) []any {
	var facts []any
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok && r.GetPodSandboxId() != "" {
		facts = append(facts, "sandboxID", r.GetPodSandboxId())
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok && r.GetContainerId() != "" {
		facts = append(facts, "containerID", r.GetContainerId())
	}
	return facts
}

func jsonText(v any) (string, error) {
	raw, err := json.Marshal(v)
	return string(raw), err
}
