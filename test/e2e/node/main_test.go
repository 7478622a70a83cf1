// Package node tests podwright from the outside: a daemon with keeper and init on a node of the test's own, spoken to
// through the CRI socket only, and looked at afterwards by the leak oracle.
// It owns a mount, network, UTS, IPC and PID namespace, one temporary directory and one cgroup in each hierarchy, and
// ends nothing it did not start. PODWRIGHT_BIN is the directory of the binaries to test; the default is bin/.
// Source: k8s.io/cri-api v1, docs/behaviours.md (B numbers).
package node

import (
	"errors"
	"fmt"
	"io/fs"
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

// The test binary runs three times, one inside the other: the guard outside, which removes what a crash leaves; PID 1
// of the new namespaces, which reaps what loses its parent as a machine's init does; the tests.
const (
	roleVariable  = "PODWRIGHT_NODE_ROLE"
	workVariable  = "PODWRIGHT_NODE_WORK"  // the temporary directory
	groupVariable = "PODWRIGHT_NODE_GROUP" // the cgroup
)

func TestMain(m *testing.M) {
	// PID namespaces end with PID 1, and it with its parent: the death signal follows the thread.
	runtime.LockOSThread()
	switch os.Getenv(roleVariable) {
	case "init":
		os.Exit(beInit())
	case "tests":
		code := m.Run()
		if err := endShared(); err != nil {
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
		fmt.Fprintln(os.Stderr, "node tests:", err)
		code = 1
	}
	os.Exit(code)
}

// binDir is where the binaries under test are, "" where they are not built.
func binDir() string {
	dir := os.Getenv("PODWRIGHT_BIN")
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

func guard() (code int, err error) {
	work, err := os.MkdirTemp("", "podwright-node-")
	if err != nil {
		return 1, err
	}
	restore, err := allowWhatTestsDo()
	if err != nil {
		return 1, err
	}
	defer restore()
	group := fmt.Sprintf("podwright-node-%d", os.Getpid())
	crictl, err := findCrictl()
	if err != nil {
		fmt.Fprintln(os.Stderr, "node tests: no crictl:", err)
	}
	cmd := again("init")
	cmd.Env = append(cmd.Env, workVariable+"="+work, groupVariable+"="+group, crictlVariable+"="+crictl)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	// Whoever interrupts the tests ends the node, and what it left still goes.
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
	if err := cmd.Start(); err != nil {
		return 1, errors.Join(err, os.RemoveAll(work))
	}
	// Owner: guard; ends with the process.
	go func() {
		<-interrupted
		cmd.Process.Kill()
	}()
	code = exitCode(cmd.Wait())
	return code, errors.Join(removeGroups(group), os.RemoveAll(work))
}

// again is this program in another role, with its arguments and output.
func again(role string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role, "PODWRIGHT_BIN="+binDir())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "node tests:", err)
	return 1
}

// beInit makes the namespaces a node, starts the tests and reaps until they end.
func beInit() int {
	if err := makeNode(); err != nil {
		fmt.Fprintln(os.Stderr, "node tests:", err)
		return 1
	}
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
	cmd := again("tests")
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "node tests:", err)
		return 1
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err != nil && err != unix.EINTR {
			fmt.Fprintln(os.Stderr, "node tests: wait:", err)
			return 1
		}
		if pid != cmd.Process.Pid {
			continue
		}
		if status.Exited() {
			return status.ExitStatus()
		}
		fmt.Fprintln(os.Stderr, "node tests: ended by", status.Signal())
		return 1
	}
}

func makeNode() error {
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		// As systemd has it, in a peer group of the node's own.
		{"", "/", "", unix.MS_REC | unix.MS_SHARED},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.source, m.target, err)
		}
	}
	if err := unix.Sethostname([]byte("lab")); err != nil {
		return err
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
}

// removeGroups removes the cgroup of a run and what is below it, everywhere.
func removeGroups(group string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if len(fields) < 5 || !strings.HasPrefix(after, "cgroup") {
			continue
		}
		var dirs []string
		filepath.WalkDir(filepath.Join(fields[4], group), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := os.Remove(dirs[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
