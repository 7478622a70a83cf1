package spawn

import (
	"strconv"
	"syscall"
	"unsafe"

	"github.com/podwright/podwright/runtime/launch"
)

// Entering a user namespace
//
// Only a process with a single thread may, which a Go program never is; a child that still shares the memory of one
// is. It first does what takes rights outside. A PID namespace belongs to the user namespace of who makes it, so where
// one is asked for, the child makes the process that executes as its sibling and ends:
//
//	caller ──clone3──▶ child: score, limits ─▶ setns ─▶ root of the namespace ─┬─▶ execve
//	   └──────────────────── sibling (CLONE_PARENT|CLONE_NEWPID) ◀─────────────┘    └─▶ execve in it, child ends

// UserNamespace is one that a process enters before it executes its program.
type UserNamespace struct {
	Fd int // its file
	// OOMScore is written while the child is outside: from inside it could not be lowered, and what nobody with
	// CAP_SYS_RESOURCE outside has set, the container could lower to the caller's own (proc_pid_oom_score_adj(5)).
	OOMScore int
	Hard     []HardLimit // raised where the caller's is lower: only outside is that allowed

	pid   [8]byte // of the sibling
	outer int     // how many calls are made outside and on the way in
}

// HardLimit is the hard limit that a resource has to have (getrlimit(2)).
type HardLimit struct {
	Resource int
	Hard     uint64
}

// inner is the sibling's process id, 0 without one.
func (u *UserNamespace) inner() int {
	if u == nil {
		return 0
	}
	return int(*(*uint64)(unsafe.Pointer(&u.pid[0])))
}

// enter adds the calls up to root of the namespace. Its capabilities there are all of them.
func (u *UserNamespace) enter(p *Program) {
	const fdcwd = ^uintptr(99)
	score := []byte(strconv.Itoa(u.OOMScore))
	open := p.Call(syscall.SYS_OPENAT, fdcwd, p.Text("/proc/self/oom_score_adj"), syscall.O_WRONLY|syscall.O_CLOEXEC)
	write := p.Call(syscall.SYS_WRITE, 0, p.Bytes(score), uintptr(len(score)))
	p.Feed(open, write, 0)
	for _, l := range u.Hard {
		var now syscall.Rlimit
		if syscall.Getrlimit(l.Resource, &now) == nil && now.Max < l.Hard {
			p.Call(syscall.SYS_PRLIMIT64, 0, uintptr(l.Resource), p.Words(uintptr(now.Cur), uintptr(l.Hard)), 0)
		}
	}
	p.Call(sysSetns, uintptr(u.Fd), syscall.CLONE_NEWUSER)
	// The ids it has are the caller's, which are nobody's here.
	p.Call(syscall.SYS_SETGROUPS, 0, 0)
	p.Call(syscall.SYS_SETRESGID, 0, 0, 0)
	u.outer = p.Call(syscall.SYS_SETRESUID, 0, 0, 0) + 1
}

// fork adds the sibling and what it does.
func (u *UserNamespace) fork(p *Program, inside func(*Program)) *rawProgram {
	fork := p.Fork(syscall.CLONE_NEWPID | cloneFlagParent | cloneFlagsVfork)
	u.pid = [8]byte{}
	p.StoreResult(fork, p.Bytes(u.pid[:]))
	inside(p)
	p.EndChild(fork)
	return p.seal()
}

// stepOf names the part of the program that failed.
func (c *Command) stepOf(raw *rawProgram) string {
	if c.User != nil && int(raw.index) < c.User.outer {
		return "enter user namespace"
	}
	return "spawn"
}

// sibling gives the process that executes, unreaped as it is.
func (u *UserNamespace) sibling() (int, int, error) {
	pid := u.inner()
	if pid == 0 { // the child was killed before it could tell: with its whole cgroup, and the sibling with it
		return 0, -1, &launch.StepError{Step: "spawn", Errno: syscall.ECHILD}
	}
	fd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(pid), 0, 0)
	if errno != 0 {
		// EMFILE: it runs and could not be watched, and init ends where nobody reads what it says.
		return 0, -1, &launch.StepError{Step: "spawn", Errno: errno}
	}
	return pid, int(fd), nil
}
