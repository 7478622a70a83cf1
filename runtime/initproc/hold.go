package initproc

import (
	"syscall"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/spawn"
)

// holdName is how ps shows a holder.
const holdName = "podwright-hold"

// HoldFile gives the plan file of a holder: a process that is in a control group so that the group is not empty, and does
// nothing. It ends unless it reads a byte from its standard input, so that it does not outlive a daemon that dies before
// the group is made. It takes a page or two, since Go's runtime never starts; on machines without images it waits as the
// reaper of a shared PID namespace does, from the beginning.
func HoldFile() []byte {
	plan := (&launch.Plan{Ops: []launch.Op{{Code: launch.OpReap, Step: "reap"}}}).Encode()
	if !spawn.BeginsWithImage {
		return plan
	}
	p := spawn.NewImage(-1)
	given, count := p.Words(0), p.Words(0)
	// Whoever sees it in a shared PID namespace may not look into it: it has all of the daemon's privileges.
	p.Call(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 0)
	p.Call(syscall.SYS_PRCTL, syscall.PR_SET_NAME, p.Text(holdName))
	p.Call(sysCloseRange, launch.PlanFd+1, lastFd, 0)
	read := p.Call(syscall.SYS_READ, 0, given, 1)
	p.StoreResult(read, count)
	p.Expect(count, ^uintptr(0), 1, syscall.EPIPE)
	p.Call(syscall.SYS_CLOSE, 0)
	p.Call(syscall.SYS_CLOSE, launch.PlanFd)
	p.Call(syscall.SYS_PPOLL, 0, 0, 0, 0) // no signal is handled: one ends it or changes nothing
	return append(p.Image(), plan...)
}
