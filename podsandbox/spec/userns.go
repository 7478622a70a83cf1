package spec

import (
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UserMapping is the user namespace of a sandbox: one range of users and one of groups, each from 0 on inside.
type UserMapping struct{ UID, GID specs.LinuxIDMapping }

// SandboxUser reads a sandbox's user namespace out of its valid configuration; nil is the host's, which is also what a
// request means that says nothing (KEP-127).
func SandboxUser(config *criv1.PodSandboxConfig) *UserMapping {
	userns := config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if userns == nil || userns.GetMode() != criv1.NamespaceMode_POD || len(userns.GetUids()) != 1 || len(userns.GetGids()) != 1 {
		return nil
	}
	return &UserMapping{UID: ociMapping(userns.GetUids()[0]), GID: ociMapping(userns.GetGids()[0])}
}

// Outside gives the node's ids of a user and a group inside; those of root where the mapping has none.
func (u *UserMapping) Outside(uid, gid uint32) (outsideUID, outsideGID uint32) {
	shift := func(m specs.LinuxIDMapping, id uint32) uint32 {
		if id >= m.Size {
			id = 0
		}
		return m.HostID + id
	}
	return shift(u.UID, uid), shift(u.GID, gid)
}

func ociMapping(m *criv1.IDMapping) specs.LinuxIDMapping {
	return specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()}
}

func ociMappings(list []*criv1.IDMapping) []specs.LinuxIDMapping {
	out := make([]specs.LinuxIDMapping, len(list))
	for i, m := range list {
		out[i] = ociMapping(m)
	}
	return out
}

const usernsField = contextField + "namespace_options.userns_options."

// checkUserns holds for sandbox and container.
func checkUserns(options *criv1.NamespaceOption, node Node) error {
	userns := options.GetUsernsOptions()
	if userns == nil {
		return nil
	}
	switch mode := userns.GetMode(); mode {
	case criv1.NamespaceMode_NODE:
		for what, list := range map[string][]*criv1.IDMapping{"uids": userns.GetUids(), "gids": userns.GetGids()} {
			if len(list) > 0 {
				return invalid(usernsField+what, mappingText(list[0]), "a mapping needs mode POD")
			}
		}
		return nil
	case criv1.NamespaceMode_POD:
	default:
		return invalid(usernsField+"mode", mode.String(), "want POD or NODE")
	}
	if err := checkPodMapping(usernsField+"uids", userns.GetUids()); err != nil {
		return err
	}
	if err := checkPodMapping(usernsField+"gids", userns.GetGids()); err != nil {
		return err
	}
	// The node's processes, its shared memory and its network belong to the node's root, and the pod's root is another.
	for _, f := range []struct {
		field string
		mode  criv1.NamespaceMode
	}{{"network", options.GetNetwork()}, {"pid", options.GetPid()}, {"ipc", options.GetIpc()}} {
		if f.mode == criv1.NamespaceMode_NODE {
			return invalid(contextField+"namespace_options."+f.field, f.mode.String(), "a pod with a user namespace of its own cannot have the node's")
		}
	}
	if !node.UserNamespaces {
		return invalid(usernsField+"mode", criv1.NamespaceMode_POD.String(), "this node has no user namespaces with mapped file systems (Linux 5.19)")
	}
	return nil
}

func checkPodMapping(field string, list []*criv1.IDMapping) error {
	if len(list) != 1 {
		return invalid(field, "", "%d mappings; want exactly one", len(list))
	}
	m, at := list[0], indexed(field, 0)
	switch {
	case m.GetContainerId() != 0:
		return invalid(at+".container_id", number(m.GetContainerId()), "want 0: a pod needs a root")
	case m.GetHostId() == 0:
		return invalid(at+".host_id", "0", "the pod's root would be the node's")
	}
	return checkRange(at, m)
}

// checkRange keeps a mapping below the last 32-bit number, which is no id (-1).
func checkRange(at string, m *criv1.IDMapping) error {
	if m.GetLength() == 0 {
		return invalid(at+".length", "0", "want at least 1")
	}
	for field, first := range map[string]uint32{".host_id": m.GetHostId(), ".container_id": m.GetContainerId()} {
		if uint64(first)+uint64(m.GetLength()) > math.MaxUint32 {
			return invalid(at+field, number(first), "with length %d it goes beyond the last id, %d", m.GetLength(), uint32(math.MaxUint32-1))
		}
	}
	return nil
}

// checkSameUser holds a container to its sandbox's user namespace: there is one for all of a pod. A container without
// namespace options has what the sandbox has.
func checkSameUser(options *criv1.NamespaceOption, sandbox *criv1.PodSandboxConfig) error {
	if options == nil {
		return nil
	}
	own := SandboxUser(&criv1.PodSandboxConfig{Linux: &criv1.LinuxPodSandboxConfig{
		SecurityContext: &criv1.LinuxSandboxSecurityContext{NamespaceOptions: options}}})
	of := SandboxUser(sandbox)
	switch {
	case own == nil && of == nil, own != nil && of != nil && *own == *of:
		return nil
	case of == nil:
		return invalid(usernsField+"mode", options.GetUsernsOptions().GetMode().String(), "the sandbox has the node's user namespace")
	case own == nil:
		return invalid(usernsField+"mode", criv1.NamespaceMode_NODE.String(), "the sandbox has a user namespace of its own")
	}
	return invalid(usernsField+"uids", fmt.Sprintf("%v and gids %v", own.UID, own.GID), "the sandbox has uids %v and gids %v", of.UID, of.GID)
}

