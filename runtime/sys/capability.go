package sys

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// RaiseCapabilities takes into effect all capabilities that the calling thread is permitted (capabilities(7)): a change
// of user takes them out of it. The caller is locked to the thread.
func RaiseCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	for i := range sets {
		sets[i].Effective = sets[i].Permitted
	}
	return os.NewSyscallError("capset", unix.Capset(&header, &sets[0]))
}

// LimitBounding takes all capabilities but those from the bounding set of the calling thread, and so from every program that
// it executes (capabilities(7)). The caller is locked to the thread.
func LimitBounding(keep ...int) error {
	for capability := 0; capability < 64; capability++ {
		if slices.Contains(keep, capability) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(capability), 0, 0, 0)
		if err == unix.EINVAL { // beyond the kernel's last
			return nil
		}
		if err != nil {
			return os.NewSyscallError("prctl", err)
		}
	}
	return nil
}
