package initproc

import (
	"syscall"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/spawn"
)

// The tail
//
// From the point where the workload's identity begins, operations only add raw calls to the tail, which is
// walked at the end. So a seccomp filter never meets a call of Go's runtime, and no Go code runs in a clone.
//
// Where a PID namespace was joined the workload is a clone of init, and the moment it exists a container with
// CAP_SYS_PTRACE can take it over. Therefore the clone is born with the workload's own credentials: all but
// what belongs to the new process is done before, in init, which the container can't see.
//
//	in init    limits, mask, bounding set, filter, user, capabilities, no_new_privs → clone → StatusChild → exit
//	in clone   setsid, controlling terminal → StatusExecNext → execve
//
// A filter that doesn't let init clone and report moves to the clone, with all that follows it in the plan.

// late is one operation's part of the tail.
type late struct {
	op  *launch.Op
	who side
	add func(p *spawn.Program)
}

// side says which process makes the calls where there are two.
type side int

const (
	ofEither  side = iota // init
	ofChild               // the clone: it is about the new process itself
	ofChildOn             // the clone, and so is everything later in the plan
)

func (r *runner) later(op *launch.Op, who side, add func(p *spawn.Program)) {
	r.tail = append(r.tail, late{op, who, add})
}

// program adds the whole tail, ending in the execution that the last operation, op, added.
func (r *runner) program(p *spawn.Program, op *launch.Op) {
	p.Step("unblock signals", "") // see resetSignals
	p.Call(syscall.SYS_RT_SIGPROCMASK, setMask, p.Words(0), 0, sigsetSize)
	add := func(part late) {
		p.Step(part.op.Step, part.op.Path)
		part.add(p)
	}
	if !r.joined {
		for _, part := range r.tail {
			add(part)
		}
		return
	}
	var child []late
	moved := false
	for _, part := range r.tail {
		if moved = moved || part.who == ofChildOn; moved || part.who == ofChild {
			child = append(child, part)
		} else {
			add(part)
		}
	}
	report := (&launch.Status{Kind: launch.StatusChild}).Encode()
	p.Step(op.Step, "")
	// The keeper becomes the parent and gets init's own exit signal for the clone (clone(2)).
	fork := p.Fork(cloneFlagParent)
	at := p.Bytes(report)
	p.StoreResult(fork, at+launch.StatusPidOffset)
	for _, part := range child {
		add(part)
	}
	p.EndChild(fork)
	p.Step(op.Step, "")
	p.Call(syscall.SYS_WRITE, launch.StatusFd, at, uintptr(len(report)))
	// Here and not by the exit: the keeper waits for the end of the file, and Go's threads take a while to die.
	p.Tolerate(p.Call(syscall.SYS_CLOSE, launch.StatusFd), syscall.EPERM, syscall.EACCES, syscall.ENOSYS) // a filter's
	p.Call(syscall.SYS_EXIT_GROUP, 0)
}