// maxMappings is how many lines a uid_map takes (user_namespaces(7)).
const maxMappings = 340

// checkMountMappings refuses what no user namespace can hold, and in a pod that has one whatever would belong to
// nobody in it.
func checkMountMappings(at string, m *criv1.Mount, sandbox *criv1.PodSandboxConfig) error {
	if (len(m.GetUidMappings()) == 0) != (len(m.GetGidMappings()) == 0) {
		return invalid(at+".uidMappings", "", "%d of them and %d gidMappings; want both or none", len(m.GetUidMappings()), len(m.GetGidMappings()))
	}
	user := SandboxUser(sandbox)
	if user != nil && m.GetPropagation() == criv1.MountPropagation_PROPAGATION_BIDIRECTIONAL {
		return invalid(at+".propagation", m.GetPropagation().String(), "a pod with a user namespace of its own cannot mount on the node")
	}
	of := UserMapping{}
	if user != nil {
		of = *user
	}
	if err := checkMappingList(at+".uidMappings", m.GetUidMappings(), of.UID); err != nil {
		return err
	}
	return checkMappingList(at+".gidMappings", m.GetGidMappings(), of.GID)
}

func checkMappingList(field string, list []*criv1.IDMapping, pod specs.LinuxIDMapping) error {
	if len(list) > maxMappings {
		return invalid(field, "", "%d mappings; the kernel takes %d", len(list), maxMappings)
	}
	for i, m := range list {
		at := indexed(field, i)
		if err := checkRange(at, m); err != nil {
			return err
		}
		for _, other := range list[:i] {
			if overlap(m.GetContainerId(), m.GetLength(), other.GetContainerId(), other.GetLength()) ||
				overlap(m.GetHostId(), m.GetLength(), other.GetHostId(), other.GetLength()) {
				return invalid(at, mappingText(m), "overlaps %s", mappingText(other))
			}
		}
		end := uint64(m.GetHostId()) + uint64(m.GetLength())
		if pod.Size > 0 && (m.GetHostId() < pod.HostID || end > uint64(pod.HostID)+uint64(pod.Size)) {
			return invalid(at+".host_id", number(m.GetHostId()), "the pod's user namespace has %d ids from %d on only", pod.Size, pod.HostID)
		}
	}
	return nil
}

func overlap(a, aLength, b, bLength uint32) bool {
	return uint64(a) < uint64(b)+uint64(bLength) && uint64(b) < uint64(a)+uint64(aLength)
}

func mappingText(m *criv1.IDMapping) string {
	return fmt.Sprintf("%d:%d:%d", m.GetContainerId(), m.GetHostId(), m.GetLength())
}

func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// checkMapped refuses to run a process as an id that its user namespace lacks: the kernel would, in words nobody understands.
func checkMapped(id identity, user *UserMapping, fromImage bool) error {
	if user == nil {
		return nil
	}
	refuse := func(field, what string, id, size uint32) error {
		if field = contextField + field; fromImage {
			field = userField
		}
		return invalid(field, number(id), "the pod's user namespace has the %s 0 to %d only", what, size-1)
	}
	if id.uid >= user.UID.Size {
		return refuse("run_as_user", "users", id.uid, user.UID.Size)
	}
	if id.gid >= user.GID.Size {
		return refuse("run_as_group", "groups", id.gid, user.GID.Size)
	}
	for _, gid := range id.groups {
		if gid >= user.GID.Size {
			return refuse("supplemental_groups", "groups", gid, user.GID.Size)
		}
	}
	return nil
}

// mapped gives a mount of podwright's own files on disk, which belong to root there, the pod's mapping.
func mapped(m specs.Mount, user *UserMapping) specs.Mount {
	if user != nil {
		m.UIDMappings, m.GIDMappings = []specs.LinuxIDMapping{user.UID}, []specs.LinuxIDMapping{user.GID}
		m.UIDMappings[0].ContainerID, m.GIDMappings[0].ContainerID = 0, 0
		m.Options = append(slices.Clone(m.Options), "idmap")
	}
	return m
}

// deviceMounts are a container's devices in a user namespace, where no node can be made: binds of the node's own.
func deviceMounts(in *ContainerInput, targets map[string]bool) []specs.Mount {
	if SandboxUser(in.Sandbox.Config) == nil {
		return nil
	}
	var mounts []specs.Mount
	for _, d := range in.Devices {
		if p := cleanDevice(d); !ownDevice(p) && !targets[p] {
			mounts = append(mounts, specs.Mount{Destination: p, Type: "bind", Source: d.HostPath, Options: []string{"bind", "rprivate", "nosuid", "noexec"}})
		}
	}
	return mounts
}
