// Package kerneltest supports tests that run against the real kernel: what they need of the machine, a process of
// their own, and the leak oracle that compares what a node is made of before and after.
// It owns nothing outside the test and changes nothing it looks at; only tests may import it.
// Source: proc(5), namespaces(7), cgroups(7).
package kerneltest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Root skips the test where it doesn't run as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("root is missing: namespaces, mounts and cgroups are made")
	}
}

// Kernel skips the test on a kernel before version, "6.15". For calls whose absence can be probed, a probe is better.
func Kernel(t testing.TB, version string) {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(name.Release[:])
	if !atLeast(release, version) {
		t.Skipf("kernel %s is missing: this is %s", version, release)
	}
}

// atLeast compares major and minor of a release such as 6.1.0-18-amd64.
func atLeast(release, version string) bool {
	var haveMajor, haveMinor, wantMajor, wantMinor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &haveMajor, &haveMinor); n != 2 {
		return false
	}
	if n, _ := fmt.Sscanf(version, "%d.%d", &wantMajor, &wantMinor); n != 2 {
		return false
	}
	return haveMajor > wantMajor || haveMajor == wantMajor && haveMinor >= wantMinor
}

// insideVariable names the test that a subprocess was started for.
const insideVariable = "PODWRIGHT_KERNELTEST"

// Subprocess runs fn in a process of its own that cloneFlags (CLONE_NEWNET and the like) gave namespaces of their own;
// mounts are private there, and /proc is the new PID namespace's. fn may leave the process in any state. In the
// subprocess too the test runs up to here, so this is a test's first and last statement.
func Subprocess(t *testing.T, cloneFlags uintptr, fn func(t *testing.T)) {
	t.Helper()
	if os.Getenv(insideVariable) == t.Name() {
		settle(t, cloneFlags)
		fn(t)
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.v", "-test.count=1", "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$")
	cmd.Env = append(os.Environ(), insideVariable+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: cloneFlags, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	switch text := string(out); {
	case err != nil:
		t.Errorf("in the subprocess: %v\n%s", err, text)
	case strings.Contains(text, "\n--- SKIP") || strings.HasPrefix(text, "--- SKIP"):
		t.Skipf("in the subprocess:\n%s", text)
	case !strings.Contains(text, "--- PASS"):
		t.Errorf("the subprocess did not run the test:\n%s", text)
	}
}

func settle(t *testing.T, cloneFlags uintptr) {
	t.Helper()
	if cloneFlags&unix.CLONE_NEWNS == 0 {
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatalf("make mounts private: %v", err)
	}
	if cloneFlags&unix.CLONE_NEWPID != 0 {
		if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
			t.Fatalf("mount /proc: %v", err)
		}
	}
}
