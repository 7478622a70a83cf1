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
