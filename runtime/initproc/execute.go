package initproc

import (
	"strings"
	"syscall"
	"unsafe"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/spawn"
)

const (
	// Where the environment has no PATH; the directories every container image has programs in.
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

	setMask    = 2
	sigsetSize = 8
	lastSignal = 64
)

// execute becomes the workload, or clones it into the PID namespace that was joined.
func execute(r *runner, op *launch.Op) (string, syscall.Errno) {
	if len(r.plan.Args) == 0 {
		return "", syscall.ENOENT
	}
	if errno := r.labelled(); errno != 0 {
		return execAttribute, errno
	}
	name := r.plan.Args[0]
	paths := candidates(name, r.plan.Env)
	r.later(op, ofChild, func(p *spawn.Program) {
		announce(p)
		p.Execute(op.Step, name, paths, r.plan.Args, r.plan.Env)
	})
	p := spawn.NewProgram(launch.StatusFd)
	r.program(p, op)
	resetSignals()
	resetTimerSlack()
	// Nothing but stdio and the status socket is left when the clone becomes visible in the container.
	call(sysCloseRange, launch.PlanFd, launch.PlanFd, 0)
	call(sysCloseRange, launch.FirstFd, lastFd, 0)
	p.Become()
	return "", 0
}

// announce adds the last message before the execution.
func announce(p *spawn.Program) {
	message := (&launch.Status{Kind: launch.StatusExecNext}).Encode()
	p.Call(syscall.SYS_WRITE, launch.StatusFd, p.Bytes(message), uintptr(len(message)))
}

// resetSignals gives every signal its default disposition, with all of them blocked until the tail unblocks
// them: execve keeps what is ignored, which may be the keeper's choice (SIGPIPE), and from now on no handler
// of Go's runtime may run.
func resetSignals() {
	setSignalMask(^uint64(0))
	action := new([4]uint64) // struct sigaction: SIG_DFL
	for signal := uintptr(1); signal <= lastSignal; signal++ {
		call(syscall.SYS_RT_SIGACTION, signal, uintptr(unsafe.Pointer(action)), 0, sigsetSize) // EINVAL for SIGKILL and SIGSTOP
	}
}

// resetTimerSlack gives the thread, and with it the workload, the slack that the keeper has, which is this process's default.
func resetTimerSlack() { prctl(prSetTimerslack, 0) }

func setSignalMask(blocked uint64) {
	mask := &[1]uint64{blocked}
	call(syscall.SYS_RT_SIGPROCMASK, setMask, uintptr(unsafe.Pointer(mask)), 0, sigsetSize)
}

// candidates are the paths that name may mean, in the order of PATH. Missing files and directories are left out;
// whatever can't be told from here is left in for execve to judge.
func candidates(name string, env []string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	var list []string
	for _, file := range searched(name, env) {
		if file == "" || mayBeProgram(file) {
			list = append(list, file)
		}
	}
	return list
}

// searched are the paths that PATH gives for name.
func searched(name string, env []string) []string {
	if name == "" || strings.Contains(name, "/") {
		return []string{name}
	}
	var list []string
	for rest, more := searchPath(env), true; more; {
		var dir string
		dir, rest, more = strings.Cut(rest, ":")
		file := name
		if dir != "" { // an empty entry is the working directory
			file = strings.TrimSuffix(dir, "/") + "/" + name
		}
		list = append(list, file)
	}
	return list
}

// searchPath is the PATH of env.
func searchPath(env []string) string {
	path := defaultPath
	for _, entry := range env {
		if value, ok := strings.CutPrefix(entry, "PATH="); ok {
			path = value
		}
	}
	return path
}

func mayBeProgram(path string) bool {
	fd, errno := openat2(workingDir, path, oPath, 0, 0)
	if errno != 0 {
		return errno != syscall.ENOENT && errno != syscall.ENOTDIR
	}
	defer closeFd(fd)
	info, errno := stat(fd)
	return errno != 0 || !info.is(syscall.S_IFDIR)
}
