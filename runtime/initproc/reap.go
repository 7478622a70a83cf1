package initproc

import (
	"syscall"
	"unsafe"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/spawn"
)

// The reaper
//
// PID 1 of a sandbox whose containers share their PID namespace does nothing for days but wait for orphans,
// so it gives Go's runtime up: the loop in reap_*.s is executed as a program of one page.

const (
	imageBase   = 0x400000
	elfHeader   = 64
	elfSegment  = 56
	reaperBytes = 512 // at least as long as the loop, see the test
)

// reaperCode is the address of the loop.
func reaperCode() unsafe.Pointer

// reap becomes the reaper. As PID 1 it is within reach of every container of the sandbox, so it has no
// capability, no descriptor, and a root directory with nothing in it but its program: /proc/1/root must not lead
// to the keeper's mounts.
func reap(r *runner, op *launch.Op) (string, syscall.Errno) {
	// First of all: in a user namespace nothing may be mounted, not even detached, in a mount namespace of somebody else's.
	if _, errno := call(syscall.SYS_UNSHARE, syscall.CLONE_NEWNS); errno != 0 {
		return "", errno
	}
	if errno := r.labelled(); errno != 0 {
		return execAttribute, errno
	}
	program, mount, errno := r.reaperFile(op.Strings)
	if errno != 0 {
		return "", errno
	}
	if path, errno := r.attach(mount); errno != 0 {
		return path, errno
	}
	if path, errno := pivot(r, op); errno != 0 {
		return path, errno
	}
	r.later(op, ofChild, func(p *spawn.Program) {
		if !r.bounded {
			dropBounding(p, 0)
		}
		p.Call(syscall.SYS_PRCTL, prCapAmbient, prCapAmbientClear)
		capset(p, 0, 0, 0)
		p.Call(syscall.SYS_PRCTL, prNoNewPrivs, 1)
		announce(p)
		// The loop waits for signals, so they stay blocked across its execution.
		p.Call(syscall.SYS_RT_SIGPROCMASK, setMask, p.Words(^uintptr(0)), 0, sigsetSize)
		for fd := range uintptr(3) {
			p.Call(syscall.SYS_CLOSE, fd)
		}
		filter := reaperFilter()
		load := p.Call(sysSeccomp, seccompSetFilter, 0, p.Words(uintptr(len(filter)/8), p.Bytes(filter)))
		p.Tolerate(load, syscall.ENOSYS, syscall.EINVAL) // a kernel without filters
		p.Call(sysExecveat, launch.PlanFd, p.Text(""), p.Texts([]string{"podwright-reap"}), p.Texts(nil), atEmptyPath)
	})
	p := spawn.NewProgram(launch.StatusFd)
	r.program(p, op)
	// The descriptor of the plan is free now, and survives the closing of the others.
	if _, errno = call(syscall.SYS_DUP3, uintptr(program), launch.PlanFd, syscall.O_CLOEXEC); errno != 0 {
		return "", errno
	}
	resetSignals()
	resetTimerSlack()
	call(sysCloseRange, launch.FirstFd, lastFd, 0)
	p.Become()
	return "", 0
}

// reaperFilter allows what the loop does and nothing else. Whoever may trace PID 1 (CAP_SYS_PTRACE) gets no system call out
// of it that a filter of his own forbids him, and no memory that his limits do not count.
func reaperFilter() []byte {
	const (
		loadWord = bpfLd | 0x20
		jumpSame = bpfJmp | 0x10
		retErrno = 0x00050000
	)
	var filter []byte
	add := func(code uint16, yes, no byte, k uint32) {
		filter = append(filter, byte(code), byte(code>>8), yes, no, byte(k), byte(k>>8), byte(k>>16), byte(k>>24))
	}
	add(loadWord, 0, 0, 4) // struct seccomp_data: arch; then nr
	add(jumpSame, 1, 0, auditArch)
	add(bpfRet, 0, 0, retErrno|uint32(syscall.EPERM))
	add(loadWord, 0, 0, 0)
	calls := []uint32{sysExecveat, syscall.SYS_PRCTL, syscall.SYS_WAIT4, syscall.SYS_RT_SIGTIMEDWAIT, syscall.SYS_EXIT_GROUP}
	for i, nr := range calls {
		add(jumpSame, byte(len(calls)-i), 0, nr)
	}
	add(bpfRet, 0, 0, retErrno|uint32(syscall.EPERM))
	add(bpfRet, 0, 0, retAllow)
	return filter
}

// reaperFile makes the smallest ELF program around the loop: one header, one segment, the code. It lies on a
// read-only tmpfs of its own, given as mount; a memfd may not be executed where vm.memfd_noexec is 2.
func (r *runner) reaperFile(more []string) (program, mount int, errno syscall.Errno) {
	const name = "podwright-reap"
	mount, errno = r.newMount("tmpfs", append([]string{"mode=755", "nr_blocks=2", "nr_inodes=3"}, more...), mountAttrNosuid|mountAttrNodev)
	if errno != 0 {
		return -1, -1, errno
	}
	file, errno := call(syscall.SYS_OPENAT, uintptr(mount), uintptr(unsafe.Pointer(text(name))), syscall.O_CREAT|syscall.O_EXCL|syscall.O_WRONLY|syscall.O_CLOEXEC, 0o555)
	if errno != 0 {
		return -1, -1, errno
	}
	errno = write(file, string(reaperELF()))
	closeFd(file) // an open writer would be ETXTBSY for execve
	if errno == 0 {
		errno = setMountAttr(mount, 0, mountAttrReadonly)
	}
	if errno != 0 {
		return -1, -1, errno
	}
	program, errno = openat2(mount, name, syscall.O_RDONLY, 0, resolveBeneath|resolveNoSymlinks)
	return program, mount, errno
}

// reaperELF is the program's bytes (elf(5), Elf64_Ehdr and Elf64_Phdr).
func reaperELF() []byte {
	const start = elfHeader + elfSegment
	image := make([]byte, 0, start+reaperBytes)
	put := func(size int, values ...uint64) {
		for _, v := range values {
			for i := range size {
				image = append(image, byte(v>>(8*i)))
			}
		}
	}
	image = append(image, 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0) // 64 bits, little-endian
	put(2, 2, elfMachine)                                                          // e_type ET_EXEC, e_machine
	put(4, 1)                                                                      // e_version
	put(8, imageBase+start, elfHeader, 0)                                          // e_entry, e_phoff, e_shoff
	put(4, 0)                                                                      // e_flags
	put(2, elfHeader, elfSegment, 1, 64, 0, 0)                                     // sizes and counts: one segment, no sections
	put(4, 1, 4|1)                                                                 // p_type PT_LOAD, p_flags R+X
	put(8, 0, imageBase, imageBase, start+reaperBytes, start+reaperBytes, 0x10000) // offset, addresses, sizes, alignment
	return append(image, unsafe.Slice((*byte)(reaperCode()), reaperBytes)...)
}
