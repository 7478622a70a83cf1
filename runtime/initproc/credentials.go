package initproc

import (
	"strings"
	"syscall"
	"unsafe"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/spawn"
)

const (
	capVersion3 = 0x20080522
	highestCap  = 63 // of the bit masks in a plan

	prCapbsetRead     = 23
	prCapbsetDrop     = 24
	prSetKeepCaps     = 8
	prCapAmbient      = 47
	prCapAmbientRaise = 2
	prCapAmbientClear = 4
	prSetTimerslack   = 29
	prNoNewPrivs      = 38

	seccompSetFilter = 1
)

// capHeader is the first argument of capget(2) and capset(2), for the calling thread.
func capHeader() *[2]uint32 { return &[2]uint32{capVersion3, 0} }

// execLabel sets an LSM attribute of this thread through the procfs that was opened before the container's.
func execLabel(r *runner, op *launch.Op) (string, syscall.Errno) {
	if strings.Contains(op.Path, "..") {
		return "", syscall.EINVAL // another process's
	}
	file := "thread-self/attr/" + strings.TrimPrefix(op.Path, "/")
	return "/proc/" + file, r.writeProc(file, op.Arg)
}

// execAttribute is where the label of what is executed next is set.
const execAttribute = "/proc/thread-self/attr/exec"

// labelled looks whether the label of a plan with one is there. What is executed without would run as whatever the policy
// makes of init's own, in some with nothing forbidden.
func (r *runner) labelled() syscall.Errno {
	for i := range r.plan.Ops {
		if op := &r.plan.Ops[i]; op.Code != launch.OpExecLabel || op.Path != "exec" {
			continue
		}
		fd, errno := openat2(r.proc, "thread-self/attr/exec", syscall.O_RDONLY, 0, resolveBeneath|resolveNoMagiclinks|resolveNoXdev)
		if errno != 0 {
			return errno
		}
		defer closeFd(fd)
		buffer := new([64]byte)
		n, errno := call(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(buffer)), uintptr(len(buffer)))
		if errno == 0 && n == 0 {
			errno = syscall.EPERM
		}
		return errno
	}
	return 0
}

func user(r *runner, op *launch.Op) (string, syscall.Errno) {
	groups, errno := numbers(op.Strings)
	if errno != 0 {
		return "", errno
	}
	r.userSet = true
	uid, gid := uintptr(op.Flags), uintptr(op.Number)
	r.later(op, ofEither, func(p *spawn.Program) {
		// Cleared again by execve. Without it the change of user would drop what OpCaps is to keep.
		p.Call(syscall.SYS_PRCTL, prSetKeepCaps, 1)
		p.Call(syscall.SYS_SETGROUPS, uintptr(len(groups)), p.Halves(groups...))
		p.Call(syscall.SYS_SETRESGID, gid, gid, gid)
		p.Call(syscall.SYS_SETRESUID, uid, uid, uid)
	})
	return "", 0
}

// mask64 reads the little-endian bit mask i of data.
func mask64(data []byte, i int) (v uint64) {
	for k, b := range data[8*i : 8*i+8] {
		v |= uint64(b) << (8 * k)
	}
	return v
}

func bounding(r *runner, op *launch.Op) (string, syscall.Errno) {
	if len(op.Data) != 8 {
		return "", syscall.EINVAL
	}
	r.bounded = true
	r.later(op, ofEither, func(p *spawn.Program) { dropBounding(p, mask64(op.Data, 0)) })
	return "", 0
}

// dropBounding adds the removal from the bounding set of every capability that the kernel knows and that is not in
// keep, whether init holds it or not.
func dropBounding(p *spawn.Program, keep uint64) {
	for c := uintptr(0); c <= highestCap; c++ {
		if _, errno := prctl(prCapbsetRead, c); errno != 0 {
			return // past the kernel's last capability
		}
		if keep&(1<<c) == 0 {
			p.Call(syscall.SYS_PRCTL, prCapbsetDrop, c)
		}
	}
}

func caps(r *runner, op *launch.Op) (string, syscall.Errno) {
	if len(op.Data) != 5*8 {
		return "", syscall.EINVAL
	}
	bounded := r.bounded
	r.later(op, ofEither, func(p *spawn.Program) {
		if !bounded {
			// Dropping from the bounding set needs CAP_SETPCAP in effect, which a change of user took out of it.
			capset(p, r.permitted, r.permitted, 0)
			dropBounding(p, mask64(op.Data, 0))
		}
		capset(p, mask64(op.Data, 1), mask64(op.Data, 2), mask64(op.Data, 3))
		p.Call(syscall.SYS_PRCTL, prCapAmbient, prCapAmbientClear)
		ambient := mask64(op.Data, 4)
		for c := uintptr(0); c <= highestCap; c++ {
			if ambient&(1<<c) != 0 {
				p.Call(syscall.SYS_PRCTL, prCapAmbient, prCapAmbientRaise, c)
			}
		}
	})
	return "", 0
}

// capset adds capset(2).
func capset(p *spawn.Program, effective, permitted, inheritable uint64) {
	header := capHeader()
	p.Call(syscall.SYS_CAPSET, p.Halves(header[:]...), p.Halves(
		uint32(effective), uint32(permitted), uint32(inheritable),
		uint32(effective>>32), uint32(permitted>>32), uint32(inheritable>>32)))
}

func noNewPrivs(r *runner, op *launch.Op) (string, syscall.Errno) {
	r.later(op, ofEither, func(p *spawn.Program) { p.Call(syscall.SYS_PRCTL, prNoNewPrivs, 1) })
	return "", 0
}

// seccomp adds the filter. What follows it in the plan is walked under it; no call of Go's runtime is.
func seccomp(r *runner, op *launch.Op) (string, syscall.Errno) {
	if len(op.Data) == 0 || len(op.Data)%8 != 0 || len(op.Data)/8 > 1<<16-1 {
		return "", syscall.EINVAL
	}
	who := ofEither
	if r.joined && !allowsClone(op.Data) {
		who = ofChildOn
	}
	r.later(op, who, func(p *spawn.Program) {
		program := p.Words(uintptr(len(op.Data)/8), p.Bytes(op.Data)) // struct sock_fprog
		p.Call(sysSeccomp, seccompSetFilter, uintptr(op.Flags), program)
	})
	return "", 0
}
