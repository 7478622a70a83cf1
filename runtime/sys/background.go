package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// BackgroundNice makes what is done in the background worth a tenth of everything else to the scheduler (sched(7)).
const (
	BackgroundNice = 10
	LowestNice     = 19
)

// The lowest priority that is not idle: class "best effort", level 7, of one thread (ioprio_set(2)). x/sys names none of it.
const (
	ioprioLowest    = 2<<13 | 7
	ioprioOfProcess = 1
)

// Background makes the calling thread, which is to end with its work (OnThread), yield to others: long work would else hold
// the processors for milliseconds at a time while the kubelet waits for a list. The priority goes to processes that the
// thread starts, and can't be had back without CAP_SYS_NICE; the runtime makes no thread from a locked one, so that no other
// inherits it. Without permission nothing is lost but that.
func Background() {
	if nice, err := backgroundNice(); err == nil {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, nice)
	}
}

// backgroundNice is what the calling thread is to have.
func backgroundNice() (int, error) {
	// 0 is this thread, and the answer is 20 - nice (getpriority(2), C library/kernel differences).
	now, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	return min(20-now+BackgroundNice, LowestNice), os.NewSyscallError("getpriority", err)
}

// BackgroundIO makes the disks serve the calling thread after others. Not every I/O
// scheduler knows priorities.
func BackgroundIO() error {
	_, _, errno := unix.RawSyscall(unix.SYS_IOPRIO_SET, ioprioOfProcess, 0, ioprioLowest)
	if errno != 0 {
		return os.NewSyscallError("ioprio_set", errno)
	}
	return nil
}
