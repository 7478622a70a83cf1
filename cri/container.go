package cri

import (
	"context"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CreateContainer records the container and prepares its file system; no process runs yet.
func (s *Server) CreateContainer(ctx context.Context, req *criv1.CreateContainerRequest) (*criv1.CreateContainerResponse, error) {
	id, err := s.cfg.Manager.CreateContainer(ctx, req.GetPodSandboxId(), req.GetConfig(), req.GetSandboxConfig())
	if err != nil {
		return nil, toStatus(err)
	}
	return &criv1.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer starts the process; when it returns, the workload's own program runs and its log file exists (B36).
func (s *Server) StartContainer(ctx context.Context, req *criv1.StartContainerRequest) (*criv1.StartContainerResponse, error) {
	if err := s.cfg.Manager.StartContainer(ctx, req.GetContainerId()); err != nil {
		return nil, toStatus(err)
	}
	return &criv1.StartContainerResponse{}, nil
}

// StopContainer sends the stop signal and, after timeout seconds, SIGKILL. An unknown id is success (B1).
func (s *Server) StopContainer(ctx context.Context, req *criv1.StopContainerRequest) (*criv1.StopContainerResponse, error) {
	timeout := time.Duration(max(req.GetTimeout(), 0)) * time.Second
	if err := s.cfg.Manager.StopContainer(ctx, req.GetContainerId(), timeout); err != nil {
		return nil, toStatus(err)
	}
	return &criv1.StopContainerResponse{}, nil
}

// RemoveContainer removes the container, killing it first if it runs; its log file stays. An unknown id is success (B1).
func (s *Server) RemoveContainer(ctx context.Context, req *criv1.RemoveContainerRequest) (*criv1.RemoveContainerResponse, error) {
	if err := s.cfg.Manager.RemoveContainer(ctx, req.GetContainerId()); err != nil {
		return nil, toStatus(err)
	}
	return &criv1.RemoveContainerResponse{}, nil
}

// ReopenContainerLog makes the output go on in a new file at the log path, after the kubelet renamed the old one (B38).
func (s *Server) ReopenContainerLog(ctx context.Context, req *criv1.ReopenContainerLogRequest) (*criv1.ReopenContainerLogResponse, error) {
	if err := s.cfg.Manager.ReopenLog(ctx, req.GetContainerId()); err != nil {
		return nil, toStatus(err)
	}
	return &criv1.ReopenContainerLogResponse{}, nil
}

// ListContainers answers from memory; the parts of a filter are joined by AND.
func (s *Server) ListContainers(_ context.Context, req *criv1.ListContainersRequest) (*criv1.ListContainersResponse, error) {
	return withEntries(&criv1.ListContainersResponse{}, s.cfg.Manager.ListContainers(req.GetFilter())), nil
}

// ContainerStatus answers from memory; NotFound for an unknown id (B2).
func (s *Server) ContainerStatus(_ context.Context, req *criv1.ContainerStatusRequest) (*criv1.ContainerStatusResponse, error) {
	resp, err := s.cfg.Manager.ContainerStatus(req.GetContainerId(), req.GetVerbose())
	if err != nil {
		return nil, toStatus(err)
	}
	return resp, nil
}

// ExecSync runs a command in the container. A command that ends is an answer whatever its exit code; one
// that outlives its timeout is DeadlineExceeded, and its processes are dead by then.
func (s *Server) ExecSync(ctx context.Context, req *criv1.ExecSyncRequest) (*criv1.ExecSyncResponse, error) {
	result, err := s.cfg.Manager.ExecSync(ctx, req.GetContainerId(), req.GetCmd(), time.Duration(max(req.GetTimeout(), 0))*time.Second)
	if err != nil {
		return nil, toStatus(err)
	}
	return &criv1.ExecSyncResponse{Stdout: result.Stdout, Stderr: result.Stderr, ExitCode: result.ExitCode}, nil
}
