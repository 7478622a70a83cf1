package telemetry

import (
	"context"
	"path"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// unary watches a call with one answer.
func (t *Telemetry) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	c := t.begin(info.FullMethod)
	resp, err := handler(ctx, req)
	c.end(ctx, ids(req), err)
	return resp, err
}

// stream watches a call with many messages; its duration is the stream's.
func (t *Telemetry) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	c := t.begin(info.FullMethod)
	c.streaming = true
	err := handler(srv, stream)
	c.end(stream.Context(), nil, err)
	return err
}

// call is one that is being answered.
type call struct {
	metrics   *metrics
	method    string
	begin     time.Time
	streaming bool
}

func (t *Telemetry) begin(fullMethod string) *call {
	c := &call{metrics: t.metrics, method: path.Base(fullMethod), begin: time.Now()}
	if c.metrics != nil {
		c.metrics.callsInFlight.WithLabelValues(c.method).Inc()
	}
	return c
}

// end counts the call and writes one line for it, and its error once: life cycle calls at V(2), the polls that come
// every second at V(4), failures always. Contents are never logged: they hold secrets.
func (c *call) end(ctx context.Context, ids []any, err error) {
	took, code := time.Since(c.begin), codeOf(err)
	if c.metrics != nil {
		c.metrics.callsInFlight.WithLabelValues(c.method).Dec()
		c.metrics.calls.WithLabelValues(c.method, code.String()).Observe(took.Seconds())
	}
	log := klog.FromContext(ctx)
	facts := append([]any{"method", c.method, "duration", took}, ids...)
	if err != nil {
		facts = append(facts, "code", code.String(), "err", status.Convert(err).Message())
	}
	switch {
	case c.streaming && (err == nil || code == codes.Canceled): // as a client ends a stream that has no end of its own
		log.V(4).Info("Ended stream", facts...)
	case c.streaming && (code == codes.Unavailable || code == codes.ResourceExhausted):
		log.V(2).Info("Ended stream", facts...)
	case err == nil && isPoll(c.method):
		log.V(4).Info("Answered call", facts...)
	case err == nil:
		log.V(2).Info("Answered call", facts...)
	case code == codes.NotFound || code == codes.Unimplemented:
		log.V(2).Info("Refused call", facts...)
	default:
		log.Error(nil, "Call failed", facts...)
	}
}

// codeOf is the code that the client sees.
func codeOf(err error) codes.Code {
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	return status.FromContextError(err).Code()
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
