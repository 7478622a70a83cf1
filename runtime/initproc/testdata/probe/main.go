// Command probe is the workload of tests that ask what no shell can: it prints one fact about itself.
package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// What is asked is the thread's that was executed.
func init() { runtime.LockOSThread() }

func main() {
	switch os.Args[1] {
	case "keyring": // the session keyring's id and description
		id, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
		if err != nil {
			fmt.Println(err)
			return
		}
		description, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, id)
		fmt.Println(id, description, err)
	case "label": // the SELinux label of a path
		buffer := make([]byte, 256)
		n, err := unix.Lgetxattr(os.Args[2], "security.selinux", buffer)
		fmt.Printf("%q %v\n", bytes.TrimSuffix(buffer[:max(n, 0)], []byte{0}), err) // which a kernel with SELinux appends
	case "slack": // the timer slack as it was at the start, and the one that is the default, in nanoseconds
		now, _ := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
		unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0)
		usual, _ := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
		fmt.Println(now, usual)
	case "session": // process id, session, parent's death signal, dumpable
		sid, _ := unix.Getsid(0)
		dumpable, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		keep, _ := unix.PrctlRetInt(unix.PR_GET_KEEPCAPS, 0, 0, 0, 0)
		fmt.Println(os.Getpid() == sid, dumpable, keep)
	}
}
