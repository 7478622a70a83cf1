package cri

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox"
)

// The lists as streams (KEP-5825): each call takes one list as its unary sister does and sends it in parts, so that no
// number of objects is too many for one message. An empty list is the end of the stream at once.

// listStreams has the calls whose answer is a stream that ends by itself, and that of events.
type listStreams struct{ cfg Config }

// chunkBytes bounds the items of one message, far below what a client takes (MaxMessageBytes). A larger item goes alone:
// it came in one request, and fits in one answer.
const chunkBytes = 1 << 20

// entriesField is the number of the only field of a list's answer, streamed or not: the repeated entries.
const entriesField = 1

func encodedSize(e podsandbox.Encoded) int { return len(e) }

// withEntries puts entries that are encoded already into an answer whose only field they are. They go where a message keeps
// fields it does not know, which protobuf copies as they are: whoever receives them can't tell the difference.
func withEntries[M proto.Message](answer M, entries []podsandbox.Encoded) M {
	total := 0
	for _, e := range entries {
		total += protowire.SizeTag(entriesField) + protowire.SizeBytes(len(e))
	}
	raw := make([]byte, 0, total)
	for _, e := range entries {
		raw = protowire.AppendTag(raw, entriesField, protowire.BytesType)
		raw = protowire.AppendBytes(raw, e)
	}
	answer.ProtoReflect().SetUnknown(raw)
	return answer
}

// sendInChunks sends items in messages of at most chunkBytes, each item once and in order.
func sendInChunks[T proto.Message](items []T, send func([]T) error) error {
	return inChunks(items, func(item T) int { return proto.Size(item) }, send)
}

func inChunks[T any](items []T, size func(T) int, send func([]T) error) error {
	for len(items) > 0 {
		n, bytes := 1, size(items[0])
		for ; n < len(items); n++ {
			if bytes += size(items[n]); bytes > chunkBytes {
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
	return inChunks(s.cfg.Manager.ListSandboxes(req.GetFilter()), encodedSize, func(part []podsandbox.Encoded) error {
		return stream.Send(withEntries(&criv1.StreamPodSandboxesResponse{}, part))
	})
}

// StreamContainers is ListContainers in parts.
func (s *listStreams) StreamContainers(req *criv1.StreamContainersRequest, stream grpc.ServerStreamingServer[criv1.StreamContainersResponse]) error {
	return inChunks(s.cfg.Manager.ListContainers(req.GetFilter()), encodedSize, func(part []podsandbox.Encoded) error {
		return stream.Send(withEntries(&criv1.StreamContainersResponse{}, part))
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
