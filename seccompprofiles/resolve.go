package seccompprofiles

import (
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// capabilities are the kernel's, as of CAP_LAST_CAP 40 (Linux 5.9 and later).
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
	"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
	"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// Personalities are the ABIs a kernel of an architecture (GOARCH) can run, the
// native one first. An architecture that isn't here has no filters.
func Personalities(arch string) []specs.Arch {
	switch arch {
	case "amd64":
		return []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	case "arm64":
		return []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	}
	return nil
}

// Resolve is the profile for one container: arch as GOARCH names it, the
// kernel's version, and the container's bounding set as CAP_ names. The result
// always names its architectures, the native one first.
func (p *Profile) Resolve(arch string, kernel Version, caps []string) (*specs.LinuxSeccomp, error) {
	own := Personalities(arch)
	if own == nil {
		return nil, fmt.Errorf("resolve seccomp profile: architecture %q is not supported", arch)
	}
	for _, c := range caps {
		if !slices.Contains(capabilities, c) {
			return nil, fmt.Errorf("resolve seccomp profile: unknown capability %q", c)
		}
	}
	spec := &specs.LinuxSeccomp{
		DefaultAction:   p.defaultAction,
		DefaultErrnoRet: p.defaultErrnoRet,
		Architectures:   p.specArchitectures(own),
		Flags:           slices.Clone(p.flags),
	}
	var offsets []int // of spec.Syscalls in the document
	var indexes []int
	for i, r := range p.rules {
		if !r.includes.holds(arch, kernel, caps) || r.excludes.anyHolds(arch, kernel, caps) {
			continue
		}
		spec.Syscalls = append(spec.Syscalls, specs.LinuxSyscall{Names: r.names, Action: r.action, ErrnoRet: r.errnoRet, Args: r.args})
		offsets, indexes = append(offsets, r.offset), append(indexes, i)
	}
	if c := FindConflict(spec); c != nil {
		return nil, errorAt(p.data, offsets[c.Rule], fmt.Sprintf("syscalls[%d]", indexes[c.Rule]),
			fmt.Sprintf("contradicts syscalls[%d] about %s: one call could match both", indexes[c.Earlier], c.Name))
	}
	return spec, nil
}

// specArchitectures keeps of the profile's architectures those that this kernel
// can run. The native one is always in: without it the first system call of
// the workload would end it.
func (p *Profile) specArchitectures(own []specs.Arch) []specs.Arch {
	wanted := p.architectures
	for _, a := range p.archMap {
		if a.native == own[0] {
			wanted = a.subs
		}
	}
	arches := []specs.Arch{own[0]}
	for _, a := range own[1:] {
		if slices.Contains(wanted, a) {
			arches = append(arches, a)
		}
	}
	return arches
}

func (c condition) holds(arch string, kernel Version, caps []string) bool {
	if len(c.arches) > 0 && !slices.Contains(c.arches, arch) {
		return false
	}
	if c.minKernel != nil && kernel.Before(*c.minKernel) {
		return false
	}
	return !slices.ContainsFunc(c.caps, func(need string) bool { return !slices.Contains(caps, need) })
}

func (c condition) anyHolds(arch string, kernel Version, caps []string) bool {
	return slices.Contains(c.arches, arch) ||
		c.minKernel != nil && !kernel.Before(*c.minKernel) ||
		slices.ContainsFunc(c.caps, func(c string) bool { return slices.Contains(caps, c) })
}
