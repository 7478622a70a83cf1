package cri

import (
	"context"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RunPodSandbox makes the sandbox, or joins the same request that is already under way.
func (s *Server) RunPodSandbox(ctx context.Context, req *criv1.RunPodSandboxRequest) (*criv1.RunPodSandboxResponse, error) {
	id, err := s.cfg.Manager.RunSandbox(ctx, req.GetConfig(), req.GetRuntimeHandler())
	if err != nil {
		return nil, toStatus(err)
	}
	return &criv1.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox ends everything in the sandbox and gives its network back. An unknown id is success (B1).
func (s *Server) StopPodSandbox(ctx context.Context, req *criv1.StopPodSandboxRequest) (*criv1.StopPodSandboxResponse, error) {
	if err := s.cfg.Manager.StopSandbox(ctx, req.GetPodSandboxId()); err != nil {
		return nil, toStatus(err)
	}
	return &criv1.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox stops the sandbox, removes its containers and forgets it. An unknown id is success (B1).
func (s *Server) RemovePodSandbox(ctx context.Context, req *criv1.RemovePodSandboxRequest) (*criv1.RemovePodSandboxResponse, error) {
	if err := s.cfg.Manager.RemoveSandbox(ctx, req.GetPodSandboxId()); err != nil {
		return nil, toStatus(err)
	}
	return &criv1.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus answers from memory; NotFound for an unknown id (B2).
func (s *Server) PodSandboxStatus(_ context.Context, req *criv1.PodSandboxStatusRequest) (*criv1.PodSandboxStatusResponse, error) {
	resp, err := s.cfg.Manager.SandboxStatus(req.GetPodSandboxId(), req.GetVerbose())
	if err != nil {
		return nil, toStatus(err)
	}
	return resp, nil
}

// ListPodSandbox answers from memory; the parts of a filter are joined by AND.
func (s *Server) ListPodSandbox(_ context.Context, req *criv1.ListPodSandboxRequest) (*criv1.ListPodSandboxResponse, error) {
	return withEntries(&criv1.ListPodSandboxResponse{}, s.cfg.Manager.ListSandboxes(req.GetFilter())), nil
}
