package cri

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// GetContainerEvents sends what happens from now on. The header goes out once the client is subscribed, so that one who
// waits for it and then lists misses nothing.
func (s *listStreams) GetContainerEvents(_ *criv1.GetEventsRequest, stream grpc.ServerStreamingServer[criv1.ContainerEventResponse]) error {
	subscribed := func() error { return stream.SendHeader(metadata.MD{}) }
	return toStatus(s.cfg.Manager.WatchEvents(stream.Context(), subscribed, stream.Send))
}
