package spec

import (
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// WritableCgroups is the annotation by which a pod asks to make groups below its containers' own: CRI-O's, until the CRI
// has a field for it (KEP-5474).
const WritableCgroups = "io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw"

// checkWritableCgroups refuses the wish where the operator does not allow it, or the kernel would let a container that has
// the view change its own limits.
func checkWritableCgroups(annotations string, sandbox *criv1.PodSandboxConfig, node Node) error {
	field := annotations + `["` + WritableCgroups + `"]`
	value, asked := sandbox.GetAnnotations()[WritableCgroups]
	switch {
	case !asked || value == "false":
		return nil
	case value != "true":
		return invalid(field, value, "want true or false")
	case !node.AllowWritableCgroups:
		return invalid(field, value, "this node's configuration does not allow it (cgroup.allow_writable)")
	case node.CgroupVersion != 2:
		return invalid(field, value, "this node has cgroup v1")
	case !node.CgroupDelegation:
		return invalid(field, value, "this node's cgroup file system is mounted without nsdelegate, so limits would be the container's to change")
	case SandboxUser(sandbox) == nil:
		return invalid(field, value, "needs a user namespace (namespace_options.userns_options): the node's root in a cgroup namespace nested in the container's could change its limits")
	}
	return nil
}

// CgroupsWritable says whether a container's view of its cgroup is writable: of a privileged one, and where its pod asks.
func CgroupsWritable(config *criv1.ContainerConfig, sandbox *criv1.PodSandboxConfig) bool {
	return config.GetLinux().GetSecurityContext().GetPrivileged() || sandbox.GetAnnotations()[WritableCgroups] == "true"
}

// A container that makes groups takes memory of the kernel for each; it makes no more than these below its own.
const (
	descendantsFile = "cgroup.max.descendants"
	mostDescendants = 4096
)

// boundGroups is for a container whose pod asked; a privileged one may do as it likes with the node anyway.
func boundGroups(config *criv1.ContainerConfig, sandbox *criv1.PodSandboxConfig, out *specs.LinuxResources) {
	if config.GetLinux().GetSecurityContext().GetPrivileged() || !CgroupsWritable(config, sandbox) {
		return
	}
	if out.Unified == nil {
		out.Unified = map[string]string{}
	}
	out.Unified[descendantsFile] = strconv.Itoa(mostDescendants)
}
