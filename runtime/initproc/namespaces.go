package initproc

import (
	"strconv"
	"syscall"

	"github.com/podwright/podwright/runtime/launch"
)

// joinCgroupV1 moves this thread, which is the one that becomes the workload; Go's others end at execve.
func joinCgroupV1(r *runner, op *launch.Op) (string, syscall.Errno) {
	return r.plan.Fds[op.Fd], write(r.fd(op), "0")
}

func setns(r *runner, op *launch.Op) (string, syscall.Errno) {
	what := r.plan.Fds[op.Fd]
	if _, errno := call(sysSetns, uintptr(r.fd(op)), uintptr(op.Flags)); errno != 0 {
		return what, errno
	}
	if op.Flags&syscall.CLONE_NEWPID != 0 {
		r.joined, r.pidns = true, r.fd(op)
	}
	if op.Flags&syscall.CLONE_NEWNS == 0 {
		return "", 0
	}
	// Root and working directory are now the joined namespace's root (setns(2)).
	var errno syscall.Errno
	if r.root, errno = openat2(workingDir, "/", oPath|syscall.O_DIRECTORY, 0, 0); errno != 0 {
		return "/", errno
	}
	r.rootInfo, errno = stat(r.root)
	return "/", errno
}

func unshare(r *runner, op *launch.Op) (string, syscall.Errno) {
	_, errno := call(syscall.SYS_UNSHARE, uintptr(op.Flags))
	return "", errno
}

func oomScore(r *runner, op *launch.Op) (string, syscall.Errno) {
	const file = "self/oom_score_adj"
	return "/proc/" + file, r.writeProc(file, strconv.FormatInt(op.Number, 10))
}
