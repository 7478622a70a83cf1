package spec

import (
	"math/bits"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// capabilityNames by number (linux/capability.h).
var capabilityNames = [...]string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
	"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
	"SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
	"AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
	"PERFMON", "BPF", "CHECKPOINT_RESTORE",
}

// defaultCapabilities is what a container holds that asks for nothing: the same fourteen as with the other runtimes.
var defaultCapabilities = [...]string{
	"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
	"NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
}

const allCapabilities = "ALL"

// capabilityBit parses a name with or without CAP_, in any case; 0 is unknown.
func capabilityBit(name string) uint64 {
	name = strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	for i, known := range capabilityNames {
		if name == known {
			return 1 << i
		}
	}
	return 0
}

// capabilityList names the bits of mask as OCI does, in the order of their numbers.
func capabilityList(mask uint64) []string {
	list := make([]string, 0, bits.OnesCount64(mask))
	for i, name := range capabilityNames {
		if mask&(1<<i) != 0 {
			list = append(list, "CAP_"+name)
		}
	}
	return list
}

func capabilityMask(names []string) (uint64, error) {
	var mask uint64
	for _, name := range names {
		bit := capabilityBit(name)
		if bit == 0 {
			return 0, invalid("process.capabilities", name, "unknown capability")
		}
		mask |= bit
	}
	return mask, nil
}

// capabilitySet is what a container is to hold: held goes into bounding, permitted and effective, ambient into
// inheritable and ambient too.
type capabilitySet struct {
	held, ambient uint64
	missing       uint64 // of the default set, not held by podwright itself
}

// capabilitiesOf adds and drops in the order Kubernetes defines: ALL first, in both lists, then single ones, drops
// last. ALL means what podwright holds; asking by name for one it does not hold is an error, for nothing could grant it.
func capabilitiesOf(security *criv1.LinuxContainerSecurityContext, node Node) (capabilitySet, error) {
	known := node.Capabilities & (1<<len(capabilityNames) - 1)
	if security.GetPrivileged() {
		return capabilitySet{held: known}, nil
	}
	var set capabilitySet
	for _, name := range defaultCapabilities {
		set.held |= capabilityBit(name)
	}
	set.missing, set.held = set.held&^known, set.held&known

	asked := security.GetCapabilities()
	const field = contextField + "capabilities."
	add, addAll, err := parseCapabilities(field+"add_capabilities", asked.GetAddCapabilities(), known)
	if err != nil {
		return set, err
	}
	ambient, ambientAll, err := parseCapabilities(field+"add_ambient_capabilities", asked.GetAddAmbientCapabilities(), known)
	if err != nil {
		return set, err
	}
	drop, dropAll, err := parseCapabilities(field+"drop_capabilities", asked.GetDropCapabilities(), ^uint64(0))
	if err != nil {
		return set, err
	}
	if ambientAll {
		ambient = known
	}
	if addAll {
		set.held, set.missing = known, 0
	}
	if dropAll {
		set.held, set.missing = 0, 0
	}
	set.held = (set.held | add | ambient) &^ drop
	set.ambient = ambient &^ drop
	set.missing &^= drop
	return set, nil
}

func parseCapabilities(field string, names []string, grantable uint64) (mask uint64, all bool, err error) {
	for _, name := range names {
		if strings.EqualFold(name, allCapabilities) || strings.EqualFold(name, "CAP_"+allCapabilities) {
			all = true
			continue
		}
		bit := capabilityBit(name)
		if bit == 0 {
			return 0, false, invalid(field, name, "unknown capability")
		}
		if bit&grantable == 0 {
			return 0, false, invalid(field, name, "not held by the runtime itself")
		}
		mask |= bit
	}
	return mask, all, nil
}

// oci gives the set in the spec's form. Inheritable stays empty unless ambient ones are asked for: a file's
// inheritable bits would otherwise hand capabilities to whoever executes it (CVE-2022-24769).
func (c capabilitySet) oci() *specs.LinuxCapabilities {
	held := capabilityList(c.held)
	return &specs.LinuxCapabilities{
		Bounding: held, Effective: held, Permitted: held,
		Inheritable: capabilityList(c.ambient), Ambient: capabilityList(c.ambient),
	}
}
