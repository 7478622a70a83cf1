// Package kubelet runs a real kubelet, without an API server, on podwright and looks at its static pods through the
// kubelet's own endpoints.
// It owns the lab: mount, network, UTS, IPC, PID and cgroup namespaces, one directory and one cgroup in each hierarchy,
// which make a small node with everything at its usual place. It reaches podwright through the kubelet; what a kubelet does not
// tell, such as processes, it asks by CRI. PODWRIGHT_BIN is the directory of the binaries to test; the default is bin/.
// Source: k8s.io/kubernetes v1.37, kubelet configuration v1beta1.
package kubelet

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The test binary runs three times, one inside the other: the guard outside, which builds the tools and removes what a
// crash leaves; PID 1 of the lab, which reaps as a machine's init does; the tests.
const (
	roleVariable    = "PODWRIGHT_KUBELET_ROLE"
	workVariable    = "PODWRIGHT_KUBELET_WORK"    // the lab's directory
	programVariable = "PODWRIGHT_KUBELET_PROGRAM" // the kubelet
	pluginsVariable = "PODWRIGHT_KUBELET_PLUGINS" // the directory of CNI plugins
	binVariable     = "PODWRIGHT_BIN"
)

func TestMain(m *testing.M) {
	// Namespaces end with PID 1, and it with its parent: the death signal follows the thread.
	runtime.LockOSThread()
	switch os.Getenv(roleVariable) {
	case "init":
		os.Exit(beInit())
	case "tests":
		code := m.Run()
		if err := endLab(); err != nil {
			fmt.Fprintln(os.Stderr, "--- FAIL: after the whole suite:", err)
			code = 1
		}
		os.Exit(code)
	}
	if os.Geteuid() != 0 || binDir() == "" {
		os.Exit(m.Run()) // every test says what is missing
	}
	code, err := guard()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubelet tests:", err)
		code = 1
	}
	os.Exit(code)
}

// binDir is where the binaries under test are, "" where they are not built.
func binDir() string {
	dir := os.Getenv(binVariable)
	if dir == "" {
		dir = "../../../bin"
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return ""
	}
	if _, err := os.Stat(filepath.Join(dir, "podwright")); err != nil {
		return ""
	}
	return dir
}

// guard makes directory and cgroups, runs the lab and removes both.
func guard() (code int, err error) {
	tools, err := filepath.Abs("../tools")
	if err != nil {
		return 1, err
	}
	get := exec.Command(filepath.Join(tools, "get"), "kubelet", "cni")
	get.Stderr = os.Stderr
	out, err := get.Output()
	built := strings.Fields(string(out))
	if err != nil || len(built) != 2 {
		return 1, fmt.Errorf("build the kubelet and CNI plugins: got %q: %w", built, err)
	}
	work, err := os.MkdirTemp("", "podwright-kubelet-")
	if err != nil {
		return 1, err
	}
	subtree, group := filepath.Join(tools, "cgroup-subtree"), filepath.Base(work)
	defer func() { err = errors.Join(err, run(subtree, "remove", group), os.RemoveAll(work)) }()
	if err := run(subtree, "create", group); err != nil {
		return 1, err
	}
	// Everything is built out here: inside there is no network.
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", filepath.Join(work, "probe"), "../node/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build the probe: %w: %s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	// A cgroup namespace's root is where the process is that makes it.
	cmd := exec.Command("sh", append([]string{"-ec", `"$0" enter "$1" $$; shift
exec unshare --mount --net --uts --ipc --pid --cgroup --fork --kill-child --propagation private "$@"`, subtree, group, self}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), roleVariable+"=init", workVariable+"="+work, programVariable+"="+built[0], pluginsVariable+"="+built[1],
		binVariable+"="+binDir())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// Whoever interrupts the tests ends the lab, and what it left still goes.
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	// Owner: guard; ends with the process.
	go func() {
		<-interrupted
		cmd.Process.Kill()
	}()
	return exitCode(cmd.Wait()), nil
}

// run runs a command whose output matters only if it fails.
func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "kubelet tests:", err)
	return 1
}

// beInit makes the namespaces a node, starts the tests and reaps until they end.
func beInit() int {
	if err := makeNode(os.Getenv(workVariable)); err != nil {
		fmt.Fprintln(os.Stderr, "kubelet tests:", err)
		return 1
	}
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleVariable+"=tests")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "kubelet tests:", err)
		return 1
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err != nil && err != unix.EINTR {
			fmt.Fprintln(os.Stderr, "kubelet tests: wait:", err)
			return 1
		}
		if pid != cmd.Process.Pid {
			continue
		}
		if status.Exited() {
			return status.ExitStatus()
		}
		fmt.Fprintln(os.Stderr, "kubelet tests: ended by", status.Signal())
		return 1
	}
}
