package seccomp

import (
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/seccompprofiles"
)

// x32Bit marks a system call of the x32 ABI, which shares AUDIT_ARCH_X86_64.
const x32Bit = 0x40000000

// armPrivate is where ARM's own system calls (breakpoint, cacheflush, set_tls)
// begin; the common ones stay below (arch/arm/include/uapi/asm/unistd.h).
const armPrivate = 0x0f0000

// abi is one of the calling conventions a filter decides about.
type abi struct {
	arch    specs.Arch
	library libseccomp.ScmpArch
	audit   uint32 // seccomp_data.arch
}

func abiOf(arch specs.Arch) (abi, error) {
	switch arch {
	case specs.ArchX86_64:
		return abi{arch, libseccomp.ArchAMD64, unix.AUDIT_ARCH_X86_64}, nil
	case specs.ArchX86:
		return abi{arch, libseccomp.ArchX86, unix.AUDIT_ARCH_I386}, nil
	case specs.ArchX32:
		return abi{arch, libseccomp.ArchX32, unix.AUDIT_ARCH_X86_64}, nil
	case specs.ArchAARCH64:
		return abi{arch, libseccomp.ArchARM64, unix.AUDIT_ARCH_AARCH64}, nil
	case specs.ArchARM:
		return abi{arch, libseccomp.ArchARM, unix.AUDIT_ARCH_ARM}, nil
	}
	return abi{}, fmt.Errorf("architecture %q is not supported", arch)
}

// abisOf are the ABIs of a filter, the native one first whether it is listed or
// not: a filter without it ends the workload at its first system call.
func abisOf(arch string, listed []specs.Arch) ([]abi, error) {
	own := seccompprofiles.Personalities(arch)
	for _, a := range listed {
		if !slices.Contains(own, a) {
			return nil, fmt.Errorf("architecture %q is no personality of %s", a, arch)
		}
	}
	var abis []abi
	for i, a := range own {
		if i > 0 && !slices.Contains(listed, a) {
			continue
		}
		one, err := abiOf(a)
		if err != nil {
			return nil, err
		}
		abis = append(abis, one)
	}
	return abis, nil
}

// number is name's system call number in the ABI; ok is false if it has none.
// libraryKnows is false where only our own table has it.
func (a abi) number(name string) (nr uint32, libraryKnows, ok bool) {
	// Negative numbers are libseccomp's for calls that other architectures have,
	// and for the multiplexed ones of x86.
	if n, err := libseccomp.GetSyscallFromNameByArch(name, a.library); err == nil && n >= 0 {
		return uint32(n), true, true
	}
	if n, ok := directX86[name]; ok && a.arch == specs.ArchX86 {
		return n, true, true
	}
	n, ok := newerNumber(name, a.arch)
	return n, false, ok
}

// directX86 are the numbers of calls that 32-bit x86 also has inside socketcall
// and ipc. The library gives these names no number, but makes rules for both
// ways (syscall_32.tbl).
var directX86 = map[string]uint32{
	"socket": 359, "socketpair": 360, "bind": 361, "connect": 362, "listen": 363, "accept4": 364, "getsockopt": 365,
	"setsockopt": 366, "getsockname": 367, "getpeername": 368, "sendto": 369, "sendmsg": 370, "recvfrom": 371, "recvmsg": 372,
	"shutdown": 373, "recvmmsg": 337, "sendmmsg": 345, "semget": 393, "semctl": 394, "shmget": 395, "shmctl": 396, "shmat": 397, "shmdt": 398,
	"msgget": 399, "msgsnd": 400, "msgrcv": 401, "msgctl": 402,
}

// newer are system calls that libseccomp 2.5 doesn't know. Since number 424 all
// architectures count alike; x32 sets its bit (syscall.tbl of Linux up to 7.0).
var newer = map[string]uint32{
	"statmount": 457, "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460, "lsm_list_modules": 461, // 6.8
	"mseal":      462,                                                              // 6.10
	"setxattrat": 463, "getxattrat": 464, "listxattrat": 465, "removexattrat": 466, // 6.13
	"open_tree_attr": 467,                      // 6.15
	"file_getattr":   468, "file_setattr": 469, // 6.17
	"listns":           470, // 6.19
	"rseq_slice_yield": 471, // 7.0
	// Older versions of the library lack these too.
	"cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454, "futex_wait": 455, "futex_requeue": 456,
}

// newerX86_64 exist in that ABI only, and fill a gap below 424.
var newerX86_64 = map[string]uint32{"uretprobe": 335, "uprobe": 336}

func newerNumber(name string, arch specs.Arch) (uint32, bool) {
	if nr, ok := newerX86_64[name]; ok {
		return nr, arch == specs.ArchX86_64
	}
	nr, ok := newer[name]
	if arch == specs.ArchX32 {
		// Shadow stacks are for the 64-bit ABI.
		return nr | x32Bit, ok && name != "map_shadow_stack"
	}
	return nr, ok
}
