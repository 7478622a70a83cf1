package cri

import (
	"context"

	"google.golang.org/grpc"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox"
)

// statistics has the calls that tell what sandboxes and containers use.
type statistics struct{ cfg Config }

// ContainerStats is of one container; NotFound for an unknown id (B2).
func (s *statistics) ContainerStats(ctx context.Context, req *criv1.ContainerStatsRequest) (*criv1.ContainerStatsResponse, error) {
	stats, err := s.cfg.Manager.ContainerStats(ctx, req.GetContainerId())
	if err != nil {
		return nil, toStatus(err)
	}
	return &criv1.ContainerStatsResponse{Stats: stats}, nil
}

// ListContainerStats is of all running containers; the parts of a filter are joined by AND.
func (s *statistics) ListContainerStats(ctx context.Context, req *criv1.ListContainerStatsRequest) (*criv1.ListContainerStatsResponse, error) {
	return withEntries(&criv1.ListContainerStatsResponse{}, s.cfg.Manager.ListContainerStats(ctx, req.GetFilter())), nil
}

// StreamContainerStats is ListContainerStats in parts.
func (s *statistics) StreamContainerStats(req *criv1.StreamContainerStatsRequest, stream grpc.ServerStreamingServer[criv1.StreamContainerStatsResponse]) error {
	return inChunks(s.cfg.Manager.ListContainerStats(stream.Context(), req.GetFilter()), encodedSize, func(part []podsandbox.Encoded) error {
		return stream.Send(withEntries(&criv1.StreamContainerStatsResponse{}, part))
	})
}

// PodSandboxStats is of one sandbox and its containers; NotFound for an unknown id (B2), and so for the empty one, with which
// the kubelet asks at its start whether the call is there.
func (s *statistics) PodSandboxStats(ctx context.Context, req *criv1.PodSandboxStatsRequest) (*criv1.PodSandboxStatsResponse, error) {
	stats, err := s.cfg.Manager.SandboxStats(ctx, req.GetPodSandboxId())
	if err != nil {
		return nil, toStatus(err)
	}
	return &criv1.PodSandboxStatsResponse{Stats: stats}, nil
}

// ListPodSandboxStats is of all ready sandboxes; the parts of a filter are joined by AND.
func (s *statistics) ListPodSandboxStats(ctx context.Context, req *criv1.ListPodSandboxStatsRequest) (*criv1.ListPodSandboxStatsResponse, error) {
	return withEntries(&criv1.ListPodSandboxStatsResponse{}, s.cfg.Manager.ListSandboxStats(ctx, req.GetFilter())), nil
}

// StreamPodSandboxStats is ListPodSandboxStats in parts.
func (s *statistics) StreamPodSandboxStats(req *criv1.StreamPodSandboxStatsRequest, stream grpc.ServerStreamingServer[criv1.StreamPodSandboxStatsResponse]) error {
	return inChunks(s.cfg.Manager.ListSandboxStats(stream.Context(), req.GetFilter()), encodedSize, func(part []podsandbox.Encoded) error {
		return stream.Send(withEntries(&criv1.StreamPodSandboxStatsResponse{}, part))
	})
}

// ListMetricDescriptors says what metrics there are; the answer never changes.
func (s *statistics) ListMetricDescriptors(context.Context, *criv1.ListMetricDescriptorsRequest) (*criv1.ListMetricDescriptorsResponse, error) {
	return &criv1.ListMetricDescriptorsResponse{Descriptors: s.cfg.Manager.MetricDescriptors()}, nil
}

// ListPodSandboxMetrics is of all ready sandboxes and what runs in them.
func (s *statistics) ListPodSandboxMetrics(ctx context.Context, _ *criv1.ListPodSandboxMetricsRequest) (*criv1.ListPodSandboxMetricsResponse, error) {
	return withEntries(&criv1.ListPodSandboxMetricsResponse{}, s.cfg.Manager.ListSandboxMetrics(ctx)), nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in parts.
func (s *statistics) StreamPodSandboxMetrics(_ *criv1.StreamPodSandboxMetricsRequest, stream grpc.ServerStreamingServer[criv1.StreamPodSandboxMetricsResponse]) error {
	return inChunks(s.cfg.Manager.ListSandboxMetrics(stream.Context()), encodedSize, func(part []podsandbox.Encoded) error {
		return stream.Send(withEntries(&criv1.StreamPodSandboxMetricsResponse{}, part))
	})
}
