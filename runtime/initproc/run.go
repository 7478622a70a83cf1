// Package initproc is podwright-init: it walks a launch plan from the first operation to the last inside a
// container's new namespaces and then becomes the workload. It owns how each operation is done and nothing
// about which are: whatever can be decided was decided before the fork. It may import nothing that slows its
// start (a test holds the list), starts no thread and writes no log: what goes wrong is one StatusError. The daemon
// calls PlanFile: the calls of an exec are listed before there is an init.
// Source: runtime/launch; man pages of the system calls at each operation.
package initproc

import (
	"syscall"
	"unsafe"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/spawn"
)

// runner is the state of one walk.
type runner struct {
	plan *launch.Plan
	root int // the container's root as an O_PATH descriptor; -1 before OpRoot or the join of a mount namespace
	proc int // the keeper's own procfs, opened before any step; -1 when no step writes to it
	at   int // index of the operation being done

	tail   []late // see there
	joined bool   // a PID namespace was joined, so the workload is a clone

	device    uint64   // st_dev of the tmpfs on /dev, 0 before there is one
	null      int      // OpMask's /dev/null, verified; -1 before its first use
	empty     int      // OpMask's empty directory; -1 before its first use
	pidns     int      // table index of the joined PID namespace
	entered   string   // the working directory an earlier OpChdir entered
	permitted uint64   // the capabilities init holds
	userSet   bool     // OpUser is in the tail
	bounded   bool     // OpBounding is in the tail
	propagate uintptr  // of the root, set after the pivot
	rootInfo  fileInfo // of the attached root, for comparison
}

// step does one operation. It gives the path that an error is about where that is not the operation's own.
type step func(r *runner, op *launch.Op) (path string, errno syscall.Errno)

// steps is the whole of what init can do. What comes after OpKeyring mostly adds to the tail.
func steps() [launch.OpReap + 1]step {
	return [...]step{
		launch.OpJoinCgroupV1: joinCgroupV1, launch.OpSetns: setns, launch.OpUnshare: unshare, launch.OpOOMScore: oomScore,
		launch.OpRoot: attachRoot, launch.OpMountFd: mountFd, launch.OpMountNew: mountNew, launch.OpMkdir: mkdir,
		launch.OpSymlink: symlink, launch.OpMknod: mknod, launch.OpMask: mask, launch.OpReadonlyPath: readonlyPath,
		launch.OpMountAttr: mountAttr, launch.OpPivot: pivot, launch.OpConsole: console, launch.OpSetsid: setsid,
		launch.OpKeyring: keyring, launch.OpRlimit: rlimit, launch.OpUmask: umask, launch.OpChdir: chdir,
		launch.OpExecLabel: execLabel, launch.OpUser: user, launch.OpCaps: caps, launch.OpBounding: bounding,
		launch.OpNoNewPrivs: noNewPrivs, launch.OpSeccomp: seccomp, launch.OpExec: execute, launch.OpReap: reap,
	}
}

// Main is init. It ends with the process: as the workload, or with exit code 1 after a StatusError. The caller
// is locked to its thread: namespaces, working directory, mask and credentials belong to the thread, which
// becomes the workload.
func Main(version string) {
	pin()
	call(sysCloseRange, launch.PlanFd, lastFd, closeRangeCloexec)
	encoded, errno := readPlan()
	if errno != 0 {
		hold()
		write(2, "podwright-init "+version+": started by podwright-keeper only\n")
		exit(2)
	}
	plan, err := launch.Decode(spawn.AfterImage(encoded))
	if err != nil || len(plan.Ops) == 0 {
		fail("read plan", "", syscall.EINVAL)
	}
	r := &runner{plan: plan, root: -1, proc: -1, null: -1, empty: -1, pidns: -1}
	if path, errno := r.prepare(); errno != 0 {
		fail("prepare", path, errno)
	}
	table := steps()
	fault(&table)
	for r.at = range plan.Ops {
		op := &plan.Ops[r.at]
		if path, errno := table[op.Code](r, op); errno != 0 {
			if path == "" {
				path = op.Path
			}
			fail(op.Step, path, errno)
		}
	}
	fail("read plan", "", syscall.ENOEXEC) // it ended without OpExec or OpReap
}

