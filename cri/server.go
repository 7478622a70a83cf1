// Package cri is the gRPC edge: it takes CRI v1 requests, calls one service for each and maps errors to
// codes (status.go). It holds no state and decides nothing about sandboxes, containers or images; what it
// does not implement answers Unimplemented.
// Source: k8s.io/cri-api/pkg/apis/runtime/v1/api.proto.
package cri

import (
	"context"
	"encoding/json"
	"errors"

	"google.golang.org/grpc"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox"
	"github.com/podwright/podwright/runtime/image"
)

// MaxMessageBytes is what the kubelet takes in one answer, and what podwright takes in one request.
const MaxMessageBytes = 16 << 20

// Network is what Status and UpdateRuntimeConfig need of CNI.
type Network interface {
	Status() error
	SetPodCIDR(cidr string) error
}

// Sessions gives the URLs of exec, attach and port-forward sessions.
type Sessions interface {
	Exec(req *criv1.ExecRequest) (url string, err error)
	Attach(req *criv1.AttachRequest) (url string, err error)
	PortForward(req *criv1.PortForwardRequest) (url string, err error)
}

// Config carries the services behind the edge; all are required.
type Config struct {
	Manager  *podsandbox.Manager
	Images   *image.Store
	Network  Network
	Sessions Sessions
	Version  string             // podwright's own, semver
	Info     func() any         // what verbose Status shows under "config"
	Driver   criv1.CgroupDriver // announced by RuntimeConfig
}

// Server answers the runtime and the image service. Families of calls are parts of it: 43 methods are too many for one
// type to be read.
type Server struct {
	unimplemented
	listStreams
	updates
	statistics
	sessions
	cfg Config
}

// unimplemented answers what nothing else does. It stands one level below the families, so that a call of theirs hides it.
type unimplemented struct {
	criv1.UnimplementedRuntimeServiceServer
	criv1.UnimplementedImageServiceServer
}

// New checks cfg.
func New(cfg Config) (*Server, error) {
	if cfg.Manager == nil || cfg.Images == nil || cfg.Network == nil || cfg.Sessions == nil || cfg.Version == "" || cfg.Info == nil {
		return nil, errors.New("cri: manager, images, network, sessions, version and info are required")
	}
	return &Server{cfg: cfg, listStreams: listStreams{cfg}, updates: updates{cfg}, statistics: statistics{cfg}, sessions: sessions{cfg}}, nil
}

// Register puts both services on one gRPC server, as the kubelet expects them on one socket.
func (s *Server) Register(g *grpc.Server) {
	criv1.RegisterRuntimeServiceServer(g, s)
	criv1.RegisterImageServiceServer(g, s)
}

// Version is asked by every client first; the kubelet refuses an answer with an empty field.
func (s *Server) Version(context.Context, *criv1.VersionRequest) (*criv1.VersionResponse, error) {
	return &criv1.VersionResponse{Version: "0.1.0", RuntimeName: "podwright", RuntimeVersion: s.cfg.Version, RuntimeApiVersion: "v1"}, nil
}

// Status answers from memory: whether the keeper is reachable and whether a network is configured.
func (s *Server) Status(_ context.Context, req *criv1.StatusRequest) (*criv1.StatusResponse, error) {
	ready := &criv1.RuntimeCondition{Type: criv1.RuntimeReady, Status: true}
	if err := s.cfg.Manager.Ready(); err != nil {
		ready.Status, ready.Reason, ready.Message = false, "KeeperUnreachable", err.Error()
		if errors.Is(err, podsandbox.ErrRecovering) {
			ready.Reason = "Recovering"
		}
	}
	network := &criv1.RuntimeCondition{Type: criv1.NetworkReady, Status: true}
	if err := s.cfg.Network.Status(); err != nil {
		network.Status, network.Reason, network.Message = false, "NetworkPluginNotReady", err.Error()
	}
	resp := &criv1.StatusResponse{
		Status: &criv1.RuntimeStatus{Conditions: []*criv1.RuntimeCondition{ready, network}},
		RuntimeHandlers: []*criv1.RuntimeHandler{{Name: "", Features: &criv1.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: s.cfg.Manager.RecursiveReadOnly(), UserNamespaces: s.cfg.Manager.UserNamespaces(),
		}}},
		Features: &criv1.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	if req.GetVerbose() {
		raw, err := json.Marshal(s.cfg.Info())
		if err != nil {
			return nil, toStatus(err)
		}
		resp.Info = map[string]string{"config": string(raw)}
	}
	return resp, nil
}

// RuntimeConfig tells the kubelet which cgroup driver to use.
func (s *Server) RuntimeConfig(context.Context, *criv1.RuntimeConfigRequest) (*criv1.RuntimeConfigResponse, error) {
	return &criv1.RuntimeConfigResponse{Linux: &criv1.LinuxRuntimeConfiguration{CgroupDriver: s.cfg.Driver}}, nil
}

// UpdateRuntimeConfig takes the node's pod CIDR, which CNI configurations may ask for as ipRanges (B56).
func (s *Server) UpdateRuntimeConfig(_ context.Context, req *criv1.UpdateRuntimeConfigRequest) (*criv1.UpdateRuntimeConfigResponse, error) {
	if cidr := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(); cidr != "" {
		if err := s.cfg.Network.SetPodCIDR(cidr); err != nil {
			return nil, toStatus(&podsandbox.Error{Kind: podsandbox.ErrInvalid, Err: err})
		}
	}
	return &criv1.UpdateRuntimeConfigResponse{}, nil
}
