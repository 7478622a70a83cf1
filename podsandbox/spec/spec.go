// Package spec turns what Kubernetes asks for into what runs: CRI configuration, image configuration and
// node facts into an OCI runtime spec, and that into the plan init walks. It owns validation of the two
// configuration messages and everything a container's process, mounts, limits and privileges are derived from.
// It is pure: it opens nothing, asks the kernel nothing and knows no clock; what must be opened it lists
// as Needs, in the plan's order. Callers bring the image's passwd and group files, already bounded.
// Source: cri-api api.proto, OCI runtime-spec v1.3, DESIGN "Spec, then plan".
package spec

import (
	imagev1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Node is what decides about a request besides the request: the machine's abilities, what podwright holds itself,
// and the operator's configuration.
type Node struct {
	CgroupVersion int         // 1 or 2
	Hierarchies   []Hierarchy // of v1, in the order they are joined; empty on v2
	Controllers   []string    // usable ones: cpu, cpuset, memory, pids, hugetlb, io, blkio, devices ...
	HugepageSizes []string    // as the limit files name them: "2MB", "1GB"
	SwapLimit     bool        // the kernel can limit swap for a group

	AllowWritableCgroups bool // by the operator: pods may ask for it
	CgroupDelegation     bool // a cgroup namespace bounds what who is in it can change (v2, nsdelegate)

	Capabilities   uint64 // bit mask of what podwright itself holds; "ALL" means these (capabilities(7))
	MinOOMScoreAdj int    // lowest oom_score_adj podwright may give; -1000 with CAP_SYS_RESOURCE

	// UserNamespaces: sandboxes can have one, with their root file systems mapped to it.
	UserNamespaces bool
	// RecursiveReadOnly: a mount can be read-only with all that is mounted below it.
	RecursiveReadOnly bool

	SELinux bool // containers are labelled
	// SELinuxIdle: the kernel has it enabled, and the operator wants no labels of podwright's.
	SELinuxIdle bool
	AppArmor    bool

	Rlimits   []specs.POSIXRlimit // configured limits of every workload
	PidsLimit int64               // configured default of processes per container; 0 is none
}

// Hierarchy is one cgroup v1 mount.
type Hierarchy struct {
	Dir     string   // its directory below /sys/fs/cgroup, e.g. "cpu,cpuacct"
	Options []string // what mounts it again: controllers, or "none" and "name=systemd"
}

// ContainerInput is everything a container's spec is made from.
type ContainerInput struct {
	ID      string
	Config  *criv1.ContainerConfig
	Sandbox SandboxInput
	Image   imagev1.ImageConfig // hostile: an image may say anything here
	Passwd  []byte              // the image's /etc/passwd, bounded by the caller; nil where there is none
	Group   []byte              // the image's /etc/group, likewise
	Node    Node

	Root        string              // the root file system's path, for external runtimes and inspect
	CgroupsPath string              // the container's group, in the driver's own syntax
	Volumes     map[string]string   // VOLUME of the image -> host directory, see ImageVolumes
	ImageMounts map[string]string   // container_path of an image mount, cleaned -> the image's id
	Devices     []Device            // those of Config.Devices, directories expanded; with privileged all of the host's too
	TargetPath  string              // with a TargetID: the file of that container's PID namespace
	Seccomp     *specs.LinuxSeccomp // the profile as it will be compiled; nil is unconfined. Ignored when privileged
	AppArmor    string              // the profile that Config's AppArmorProfile came to, loaded; "" is unconfined

	// SELinux labels of its processes and of its files, valid in the policy; both are empty where Node.SELinux is false.
	ProcessLabel, MountLabel string
}

// SandboxInput is what a container takes from its sandbox.
type SandboxInput struct {
	ID       string
	Config   *criv1.PodSandboxConfig
	Hostname string // what uname -n says inside

	// Paths of namespace files; Net, IPC and UTS are empty where SandboxNamespaces says the host's. PID is
	// the reaper's where it says PIDShared.
	// UserPath is set where there is a SandboxUser.
	NetPath, IPCPath, UTSPath, PIDPath, UserPath string

	// Generated files on the host; an empty one is not mounted. Shm is /dev/shm of the host with host IPC.
	HostsFile, HostnameFile, ResolvConfFile, ShmDir string
}

// Device is one resolved device node.
type Device struct {
	Path         string // in the container
	HostPath     string // where the node has it
	Type         string // "c" or "b"
	Major, Minor int64
	Mode         uint32 // permission bits
	UID, GID     uint32
	Access       string // cgroup permissions, of "rwm"
}

// PIDMode says whose processes a sandbox's containers see by default.
type PIDMode int

// The three ways of a sandbox, and one that only a container can ask for.
const (
	PIDPrivate PIDMode = iota // each container its own
	PIDShared                 // one of the sandbox's, which needs a reaper
	PIDHost
	PIDTarget // that of another container of the sandbox
)

// Namespaces says which namespaces a sandbox has of its own.
type Namespaces struct {
	Net, IPC, UTS bool // own; false is the host's
	PID           PIDMode
}

// SandboxNamespaces reads the sandbox's namespaces out of its configuration. The host's network brings the
// host's UTS namespace, as the field does: such a pod is to see the node's name.
func SandboxNamespaces(config *criv1.PodSandboxConfig) Namespaces {
	options := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	n := Namespaces{
		Net: options.GetNetwork() != criv1.NamespaceMode_NODE,
		IPC: options.GetIpc() != criv1.NamespaceMode_NODE,
	}
	n.UTS = n.Net
	switch options.GetPid() {
	case criv1.NamespaceMode_POD:
		n.PID = PIDShared
	case criv1.NamespaceMode_NODE:
		n.PID = PIDHost
	}
	return n
}
