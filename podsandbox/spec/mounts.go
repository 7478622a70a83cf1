package spec

import (
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"

	imagev1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mountsOf lists every mount of a container, parents before children, the request's replacing defaults of the same place.
func mountsOf(in *ContainerInput) ([]specs.Mount, error) {
	targets, shared := requestTargets(in.Config)
	var mounts []specs.Mount
	for _, m := range slices.Concat(kernelMounts(in), sandboxMounts(in, targets), deviceMounts(in, targets)) {
		ownDev := targets["/dev"] && strings.HasPrefix(m.Destination, "/dev/")
		if !targets[m.Destination] && !ownDev && !within(m.Destination, shared) {
			mounts = append(mounts, m)
		}
	}
	volumes, err := volumeMounts(in)
	if err != nil {
		return nil, err
	}
	mounts = append(mounts, volumes...)
	for _, m := range in.Config.GetMounts() {
		if m.GetImage() == nil {
			mounts = append(mounts, requestMount(m))
			continue
		}
		mount, err := imageMount(m, in.ImageMounts)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, mount)
	}
	// Stable: of two at the same depth neither hides the other, and the given order is kept.
	sort.SliceStable(mounts, func(i, j int) bool { return depth(mounts[i].Destination) < depth(mounts[j].Destination) })
	return mounts, nil
}

func depth(clean string) int { return strings.Count(clean, "/") }

// requestTargets gives where the request mounts, and which of these share with the host: whatever podwright attached
// below such a one would appear on the host, so it attaches nothing there.
func requestTargets(config *criv1.ContainerConfig) (targets map[string]bool, shared []string) {
	targets = map[string]bool{}
	for _, m := range config.GetMounts() {
		target := path.Clean(m.GetContainerPath())
		targets[target] = true
		if m.GetPropagation() == criv1.MountPropagation_PROPAGATION_BIDIRECTIONAL {
			shared = append(shared, target)
		}
	}
	return targets, shared
}

// terminalGroup is "tty" in every distribution.
const terminalGroup = 5

// kernelMounts are the file systems every container has. Privileged gets /sys and its cgroups writable, a pod that asks
// its cgroups. Everyone has a cgroup namespace, so the view begins at the container's own group.
func kernelMounts(in *ContainerInput) []specs.Mount {
	access, groups := "ro", "ro"
	if in.Config.GetLinux().GetSecurityContext().GetPrivileged() {
		access = "rw"
	}
	if CgroupsWritable(in.Config, in.Sandbox.Config) {
		groups = "rw"
	}
	terminals := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if user := SandboxUser(in.Sandbox.Config); user == nil || user.GID.Size > terminalGroup {
		terminals = append(terminals, "gid="+strconv.Itoa(terminalGroup))
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: terminals},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", groups}},
	}
}

// sandboxMounts are the sandbox's files. One below a directory that the request mounts (say the host's /etc) is left
// out: attaching it would make a file in that volume.
func sandboxMounts(in *ContainerInput, targets map[string]bool) []specs.Mount {
	var mounts []specs.Mount
	options := []string{"rbind", "rprivate"}
	if in.Config.GetLinux().GetSecurityContext().GetReadonlyRootfs() {
		options = append(options, "ro")
	}
	for _, f := range []struct{ source, target string }{
		{in.Sandbox.HostsFile, "/etc/hosts"}, {in.Sandbox.HostnameFile, "/etc/hostname"}, {in.Sandbox.ResolvConfFile, "/etc/resolv.conf"},
	} {
		if f.source != "" && !targets[path.Dir(f.target)] {
			mounts = append(mounts, specs.Mount{Destination: f.target, Type: "bind", Source: f.source, Options: options})
		}
	}
	if in.Sandbox.ShmDir != "" {
		mounts = append(mounts, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: in.Sandbox.ShmDir,
			Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev"}})
	}
	return mounts
}

// protections are the mount_options of the CRI: what a mount does not allow. They hold for what is mounted below it as well.
var protections = []string{"noexec", "nodev", "nosuid"}

// requestMount never says "rw": that would undo a read-only mount the node's owner made the source of.
func requestMount(m *criv1.Mount) specs.Mount {
	options := []string{"rbind", "rprivate"}
	switch m.GetPropagation() {
	case criv1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		options[1] = "rslave"
	case criv1.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		options[1] = "rshared"
	}
	switch {
	case m.GetRecursiveReadOnly():
		options = append(options, "rro")
	case m.GetReadonly():
		options = append(options, "ro")
	}
	options = append(options, m.GetMountOptions()...)
	mount := specs.Mount{Destination: path.Clean(m.GetContainerPath()), Type: "bind", Source: m.GetHostPath(), Options: options}
	if len(m.GetUidMappings()) > 0 {
		// As in the field, of the mount alone: what is mounted below it may be unable to map, and stays as it is.
		mount.UIDMappings, mount.GIDMappings = ociMappings(m.GetUidMappings()), ociMappings(m.GetGidMappings())
		mount.Options = append(mount.Options, "idmap")
	}
	return mount
}

// rootPropagation tells external runtimes how to prepare the tree that such binds hang in; podwright's own sets
// propagation on each bind.
func rootPropagation(config *criv1.ContainerConfig) string {
	widest := ""
	for _, m := range config.GetMounts() {
		switch {
		case m.GetPropagation() == criv1.MountPropagation_PROPAGATION_BIDIRECTIONAL:
			return "rshared"
		case m.GetPropagation() == criv1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
			widest = "rslave"
		}
	}
	return widest
}

// ImageVolumes lists the VOLUMEs of the image that no mount of the request covers, cleaned and sorted: each needs a
// host directory in ContainerInput.Volumes.
func ImageVolumes(image imagev1.ImageConfig, config *criv1.ContainerConfig) ([]string, error) {
	targets, shared := requestTargets(config)
	var volumes []string
	for given := range image.Volumes {
		volume := path.Join("/", given)
		switch {
		case volume == "/" || hasControl(given) || len(given) >= pathBytes:
			return nil, invalid("image.config.Volumes", given, "no place for a volume")
		case underKernel(volume):
			return nil, invalid("image.config.Volumes", given, "the kernel's file systems cannot be volumes")
		case !targets[volume] && !within(volume, shared):
			volumes = append(volumes, volume)
		}
	}
	sort.Strings(volumes)
	return slices.Compact(volumes), nil
}

// underKernel keeps an image's volumes out of /proc, /sys and /dev, where a directory of its making would stand in for
// what privileged code and the workload's own checks read (CVE-2019-16884, CVE-2023-27561).
func underKernel(p string) bool {
	for _, top := range []string{"/proc", "/sys", "/dev"} {
		if p == top || strings.HasPrefix(p, top+"/") {
			return true
		}
	}
	return false
}

func volumeMounts(in *ContainerInput) ([]specs.Mount, error) {
	volumes, err := ImageVolumes(in.Image, in.Config)
	if err != nil {
		return nil, err
	}
	mounts := make([]specs.Mount, len(volumes))
	for i, volume := range volumes {
		source := in.Volumes[volume]
		if source == "" {
			return nil, invalid("image.config.Volumes", volume, "no directory was made for it")
		}
		mounts[i] = mapped(specs.Mount{Destination: volume, Type: "bind", Source: source, Options: []string{"rbind", "rprivate"}}, SandboxUser(in.Sandbox.Config))
	}
	return mounts, nil
}