// fault is where builds for tests break a step (see the files fault_*.go): what reads isolation back has to notice.
var fault = func(*[launch.OpReap + 1]step) {}

// prepare brings the thread into the state that every plan starts from.
func (r *runner) prepare() (string, syscall.Errno) {
	// A working directory and root of this thread's own: setns(2) refuses a mount namespace to a thread
	// that shares them.
	if _, errno := call(syscall.SYS_UNSHARE, syscall.CLONE_FS); errno != 0 {
		return "", errno
	}
	call(syscall.SYS_UMASK, 0) // modes in the plan are final
	// Nothing that shares a PID namespace with this process may read its memory or descriptors. execve resets it.
	prctl(syscall.PR_SET_DUMPABLE, 0)
	header, data := capHeader(), new([6]uint32)
	if _, errno := call(syscall.SYS_CAPGET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(data))); errno != 0 {
		return "", errno
	}
	r.permitted = uint64(data[1]) | uint64(data[4])<<32
	for i := range r.plan.Ops {
		if code := r.plan.Ops[i].Code; code == launch.OpOOMScore || code == launch.OpExecLabel {
			return "/proc", r.openProc()
		}
	}
	return "", 0
}

// openProc opens the procfs of the keeper's mount namespace while it is certain to be one: a container's
// /proc can be anything (CVE-2019-16884, CVE-2019-19921).
func (r *runner) openProc() (errno syscall.Errno) {
	if r.proc, errno = openat2(workingDir, "/proc", oPath|syscall.O_DIRECTORY, 0, resolveNoSymlinks); errno != 0 {
		return errno
	}
	info, errno := stat(r.proc)
	if errno != 0 {
		return errno
	}
	magic, errno := fsType(r.proc)
	if errno == 0 && (magic != procMagic || info.ino != procRootIno) {
		errno = syscall.EXDEV
	}
	return errno
}

// writeProc writes value to a file of this thread, for example "attr/exec".
func (r *runner) writeProc(file, value string) syscall.Errno {
	fd, errno := openat2(r.proc, file, syscall.O_WRONLY, 0, resolveBeneath|resolveNoMagiclinks|resolveNoXdev)
	if errno != 0 {
		return errno
	}
	defer closeFd(fd)
	return write(fd, value)
}

// fd is the descriptor of the operation's table entry.
func (r *runner) fd(op *launch.Op) int { return launch.FirstFd + op.Fd }

// hold serves the daemon, which makes namespaces around a process: without a plan, and with a pipe for its input, init
// waits for the end of the pipe and ends.
func hold() {
	info, errno := stat(0)
	if errno != 0 || !info.is(syscall.S_IFIFO) {
		return
	}
	buffer := new([64]byte)
	for {
		if n, errno := call(syscall.SYS_READ, 0, uintptr(unsafe.Pointer(buffer)), uintptr(len(buffer))); errno != 0 || n == 0 {
			exit(0)
		}
	}
}

// readPlan reads the plan memfd whole.
func readPlan() ([]byte, syscall.Errno) {
	info := new(syscall.Stat_t)
	if _, errno := call(syscall.SYS_FSTAT, launch.PlanFd, uintptr(unsafe.Pointer(info))); errno != 0 {
		return nil, errno
	}
	if info.Mode&syscall.S_IFMT != syscall.S_IFREG || info.Size == 0 {
		return nil, syscall.EINVAL
	}
	buffer := make([]byte, info.Size)
	for done := 0; done < len(buffer); {
		n, errno := call(syscall.SYS_PREAD64, launch.PlanFd, uintptr(unsafe.Pointer(&buffer[done])), uintptr(len(buffer)-done), uintptr(done))
		if errno != 0 || n == 0 {
			return nil, errno
		}
		done += n
	}
	return buffer, 0
}

// report sends one status message.
func report(s *launch.Status) syscall.Errno { return write(launch.StatusFd, string(s.Encode())) }

// fail says which step failed and ends the process; nothing of the workload ran.
func fail(step, path string, errno syscall.Errno) {
	report(&launch.Status{Kind: launch.StatusError, Step: step, Errno: errno, Path: path})
	exit(1)
}

func exit(code uintptr) {
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, code, 0, 0)
	}
}
