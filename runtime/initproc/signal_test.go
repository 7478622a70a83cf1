package initproc

import (
	"syscall"
	"testing"
	"unsafe"
)

// ignoreSignal sets SIG_IGN by the raw call: os/signal has its own idea of real-time signals.
func ignoreSignal(t *testing.T, signal uintptr) [4]uint64 {
	action, old := [4]uint64{1}, [4]uint64{}
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, signal, uintptr(unsafe.Pointer(&action)), uintptr(unsafe.Pointer(&old)), 8, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	return old
}

func restoreSignal(signal uintptr, old [4]uint64) {
	syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, signal, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
}
