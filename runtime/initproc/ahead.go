package initproc

import (
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/spawn"
)

// Ahead of time
//
// An exec decides nothing that its plan doesn't hold, so all of its calls can be known before there is a process to
// make them: they are put before the plan in the plan file (see spawn's images), and Go's runtime never starts. What
// the container's file system has to answer is left to the calls themselves: execve tries the directories of PATH.

// maxSearched is how many directories of PATH are tried ahead, each with room for the name: PATH is the image's, the
// name is from whoever may exec, and it is the daemon that makes the file.
const maxSearched = 128

// PlanFile gives the bytes of the plan file: the calls of a plan that allows it, and the plan.
func PlanFile(plan *launch.Plan) []byte {
	encoded := plan.Encode()
	if !spawn.BeginsWithImage {
		return encoded
	}
	if _, err := launch.Decode(encoded); err != nil {
		return encoded // init says so, while calls would take a text with a zero byte to end there
	}
	return append(image(plan), encoded...)
}

// ahead is what is known while a plan's calls are listed.
type ahead struct {
	runner
	p       *spawn.Program
	labels  map[int]int // by operation: the call that opened its file
	inside  bool        // the container's mount namespace was joined
	entered int         // the call that has a result once the working directory was entered; -1 for none
}

// image lists the calls of a plan; nil where one of its operations depends on what they find.
func image(plan *launch.Plan) []byte {
	if len(plan.Args) == 0 || len(plan.Args[0]) >= pathMax {
		return nil
	}
	if !strings.Contains(plan.Args[0], "/") && strings.Count(searchPath(plan.Env), ":") >= maxSearched {
		return nil
	}
	a := &ahead{runner: runner{plan: plan}, p: spawn.NewImage(launch.StatusFd), entered: -1, labels: map[int]int{}}
	a.prepareCalls()
	for a.at = range plan.Ops {
		op := &plan.Ops[a.at]
		if op.Code == launch.OpExec {
			a.executeCalls(op)
			return a.p.Image()
		}
		a.p.Step(op.Step, op.Path)
		if !a.add(op) {
			return nil
		}
	}
	return nil
}

// prepareCalls are those of prepare: there is but one thread.
func (a *ahead) prepareCalls() {
	a.p.Step("prepare", "")
	a.p.Call(sysCloseRange, launch.PlanFd, lastFd, closeRangeCloexec)
	a.p.Call(syscall.SYS_UMASK, 0)
	a.p.Call(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 0)
	a.p.Call(syscall.SYS_PRCTL, prSetTimerslack, 0)
	for i := range a.plan.Ops {
		if op := &a.plan.Ops[i]; op.Code == launch.OpExecLabel {
			a.labels[i] = a.openProcFile("thread-self/attr/"+strings.TrimPrefix(op.Path, "/"), op)
		}
	}
}

// openProcFile is openProc and the opening of a file: by its path, while that leads nowhere but to the keeper's procfs.
func (a *ahead) openProcFile(file string, op *launch.Op) int {
	a.p.Step(op.Step, "/proc/"+file)
	info := a.p.Bytes(make([]byte, statfsSize))
	a.p.Call(syscall.SYS_STATFS, a.p.Text("/proc"), info)
	a.p.Expect(info, ^uintptr(0), procMagic, syscall.EXDEV) // f_type
	return openPath(a.p, "/proc/"+file, syscall.O_WRONLY, resolveNoMagiclinks)
}

// writeTo adds the writing of value to the descriptor that call open gives.
func (a *ahead) writeTo(open int, value string) bool {
	write := a.p.Call(syscall.SYS_WRITE, 0, a.p.Bytes([]byte(value)), uintptr(len(value)))
	a.p.Feed(open, write, 0)
	return true
}

