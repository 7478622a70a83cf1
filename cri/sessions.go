package cri

import (
	"context"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sessions has the calls that a client's own connection follows.
type sessions struct{ cfg Config }

// Exec answers with the URL on which the command will run, once and within a minute, with the client's streams.
func (s *sessions) Exec(_ context.Context, req *criv1.ExecRequest) (*criv1.ExecResponse, error) {
	url, err := s.cfg.Sessions.Exec(req)
	if err != nil {
		return nil, toStatus(err)
	}
	return &criv1.ExecResponse{Url: url}, nil
}

// Attach answers with the URL of a session with the container's own streams.
func (s *sessions) Attach(_ context.Context, req *criv1.AttachRequest) (*criv1.AttachResponse, error) {
	url, err := s.cfg.Sessions.Attach(req)
	if err != nil {
		return nil, toStatus(err)
	}
	return &criv1.AttachResponse{Url: url}, nil
}

// PortForward answers with the URL of a session that forwards to ports of the sandbox.
func (s *sessions) PortForward(_ context.Context, req *criv1.PortForwardRequest) (*criv1.PortForwardResponse, error) {
	url, err := s.cfg.Sessions.PortForward(req)
	if err != nil {
		return nil, toStatus(err)
	}
	return &criv1.PortForwardResponse{Url: url}, nil
}
