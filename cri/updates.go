package cri

import (
	"context"
	"fmt"
	"maps"
	"slices"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox"
)

// updates has the calls that change resources in place.
type updates struct{ cfg Config }

// UpdateContainerResources changes the limits that are given, all or none (B57, B58); zero is unchanged. Of a created
// container they hold from its start on.
func (s *updates) UpdateContainerResources(ctx context.Context, req *criv1.UpdateContainerResourcesRequest) (*criv1.UpdateContainerResourcesResponse, error) {
	err := plainUpdate(req)
	if err == nil {
		err = s.cfg.Manager.UpdateContainer(ctx, req.GetContainerId(), req.GetLinux())
	}
	if err != nil {
		return nil, toStatus(err)
	}
	return &criv1.UpdateContainerResourcesResponse{}, nil
}

// plainUpdate refuses what an update cannot be asked for.
func plainUpdate(req *criv1.UpdateContainerResourcesRequest) error {
	var err error
	switch {
	case req.GetWindows() != nil:
		err = fmt.Errorf("update container %s: windows: this is a Linux runtime", req.GetContainerId())
	case len(req.GetAnnotations()) > 0:
		err = fmt.Errorf("update container %s: annotations %q: none changes a resource here", req.GetContainerId(), slices.Sorted(maps.Keys(req.GetAnnotations())))
	default:
		return nil
	}
	return &podsandbox.Error{Kind: podsandbox.ErrInvalid, Err: err}
}

// UpdatePodSandboxResources records what the kubelet tells; it enforces pod limits itself, on the pod's own group.
func (s *updates) UpdatePodSandboxResources(_ context.Context, req *criv1.UpdatePodSandboxResourcesRequest) (*criv1.UpdatePodSandboxResourcesResponse, error) {
	if err := s.cfg.Manager.UpdateSandbox(req.GetPodSandboxId(), req.GetOverhead(), req.GetResources()); err != nil {
		return nil, toStatus(err)
	}
	return &criv1.UpdatePodSandboxResourcesResponse{}, nil
}
