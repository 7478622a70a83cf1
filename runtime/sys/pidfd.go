package sys

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// ProcessExiting is PF_EXITING of the process flags in proc_pid_stat(5) (include/linux/sched.h): it is on its way out and
// runs no more code of its own.
const ProcessExiting = 0x4

// SignalPid sends sig to the process that has pid now. It goes through a pidfd
// so that the signal reaches the process that was looked up or nobody; that the
// pid still means the same process is the caller's to ensure (a frozen cgroup,
// or a look at the cgroup after the call). ESRCH counts as an error.
func SignalPid(pid int, sig unix.Signal) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		return fmt.Errorf("pidfd_send_signal %d: %w", pid, err)
	}
	return nil
}
