// Package spawn starts processes: it owns every fork, clone and execve in the tree, and the assembly that
// stands in for Go code where none may run. It decides nothing about what is started: keeperd gives it init
// and descriptors, initproc the prepared last calls of a workload; no other package may import it.
// Source: clone3(2), vfork(2), execveat(2), close_range(2), user_namespaces(7), PR_SET_TIMERSLACK(2const).
package spawn

import (
	"runtime"
	"syscall"
	"unsafe"

	"github.com/podwright/podwright/runtime/launch"
)

// Command is one program to start in a new process.
type Command struct {
	Exe    int      // the file to execute, as a descriptor (execveat(2) with AT_EMPTY_PATH)
	Argv   []string // argv[0] included
	Env    []string // nil: what makes a Go program of init's size start fastest, see initEnv
	Fds    []int    // become descriptors 0..n-1 of the process; it gets no others
	Flags  uint64   // CLONE_NEW* and other flags for clone3(2)
	Cgroup int      // a directory of cgroup v2 in which the process is born, or -1

	// User, if not nil, is entered before the program is executed; a PID namespace of Flags belongs to it.
	User *UserNamespace
}

// initEnv keeps the Go runtime of a process that lives a millisecond from starting threads for every processor,
// reading cgroup limits, interrupting itself and collecting garbage.
func initEnv() []string {
	return []string{"GOMAXPROCS=1", "GOGC=off", "GODEBUG=asyncpreemptoff=1,containermaxprocs=0,updatemaxprocs=0"}
}

// Flags and call numbers that package syscall lacks; from 424 on numbers are the same on every architecture.
const (
	sysPidfdOpen  = 434
	sysCloseRange = 436

	clonePidfd      = 0x1000
	cloneClearHand  = 0x100000000
	cloneIntoCgroup = 0x200000000
	cloneFlagParent = 0x8000
	cloneFlagsVfork = syscall.CLONE_VM | syscall.CLONE_VFORK

	atEmptyPath = 0x1000
	lastFd      = 1<<32 - 1
	allSignals  = ^uint64(0)
	sigsetSize  = 8
	sigSetMask  = 2
	waitPid     = 1
	waitPidfd   = 3
	waitAll     = 0x40000000 // __WALL

	prSetTimerslack = 29
	// initSlack, in nanoseconds, lets the kernel put off the wake-ups of init's Go runtime, whose monitor would look after a
	// thread 10,000 times a second: a sixth of what ten pods take that start at a time. It ends with the plan (initproc).
	initSlack = 10_000_000
)

// Start executes c in a new child of the calling process and gives its id and a pidfd (O_CLOEXEC, the caller's
// to close). It returns when the execve was done, with *launch.StepError "clone" or "spawn" when nothing runs.
//
// The child shares the caller's memory until it executes (CLONE_VM|CLONE_VFORK), so a large caller starts
// processes as fast as a small one; it runs nothing but the prepared calls, with all signals blocked.
// The program begins with default dispositions, except for signals the caller ignores, and an empty mask.
func Start(c *Command) (pid, pidfd int, err error) {
	raw, p := c.program()
	fd := new(int32)
	flags := c.Flags
	if c.User != nil {
		flags &^= syscall.CLONE_NEWPID // for whoever is in the user namespace
	}
	args := &cloneArgs{
		flags:      flags | cloneFlagsVfork | clonePidfd | cloneClearHand,
		pidfd:      uint64(uintptr(unsafe.Pointer(fd))),
		exitSignal: uint64(syscall.SIGCHLD),
	}
	if c.Cgroup >= 0 {
		args.flags |= cloneIntoCgroup
		args.cgroup = uint64(c.Cgroup)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// A handler of the caller's that ran in the child would run in the caller's memory.
	all, old := allSignals, uint64(0)
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, sigSetMask, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), sigsetSize, 0, 0)
	r := cloneAndWalk(args, unsafe.Sizeof(*args), raw)
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, sigSetMask, uintptr(unsafe.Pointer(&old)), 0, sigsetSize, 0, 0)
	runtime.KeepAlive(p)
	runtime.KeepAlive(fd)
	if errno := cloneErrno(r); errno != 0 {
		return 0, -1, &launch.StepError{Step: "clone", Errno: errno}
	}
	if raw.errno != 0 {
		reap(int(*fd))
		if inner := c.User.inner(); inner != 0 {
			reapPid(inner)
		}
		return 0, -1, &launch.StepError{Step: c.stepOf(raw), Errno: syscall.Errno(raw.errno)}
	}
	if c.User == nil || c.Flags&syscall.CLONE_NEWPID == 0 {
		return int(r), int(*fd), nil
	}
	reap(int(*fd)) // it is done
	return c.User.sibling()
}

// program is what the child does: descriptors into place, all others closed, mask emptied, execve.
func (c *Command) program() (*rawProgram, *Program) {
	p := NewProgram(-1)
	if c.User != nil {
		c.User.enter(p)
		if c.Flags&syscall.CLONE_NEWPID != 0 {
			return c.User.fork(p, c.execute), p
		}
	}
	c.execute(p)
	return p.seal(), p
}

// execute adds the calls of who executes the program.
func (c *Command) execute(p *Program) {
	c.placeFds(p)
	env := c.Env
	if env == nil {
		env = initEnv()
		p.Call(syscall.SYS_PRCTL, prSetTimerslack, initSlack)
	}
	p.Call(syscall.SYS_RT_SIGPROCMASK, sigSetMask, p.Words(0), 0, sigsetSize)
	p.Call(sysExecveat, uintptr(len(c.Fds)), p.Text(""), p.Texts(c.Argv), p.Texts(env), atEmptyPath)
}

// placeFds adds the calls that turn Fds into 0..n-1 and Exe into n. Sources and targets overlap in any way, so
// every source below n+1 is moved up first, and nothing is overwritten before it was copied.
func (c *Command) placeFds(p *Program) {
	n := len(c.Fds)
	sources := append(append(make([]int, 0, n+1), c.Fds...), c.Exe)
	moved := make([]int, n+1) // index of the call that moved the source, -1 for none
	for i, fd := range sources {
		moved[i] = -1
		if fd <= n {
			moved[i] = p.Call(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, uintptr(n+1))
		}
	}
	for i, fd := range sources {
		flags := uintptr(0)
		if i == n {
			flags = syscall.O_CLOEXEC
		}
		dup := p.Call(syscall.SYS_DUP3, uintptr(fd), uintptr(i), flags)
		if moved[i] >= 0 {
			p.Feed(moved[i], dup, 0)
		}
	}
	p.Call(sysCloseRange, uintptr(n+1), lastFd, 0)
}

// reap waits for a child that is none of the caller's and closes its pidfd: the caller never hears of it.
func reap(pidfd int) {
	waitFor(waitPidfd, pidfd)
	syscall.Close(pidfd)
}

// reapPid is reap for one whose pidfd nobody has. It is unreaped, so the pid is its own.
func reapPid(pid int) { waitFor(waitPid, pid) }

func waitFor(kind, id int) {
	for {
		_, _, errno := syscall.Syscall6(sysWaitid, uintptr(kind), uintptr(id), 0, syscall.WEXITED|waitAll, 0, 0)
		if errno != syscall.EINTR {
			return
		}
	}
}
