package spawn

import "unsafe"

// rawCall and rawProgram are what the assembly reads: its offsets are written out there.
type rawCall struct {
	nr       uintptr
	args     [6]uintptr
	store    *uintptr // gets the result, where set
	tolerate uint64   // bit n: errno n lets the walk go on
	failure  *rawFailure
	fork     uintptr // with a result that is not 0, this many of the calls that follow are passed over
}

// rawFailure is a finished status message in which only the errno is still to be filled in.
type rawFailure struct {
	message unsafe.Pointer
	length  uintptr
	errno   unsafe.Pointer // inside message
}

type rawProgram struct {
	calls  *rawCall
	count  uintptr
	status uintptr // the descriptor that failures are written to
	index  uintptr // of the call that failed
	errno  uintptr // 0 while none has
}

// cloneArgs is struct clone_args of clone3(2), in its size since Linux 5.7.
type cloneArgs struct {
	flags, pidfd, childTid, parentTid, exitSignal, stack, stackSize, tls, setTid, setTidSize, cgroup uint64
}

// cloneAndWalk calls clone3 and returns its raw result in the parent; the child walks p and ends.
func cloneAndWalk(args *cloneArgs, size uintptr, p *rawProgram) (r uintptr)

// walk makes p's calls in the calling thread and ends the process: by a successful execve, or by
// exit_group with 1 after a failure and 0 after the last call.
func walk(p *rawProgram)
