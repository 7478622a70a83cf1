package spawn

// rawCall and rawProgram are what the assembly reads: its offsets are written out there. Addresses are numbers: a
// program may be made for another process's memory (see Image), and what those of its own point to is kept by Program.
type rawCall struct {
	nr       uintptr
	args     [6]uintptr
	store    uintptr // where the result is written; 0 for nowhere
	tolerate uint64  // bit n: errno n lets the walk go on
	failure  uintptr // of a rawFailure
	skip     uintptr // with a result that is not 0, this many of the calls that follow are passed over
	miss     uintptr // after a tolerated failure, this many are
}

// rawFailure is a finished status message in which only the errno is still to be filled in.
type rawFailure struct {
	message uintptr
	length  uintptr
	errno   uintptr // inside message
}

type rawProgram struct {
	calls  uintptr
	count  uintptr
	status uintptr // the descriptor that failures are written to
	index  uintptr // of the call that failed
	errno  uintptr // 0 while none has
}

// Numbers of what is no system call.
const (
	giveUp = ^uintptr(0) - iota // fails with the errno kept from tolerated failures of executions
	value                       // its result is its first argument
	expect                      // fails with errno args[3] unless the word at address args[0], masked with args[1], is args[2]
)

// cloneArgs is struct clone_args of clone3(2), in its size since Linux 5.7.
type cloneArgs struct {
	flags, pidfd, childTid, parentTid, exitSignal, stack, stackSize, tls, setTid, setTidSize, cgroup uint64
}

// cloneAndWalk calls clone3 and returns its raw result in the parent; the child walks p and ends.
func cloneAndWalk(args *cloneArgs, size uintptr, p *rawProgram) (r uintptr)

// walk makes p's calls in the calling thread and ends the process: by a successful execve, or by
// exit_group with 1 after a failure and 0 after the last call.
func walk(p *rawProgram)