// add lists the calls of one operation, or adds them to the tail; false where they can't be known.
func (a *ahead) add(op *launch.Op) bool {
	if (op.Code == launch.OpJoinCgroupV1 || op.Code == launch.OpSetns) && op.Fd < 0 {
		return false
	}
	switch op.Code {
	case launch.OpJoinCgroupV1:
		a.p.Step(op.Step, a.plan.Fds[op.Fd])
		a.p.Call(syscall.SYS_WRITE, uintptr(a.fd(op)), a.p.Bytes([]byte("0")), 1)
	case launch.OpSetns:
		a.p.Step(op.Step, a.plan.Fds[op.Fd])
		a.p.Call(sysSetns, uintptr(a.fd(op)), uintptr(op.Flags))
		a.joined = a.joined || op.Flags&syscall.CLONE_NEWPID != 0
		a.inside = a.inside || op.Flags&syscall.CLONE_NEWNS != 0
	case launch.OpOOMScore:
		return !a.inside && a.writeTo(a.openProcFile("self/oom_score_adj", op), strconv.FormatInt(op.Number, 10))
	case launch.OpExecLabel:
		return !strings.Contains(op.Path, "..") && a.writeTo(a.labels[a.at], op.Arg)
	case launch.OpKeyring:
		a.p.Tolerate(a.p.Call(syscall.SYS_KEYCTL, keyctlJoinSession, a.p.Text(op.Arg)), syscall.ENOSYS, syscall.EPERM)
	case launch.OpChdir:
		return a.chdirCalls(op)
	case launch.OpSetsid, launch.OpRlimit, launch.OpUmask, launch.OpUser, launch.OpCaps, launch.OpBounding, launch.OpNoNewPrivs, launch.OpSeccomp:
		if op.Code == launch.OpCaps && !a.bounded {
			return false // it asks what init holds
		}
		_, errno := steps()[op.Code](&a.runner, op)
		return errno == 0
	default:
		return false
	}
	return true
}

// chdirCalls are those of chdir. The process's root has to be the container's by then.
func (a *ahead) chdirCalls(op *launch.Op) bool {
	if !a.inside || op.Flags != 0 || !strings.HasPrefix(op.Path, "/") {
		return false
	}
	if a.userSet {
		before := a.entered
		a.later(op, ofEither, func(p *spawn.Program) {
			if before < 0 {
				enterPath(p, op.Path)
				return
			}
			unless := p.Unless(before)
			enterPath(p, op.Path)
			p.EndUnless(unless)
		})
		return true
	}
	buffer := a.p.Bytes(make([]byte, pathMax))
	open, enter := enterPath(a.p, op.Path)
	where := a.p.Call(syscall.SYS_GETCWD, buffer, pathMax)
	a.p.Expect(buffer, 0xff, '/', syscall.EXDEV) // see insideRoot
	same := func(later launch.Op) bool { return later.Code == launch.OpChdir && later.Path == op.Path }
	switch {
	case slices.ContainsFunc(a.plan.Ops[a.at+1:], same):
		for _, call := range []int{open, enter} {
			a.p.Tolerate(call, syscall.EACCES, syscall.EPERM)
			a.p.EndMiss(call)
		}
		a.entered = where
	case a.chdirFollows():
		return false
	}
	return true
}

// executeCalls are those of execute.
func (a *ahead) executeCalls(op *launch.Op) {
	name := a.plan.Args[0]
	a.later(op, ofChild, func(p *spawn.Program) {
		announce(p)
		p.Execute(op.Step, name, searched(name, a.plan.Env), a.plan.Args, a.plan.Env)
	})
	a.p.Step(op.Step, "")
	action := a.p.Words(0, 0, 0, 0) // struct sigaction: SIG_DFL
	for signal := uintptr(1); signal <= lastSignal; signal++ {
		if s := syscall.Signal(signal); s != syscall.SIGKILL && s != syscall.SIGSTOP {
			a.p.Call(syscall.SYS_RT_SIGACTION, signal, action, 0, sigsetSize)
		}
	}
	a.p.Call(sysCloseRange, launch.PlanFd, launch.PlanFd, 0)
	a.p.Call(sysCloseRange, launch.FirstFd, lastFd, 0)
	a.program(a.p, op)
}
