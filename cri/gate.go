package cri

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// reads are the calls of the runtime service that change no sandbox and no container. Streams of it all do so.
var reads = map[string]bool{
	"Version": true, "Status": true, "RuntimeConfig": true, "UpdateRuntimeConfig": true, // the pod CIDR is the network's
	"ListPodSandbox": true, "PodSandboxStatus": true, "ListContainers": true, "ContainerStatus": true,
	"PodSandboxStats": true, "ListPodSandboxStats": true, "ContainerStats": true, "ListContainerStats": true,
	"ListMetricDescriptors": true, "ListPodSandboxMetrics": true,
}

// Gate refuses changes of sandboxes and containers as long as their records are not recovered: a daemon that was started
// while the keeper hangs. Images are served, they need no keeper.
type Gate struct{ Recovered func() error }

// Intercept passes what may be done now.
func (g Gate) Intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	verb, ok := strings.CutPrefix(info.FullMethod, "/"+criv1.RuntimeService_ServiceDesc.ServiceName+"/")
	if ok && !reads[verb] {
		if err := g.Recovered(); err != nil {
			return nil, toStatus(err)
		}
	}
	return handler(ctx, req)
}
