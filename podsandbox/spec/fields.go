package spec

import (
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Treatment says what happens to a field that is set.
type Treatment int

// Every field of the two configurations has one of these.
const (
	_       Treatment = iota
	Handled           // obeyed, or refused where this node cannot
	Refused           // always an error
	Inert             // accepted without effect, for the reason given
)

// Field is one row of the table of fields. A Refused or Inert row covers everything below it; a message
// without a row is as its fields are.
type Field struct {
	Path      string // from the message's name, e.g. "ContainerConfig.mounts.image"
	Treatment Treatment
	Reason    string // for Refused and Inert
}

const (
	noWindows   = "this is a Linux runtime"
	noProcess   = "a sandbox has no process of its own but podwright's reaper, which holds no privilege at all"
	kubeletsOwn = "the kubelet enforces it on the pod's cgroup, which it owns; runtimes that start virtual machines size them by it"
)

// Fields lists how every field of PodSandboxConfig and ContainerConfig is treated. Validation refuses by this
// table, and a test walks the messages' descriptors against it.
func Fields() []Field {
	list := handled("PodSandboxConfig.",
		"metadata.name metadata.uid metadata.namespace metadata.attempt hostname log_directory labels annotations",
		"dns_config.servers dns_config.searches dns_config.options",
		"port_mappings.protocol port_mappings.container_port port_mappings.host_port port_mappings.host_ip",
		"linux.cgroup_parent linux.sysctls linux.security_context.privileged linux.security_context.run_as_group.value")
	list = append(list, securityFields("PodSandboxConfig.linux.security_context.")...)
	list = append(list, handled("ContainerConfig.",
		"metadata.name metadata.attempt image.image image.user_specified_image command args working_dir envs.key envs.value",
		"mounts.container_path mounts.host_path mounts.readonly mounts.selinux_relabel mounts.propagation mounts.recursive_read_only",
		"mounts.image.image mounts.image.user_specified_image mounts.image_sub_path mounts.mount_options",
		idMapping("mounts.uidMappings"), idMapping("mounts.gidMappings"),
		"devices.container_path devices.host_path devices.permissions labels annotations log_path stdin stdin_once tty stop_signal")...)
	list = append(list, handled("ContainerConfig.linux.resources.",
		"cpu_period cpu_quota cpu_shares memory_limit_in_bytes oom_score_adj cpuset_cpus cpuset_mems",
		"hugepage_limits.page_size hugepage_limits.limit unified memory_swap_limit_in_bytes")...)
	list = append(list, handled("ContainerConfig.linux.security_context.",
		"capabilities.add_capabilities capabilities.drop_capabilities capabilities.add_ambient_capabilities privileged",
		"run_as_user.value run_as_group.value run_as_username readonly_rootfs supplemental_groups supplemental_groups_policy",
		"no_new_privs masked_paths readonly_paths seccomp.profile_type seccomp.localhost_ref seccomp_profile_path",
		"apparmor.profile_type apparmor.localhost_ref apparmor_profile")...)
	list = append(list, securityFields("ContainerConfig.linux.security_context.")...)
	return append(list,
		Field{"PodSandboxConfig.windows", Refused, noWindows},
		Field{"PodSandboxConfig.linux.overhead", Inert, kubeletsOwn},
		Field{"PodSandboxConfig.linux.resources", Inert, kubeletsOwn},
		Field{"PodSandboxConfig.linux.security_context.run_as_user", Inert, noProcess},
		Field{"PodSandboxConfig.linux.security_context.readonly_rootfs", Inert, noProcess},
		Field{"PodSandboxConfig.linux.security_context.supplemental_groups", Inert, noProcess},
		Field{"PodSandboxConfig.linux.security_context.supplemental_groups_policy", Inert, noProcess},
		Field{"PodSandboxConfig.linux.security_context.seccomp", Inert, noProcess},
		Field{"PodSandboxConfig.linux.security_context.seccomp_profile_path", Inert, noProcess},
		Field{"PodSandboxConfig.linux.security_context.apparmor", Inert, noProcess},
		Field{"ContainerConfig.windows", Refused, noWindows},
		Field{"ContainerConfig.CDI_devices", Refused, "CDI devices are not supported yet"},
		Field{"ContainerConfig.image.annotations", Inert, "the CRI defines them as hints for choosing a platform at pull"},
		Field{"ContainerConfig.image.image_ref", Inert, "the CRI gives it a meaning for image volumes only"},
		Field{"ContainerConfig.image.runtime_handler", Refused, "there is no runtime handler but the default one"},
		Field{"ContainerConfig.mounts.image.annotations", Inert, "the CRI defines them as hints for choosing a platform at pull"},
		Field{"ContainerConfig.mounts.image.image_ref", Inert, "it is for answers: ContainerStatus puts the image's id there"},
		Field{"ContainerConfig.mounts.image.runtime_handler", Refused, "there is no runtime handler but the default one"},
	)
}

// securityFields are the rows both security contexts have.
func securityFields(prefix string) []Field {
	return handled(prefix, "namespace_options.network namespace_options.pid namespace_options.ipc namespace_options.target_id",
		"namespace_options.userns_options.mode", idMapping("namespace_options.userns_options.uids"), idMapping("namespace_options.userns_options.gids"),
		"selinux_options.user selinux_options.role selinux_options.type selinux_options.level")
}

// idMapping are the fields of a mapping of ids.
func idMapping(path string) string {
	return path + ".host_id " + path + ".container_id " + path + ".length"
}

func handled(prefix string, lists ...string) []Field {
	var out []Field
	for _, list := range lists {
		for _, path := range strings.Fields(list) {
			out = append(out, Field{Path: prefix + path, Treatment: Handled})
		}
	}
	return out
}

var fieldsByPath = sync.OnceValue(func() map[string]Field {
	byPath := map[string]Field{}
	for _, f := range Fields() {
		byPath[f.Path] = f
	}
	return byPath
})

// refuseSet walks every set field of m and refuses by the table, and unknown enum numbers: a newer kubelet's
// choice that this version cannot obey. path is m's in the table, shown is what errors call it.
func refuseSet(m protoreflect.Message, path, shown string) error {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		name := string(fd.Name())
		row := fieldsByPath()[path+"."+name]
		switch row.Treatment {
		case Refused:
			return invalid(shown+name, "", "%s", row.Reason)
		case Inert:
			continue
		}
		if err := refuseIn(m.Get(fd), fd, path+"."+name, shown+name); err != nil {
			return err
		}
	}
	return nil
}

func refuseIn(v protoreflect.Value, fd protoreflect.FieldDescriptor, path, shown string) error {
	switch {
	case fd.IsMap():
		return nil
	case fd.Kind() == protoreflect.EnumKind && !fd.IsList():
		if fd.Enum().Values().ByNumber(v.Enum()) == nil {
			return invalid(shown, strconv.Itoa(int(v.Enum())), "unknown value of %s", fd.Enum().Name())
		}
	case fd.Message() == nil:
		return nil
	case fd.IsList():
		list := v.List()
		for i := range list.Len() {
			if err := refuseSet(list.Get(i).Message(), path, shown+"["+strconv.Itoa(i)+"]."); err != nil {
				return err
			}
		}
	default:
		return refuseSet(v.Message(), path, shown+".")
	}
	return nil
}

// unknownBytes counts what a newer client sent in fields this version has no name for. Refusing them would stop
// every pod of a node whose kubelet was upgraded first; they are reported instead.
func unknownBytes(m protoreflect.Message) int {
	n := len(m.GetUnknown())
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap() || fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				n += unknownBytes(v.List().Get(i).Message())
			}
		default:
			n += unknownBytes(v.Message())
		}
		return true
	})
	return n
}
