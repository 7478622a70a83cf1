package image

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// backgroundNice makes unpacking worth a tenth of everything else to the scheduler (sched(7)).
const (
	backgroundNice = 10
	lowestNice     = 19
)

// inBackground gives the calling goroutine, until its end, a thread of its own that yields to others: unpacking would else
// hold the processors for milliseconds at a time while the kubelet waits for a list. The thread ends with the goroutine,
// as its priority can't be had back without CAP_SYS_NICE; the runtime makes no thread from a locked one, so that no other
// inherits it. Without permission nothing is lost but that.
func inBackground() {
	runtime.LockOSThread()
	// 0 is this thread, and the answer is 20 - nice (getpriority(2), C library/kernel differences).
	if now, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, min(20-now+backgroundNice, lowestNice))
	}
}
