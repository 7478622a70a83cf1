package namespace

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// insideEnv marks the copy of the test binary that runs in namespaces of its own.
const insideEnv = "PODWRIGHT_NAMESPACE_TEST_INSIDE"

// TestMain runs the tests in a mount and a network namespace of their own with an
// empty /run: nothing reaches the machine, and nothing of it is counted as a leak.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run()) // the grammar needs no root; what does need it skips
	}
	if os.Getenv(insideEnv) == "" {
		os.Exit(runInside())
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		fmt.Fprintln(os.Stderr, "mount a private /run:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func runInside() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// Unshareflags, not Cloneflags: Go makes the whole tree private before exec.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "re-execute the tests in namespaces of their own:", err)
		return 1
	}
	return 0
}

func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Getenv(insideEnv) == "" {
		tb.Skip("needs root: makes and mounts namespaces")
	}
}
