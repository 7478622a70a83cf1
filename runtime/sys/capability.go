package sys

import (
	"os"

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
