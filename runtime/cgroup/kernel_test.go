package cgroup

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A test binary that is started with childRole set plays that part and exits.
const childRole = "PODWRIGHT_CGROUP_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childRole) {
	case "":
		os.Exit(m.Run())
	case "allocate":
		fmt.Println(len(touch(512 << 20)))
	case "hold":
		held := touch(64 << 20)
		time.Sleep(time.Minute)
		fmt.Println(len(held))
	case "spin":
		for begin := time.Now(); time.Since(begin) < 30*time.Second; {
		}
	}
	os.Exit(0)
}

// touch allocates bytes and writes to every page of them.
func touch(bytes int) []byte {
	held := make([]byte, bytes)
	for i := 0; i < bytes; i += 4096 {
		held[i] = 1
	}
	return held
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make cgroups")
	}
}

// newManager is the machine's own tree.
func newManager(t *testing.T) *Manager {
	t.Helper()
	needRoot(t)
	m, err := New(Config{})
	if err != nil {
		t.Skipf("no cgroup tree here: %v", err)
	}
	return m
}

// unifiedManager is a v2 tree: the machine's own or, on a hybrid machine, the
// controller-less one beside v1, which has all of the core (kill, freeze, BPF).
func unifiedManager(t *testing.T) *Manager {
	t.Helper()
	m := newManager(t)
	if m.version == 2 {
		return m
	}
	m, err := New(Config{Root: "/sys/fs/cgroup/unified"})
	if err != nil || m.version != 2 {
		t.Skipf("no cgroup2 is mounted: %v", err)
	}
	return m
}

// patience is for what takes milliseconds, on a machine that is emulated and shared.
const patience = 2 * time.Minute

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// groupName is a path of this test's own at the root. When the test ends what is
// in it is killed, it is removed, and nothing may be left in any hierarchy.
func groupName(t *testing.T, m *Manager) string {
	t.Helper()
	name := strings.Map(func(r rune) rune {
		if r == '/' || r == ' ' {
			return '-'
		}
		return r
	}, t.Name())
	path := fmt.Sprintf("/podwright-test-%d-%s", os.Getpid(), name)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := m.Kill(ctx, path); err != nil {
			t.Errorf("clean up: %v", err)
		}
		if err := m.Remove(ctx, path); err != nil {
			t.Errorf("clean up: %v", err)
		}
		names, err := m.List("/")
		if err != nil {
			t.Errorf("clean up: %v", err)
		}
		for _, n := range names {
			if "/"+n == path {
				t.Errorf("%s is still there", path)
			}
		}
	})
	return path
}

// join starts a shell that joins the group as a container's child does (v1: "0"
// into every tasks file; v2: CLONE_INTO_CGROUP), then runs script. The returned
// reader gives its output.
func join(t *testing.T, m *Manager, path, script string, env ...string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	h, err := m.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	var fds []string
	for i := range h.Tasks {
		fds = append(fds, fmt.Sprint(3+i))
	}
	cmd := exec.Command("/bin/sh", "-c",
		`for fd in `+strings.Join(fds, " ")+`; do echo 0 > /dev/fd/$fd || exit 99; done; `+script)
	cmd.ExtraFiles = h.Tasks
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	if h.Dir != nil {
		cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: int(h.Dir.Fd())}
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, bufio.NewReader(out)
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for begin := time.Now(); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > patience {
			t.Fatalf("after %v still not: %s", patience, what)
		}
	}
}

func needLine(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	line, err := r.ReadString('\n')
	if strings.TrimSpace(line) != want {
		t.Fatalf("child said %q (%v), want %q", line, err, want)
	}
}

func readFile(t *testing.T, m *Manager, controller, path, file string) string {
	t.Helper()
	dir, ok := m.controllerDir(controller, path)
	if !ok {
		t.Fatalf("no controller %s", controller)
	}
	text, err := readTrimmed(dir + "/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
