package cri

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The lists as streams (KEP-5825): each call takes one list as its unary sister does and sends it in parts, so that no
// number of objects is too many for one message. An empty list is the end of the stream at once.

// listStreams has the calls whose answer is a stream that ends by itself, and that of events.
type listStreams struct{ cfg Config }

// chunkBytes bounds the items of one message, far below what a client takes (MaxMessageBytes). A larger item goes alone:
// it came in one request, and fits in one answer.
const chunkBytes = 1 << 20

// sendInChunks sends items in messages of at most chunkBytes, each item once and in order.
func sendInChunks[T proto.Message](items []T, send func([]T) error) error {
	for len(items) > 0 {
		n, bytes := 1, proto.Size(items[0])
		for ; n < len(items); n++ {
			if bytes += proto.Size(items[n]); bytes > chunkBytes {
				break
			}
		}
		if err := send(items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// StreamPodSandboxes is ListPodSandbox in parts.
func (s *listStreams) StreamPodSandboxes(req *criv1.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[criv1.StreamPodSandboxesResponse]) error {
	return sendInChunks(s.cfg.Manager.ListSandboxes(req.GetFilter()), func(part []*criv1.PodSandbox) error {
		return stream.Send(&criv1.StreamPodSandboxesResponse{PodSandboxes: part})
	})
}

// StreamContainers is ListContainers in parts.
func (s *listStreams) StreamContainers(req *criv1.StreamContainersRequest, stream grpc.ServerStreamingServer[criv1.StreamContainersResponse]) error {
	return sendInChunks(s.cfg.Manager.ListContainers(req.GetFilter()), func(part []*criv1.Container) error {
		return stream.Send(&criv1.StreamContainersResponse{Containers: part})
	})
}

// StreamImages is ListImages in parts.
func (s *listStreams) StreamImages(req *criv1.StreamImagesRequest, stream grpc.ServerStreamingServer[criv1.StreamImagesResponse]) error {
	images, err := listImages(s.cfg.Images, req.GetFilter())
	if err != nil {
		return toStatus(err)
	}
	return sendInChunks(images, func(part []*criv1.Image) error {
		return stream.Send(&criv1.StreamImagesResponse{Images: part})
	})
}
