package podsandbox

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/mounts"
	"github.com/podwright/podwright/runtime/namespace"
)

// User namespaces
//
// A sandbox's own is pinned like its other namespaces, which belong to it. Nothing on disk is changed for it: the image's
// layers, the writable layer and volumes belong to the ids that they would have without one, and are shifted by the
// mounts through which the container sees them.

// UserNamespaces says whether sandboxes can have user namespaces of their own here.
func (m *Manager) UserNamespaces() bool { return m.cfg.Node.UserNamespaces }

// userMap is a sandbox's mapping in the words of the package that makes it; nil for the host's.
func userMap(user *spec.UserMapping) *namespace.UserMap {
	if user == nil {
		return nil
	}
	return &namespace.UserMap{UIDs: ociMaps([]specs.LinuxIDMapping{user.UID}), GIDs: ociMaps([]specs.LinuxIDMapping{user.GID})}
}

func ociMaps(list []specs.LinuxIDMapping) []namespace.IDMap {
	out := make([]namespace.IDMap, len(list))
	for i, m := range list {
		out[i] = namespace.IDMap{Inside: m.ContainerID, Outside: m.HostID, Length: m.Size}
	}
	return out
}

func idMaps(list []*criv1.IDMapping) []namespace.IDMap {
	out := make([]namespace.IDMap, len(list))
	for i, m := range list {
		out[i] = namespace.IDMap{Inside: m.GetContainerId(), Outside: m.GetHostId(), Length: m.GetLength()}
	}
	return out
}

// outside gives the node's ids of a user of the sandbox's containers.
func outside(config *criv1.PodSandboxConfig, uid, gid uint32) (int, int) {
	if user := spec.SandboxUser(config); user != nil {
		uid, gid = user.Outside(uid, gid)
	}
	return int(uid), int(gid)
}

// idMap is the mapping of a sandbox's root file systems, nil without one. The file is the caller's.
func idMap(pins *namespace.Pins, s *sandbox) (*mounts.IDMap, error) {
	user := spec.SandboxUser(s.config)
	if user == nil {
		return nil, nil
	}
	f, err := pins.Open(s.id, namespace.User)
	if err != nil {
		return nil, err
	}
	ids := &mounts.IDMap{UserNS: f}
	ids.RootUID, ids.RootGID = user.Outside(0, 0)
	return ids, nil
}

// mappingOf gives a user namespace with a mount's mapping: mostly it is the sandbox's own. Nil, without an error, is for
// a mount without one. The file is the caller's.
func mappingOf(ctx context.Context, pins *namespace.Pins, s *sandbox, want namespace.UserMap) (*os.File, error) {
	if len(want.UIDs)+len(want.GIDs) == 0 {
		return nil, nil
	}
	if s != nil {
		if own := userMap(spec.SandboxUser(s.config)); own != nil && slices.Equal(own.UIDs, want.UIDs) && slices.Equal(own.GIDs, want.GIDs) {
			return pins.Open(s.id, namespace.User)
		}
	}
	f, err := pins.UserNamespace(ctx, want)
	if err != nil {
		return nil, namespaceError(fmt.Errorf("make a user namespace of the mount's mapping: %w", err))
	}
	return f, nil
}
