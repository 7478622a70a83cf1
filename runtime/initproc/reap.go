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
	memfdCloexec = 1
	memfdSealing = 2
	memfdExec    = 0x10 // since Linux 6.3; required there where vm.memfd_noexec is 1

	addSeals = 1033 // F_ADD_SEALS
	sealAll  = 0xf  // F_SEAL_SEAL|SHRINK|GROW|WRITE

	imageBase   = 0x400000
	elfHeader   = 64
	elfSegment  = 56
	reaperBytes = 512 // at least as long as the loop, see the test
)

// reaperCode is the address of the loop.
func reaperCode() unsafe.Pointer

// reap becomes the reaper, without any capability: as PID 1 its memory and descriptors are open to the
// containers' root, and it needs none.
func reap(r *runner, op *launch.Op) (string, syscall.Errno) {
	program, errno := reaperFile()
	if errno != 0 {
		return "", errno
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
		blocked := ^uint64(0)
		p.Call(syscall.SYS_RT_SIGPROCMASK, setMask, p.Pointer(unsafe.Pointer(&blocked)), 0, sigsetSize)
		for fd := range uintptr(3) {
			p.Call(syscall.SYS_CLOSE, fd)
		}
		p.Call(sysExecveat, launch.PlanFd, p.Text(""), p.Texts([]string{"podwright-reap"}), p.Texts(nil), atEmptyPath)
	})
	p := r.program(op)
	// The descriptor of the plan is free now, and survives the closing of the others.
	if _, errno = call(syscall.SYS_DUP3, uintptr(program), launch.PlanFd, syscall.O_CLOEXEC); errno != 0 {
		return "", errno
	}
	resetSignals()
	call(sysCloseRange, launch.FirstFd, lastFd, 0)
	p.Become()
	return "", 0
}

// reaperFile makes the smallest ELF program around the loop: one header, one segment, the code.
func reaperFile() (int, syscall.Errno) {
	name := text("podwright-reap")
	fd, errno := call(sysMemfdCreate, uintptr(unsafe.Pointer(name)), memfdCloexec|memfdSealing|memfdExec)
	if errno == syscall.EINVAL {
		fd, errno = call(sysMemfdCreate, uintptr(unsafe.Pointer(name)), memfdCloexec|memfdSealing)
	}
	if errno != 0 {
		return -1, errno
	}
	if errno = write(fd, string(reaperELF())); errno == 0 {
		_, errno = call(syscall.SYS_FCNTL, uintptr(fd), addSeals, sealAll)
	}
	return fd, errno
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
