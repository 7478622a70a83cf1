package initproc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/spawn"
	"golang.org/x/sys/unix"
)

// The tests run the real init: a thread of the test process lives in a mount namespace like the keeper's and
// starts init by runtime/spawn, on root file systems made of Debian's static busybox.

var lab struct {
	skip   string // why there is none
	init   int    // sealed memfd with podwright-init
	image  string // busybox, linked into every root file system
	probe  string // testdata/probe, for what busybox can't tell
	keeper chan func()
	tid    int // of the keeper thread
}

const busybox = "/bin/busybox"

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Geteuid() != 0 {
			lab.skip = "needs root"
		} else if _, err := os.Stat(busybox); err != nil {
			lab.skip = "needs " + busybox + " (Debian package busybox-static)"
		} else if dir, err := setUpLab(); err != nil {
			fmt.Fprintln(os.Stderr, "set up:", err)
			return 1
		} else {
			defer os.RemoveAll(dir)
		}
		return m.Run()
	}())
}

func setUpLab() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "podwright-init-test-"); err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "podwright-init")
	lab.probe = filepath.Join(dir, "probe")
	for output, source := range map[string]string{binary: "../../cmd/podwright-init", lab.probe: "./testdata/probe"} {
		flags := "-s -w"
		if output == binary && runtime.GOARCH == "amd64" {
			flags += " " + entryFlag()
		}
		build := exec.Command("go", "build", "-trimpath", "-ldflags="+flags, "-o", output, source)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("%w: %s", err, out)
		}
	}
	if lab.init, err = sealedCopy(binary); err != nil {
		return dir, err
	}
	lab.image = filepath.Join(dir, "busybox")
	content, err := os.ReadFile(busybox)
	if err != nil {
		return dir, err
	}
	if err := os.WriteFile(lab.image, content, 0o755); err != nil {
		return dir, err
	}
	lab.keeper = make(chan func())
	ready := make(chan error)
	go func() { // ends with the process
		runtime.LockOSThread()
		ready <- becomeKeeper(filepath.Join(dir, "keeper"))
		for f := range lab.keeper {
			f()
		}
	}()
	return dir, <-ready
}

// entryFlag is what the Makefile tells the linker about init's entry point, "" for nothing.
func entryFlag() string {
	text, _ := os.ReadFile("../../Makefile")
	return regexp.MustCompile(`-E [\w./-]+`).FindString(string(text))
}

// becomeKeeper gives the calling thread a mount namespace with /proc, /sys and /r only.
func becomeKeeper(root string) error {
	lab.tid = unix.Gettid()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, ""); err != nil {
		return err
	}
	for _, name := range []string{"proc", "sys", launch.RootMountpoint} {
		if err := os.Mkdir(filepath.Join(root, name), 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", filepath.Join(root, "proc"), "proc", 0, ""); err != nil {
		return err
	}
	if err := unix.Mount("sysfs", filepath.Join(root, "sys"), "sysfs", 0, ""); err != nil {
		return err
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}

func sealedCopy(path string) (int, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return -1, err
	}
	return memfd("podwright-init", content)
}

func memfd(name string, content []byte) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, err
	}
	if _, err := unix.Write(fd, content); err != nil {
		return -1, err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	return fd, err
}

// newLab skips without root and checks at the end that nothing of the test is left.
func newLab(t testing.TB) {
	t.Helper()
	if lab.skip != "" {
		t.Skip(lab.skip)
	}
	before := traces(t)
	t.Cleanup(func() {
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil); err != unix.ECHILD {
			t.Errorf("children are left: pid %d, %v", pid, err)
		}
		if after := traces(t); after != before {
			t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
		}
	})
}

// traces is what a test may not change: mounts of the host and the keeper, and open descriptors.
func traces(t testing.TB) string {
	host, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	keeper, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/mountinfo", lab.tid))
	if err != nil {
		t.Fatal(err)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, fd := range fds {
		link, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && !strings.HasPrefix(link, "anon_inode:[event") && !strings.HasPrefix(link, "/proc/") {
			open = append(open, link)
		}
	}
	return string(host) + string(keeper) + strings.Join(open, "\n")
}

// rootfs makes a root file system with busybox and gives its directory.
func rootfs(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "rootfs")
	for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"busybox", "sh", "cat", "ls", "true", "id", "grep", "stat", "readlink", "sleep", "kill", "mkdir", "tty", "head", "test", "echo", "touch", "pwd", "find", "ps"} {
		if err := os.Link(lab.image, filepath.Join(dir, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// detached gives the directory or file path as a detached private mount, as the daemon does.
func detached(t testing.TB, path string) *os.File {
	t.Helper()
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { file.Close() })
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		t.Fatal(err)
	}
	return file
}

// launched is a started init and what became of it.
type launched struct {
	pid, pidfd int // of the workload, or of init where it failed
	init       int // init itself where the workload is its clone
	statuses   []launch.Status
	console    *os.File
	failed     *launch.StepError
	output     *os.File // read end of stdout and stderr
}

// start spawns init with the plan and follows its status to the end.
func start(t testing.TB, plan *launch.Plan, table []*os.File, newPID bool) *launched {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	l := spawnInit(t, plan, table, newPID, pair[1])
	l.follow(t, pair[0])
	return l
}

// spawnInit starts init, which gets status; the caller's copy is closed.
func spawnInit(t testing.TB, plan *launch.Plan, table []*os.File, newPID bool, status int) *launched {
	t.Helper()
	for len(plan.Fds) < len(table) {
		plan.Fds = append(plan.Fds, filepath.Base(table[len(plan.Fds)].Name()))
	}
	planFd, err := memfd("plan", planFile(plan))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(planFd)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	c := &spawn.Command{Exe: lab.init, Argv: []string{"podwright-init"}, Cgroup: -1,
		Fds: []int{int(null.Fd()), int(w.Fd()), int(w.Fd()), planFd, status}}
	for _, f := range table {
		c.Fds = append(c.Fds, int(f.Fd()))
	}
	if newPID {
		c.Flags = unix.CLONE_NEWPID
	}
	l := &launched{output: r}
	done := make(chan error)
	lab.keeper <- func() {
		var err error
		l.pid, l.pidfd, err = spawn.Start(c)
		done <- err
	}
	err = <-done
	unix.Close(status)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// planFile is what a test's init gets.
var planFile = PlanFile

// eachWay runs a test with the calls of its plans listed ahead, where they can be, and with all of them left to Go.
func eachWay(t *testing.T, test func(t *testing.T)) {
	t.Run("ahead", test)
	planFile = (*launch.Plan).Encode
	defer func() { planFile = PlanFile }()
	t.Run("walked", test)
}

// follow reads status messages until the socket closes, as the keeper does.
func (l *launched) follow(t testing.TB, status int) {
	t.Helper()
	next := false
	for {
		body, oob := make([]byte, 16384), make([]byte, 64)
		n, oobn, _, _, err := unix.Recvmsg(status, body, oob, unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		s, err := launch.DecodeStatus(body[:n])
		if err != nil {
			t.Fatal(err)
		}
		l.statuses = append(l.statuses, s)
		switch s.Kind {
		case launch.StatusChild:
			l.leaveInit(t, s.Pid)
		case launch.StatusConsole:
			messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
			fds, err := unix.ParseUnixRights(&messages[0])
			if err != nil || len(fds) != 1 {
				t.Fatal(err, fds)
			}
			l.console = os.NewFile(uintptr(fds[0]), "console")
		case launch.StatusExecNext:
			next = true
		case launch.StatusError:
			l.failed = &launch.StepError{Step: s.Step, Errno: s.Errno, Path: s.Path}
		}
	}
	if l.failed == nil && !next {
		t.Fatalf("init died: %v, output %s", l.statuses, l.finish(t))
	}
}

// leaveInit goes on with the workload that init cloned.
func (l *launched) leaveInit(t testing.TB, workload int) {
	unix.Close(l.pidfd)
	pidfd, err := unix.PidfdOpen(workload, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.init, l.pid, l.pidfd = l.pid, workload, pidfd
}

// finish waits for the end and gives output and exit code (128+signal for a killed one) in one string.
func (l *launched) finish(t testing.TB) string {
	t.Helper()
	watchdog := time.AfterFunc(20*time.Second, func() { unix.PidfdSendSignal(l.pidfd, unix.SIGKILL, nil, 0) })
	defer watchdog.Stop()
	text, _ := io.ReadAll(l.output)
	l.output.Close()
	var status unix.WaitStatus
	if _, err := unix.Wait4(l.pid, &status, unix.WALL, nil); err != nil {
		t.Fatal(err)
	}
	if l.init != 0 {
		var status unix.WaitStatus
		if _, err := unix.Wait4(l.init, &status, 0, nil); err != nil || status != 0 {
			t.Errorf("init: %v, status %#x", err, status)
		}
	}
	unix.Close(l.pidfd)
	if l.console != nil {
		l.console.Close()
	}
	code := status.ExitStatus()
	if status.Signaled() {
		code = 128 + int(status.Signal())
	}
	return string(text) + "exit " + strconv.Itoa(code)
}

// must runs the plan to its end and compares all it said.
func must(t testing.TB, plan *launch.Plan, table []*os.File, want string) {
	t.Helper()
	l := start(t, plan, table, true)
	got := l.finish(t)
	if l.failed != nil {
		t.Fatalf("step failed: %v", l.failed)
	}
	if got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// mustFail runs a plan that fails at a step, and compares which, why and where.
func mustFail(t testing.TB, plan *launch.Plan, table []*os.File, step string, errno syscall.Errno, path string) {
	t.Helper()
	l := start(t, plan, table, true)
	if got := l.finish(t); got != "exit 1" {
		t.Errorf("got %q, want nothing and exit 1", got)
	}
	want := launch.StepError{Step: step, Errno: errno, Path: path}
	if l.failed == nil || *l.failed != want {
		t.Errorf("got %+v, want %+v", l.failed, want)
	}
	if l.failed != nil && !errors.Is(l.failed, errno) {
		t.Errorf("%v is not %v", l.failed, errno)
	}
}

// masks encodes capability sets as a plan holds them.
func masks(sets ...uint64) []byte {
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, sets)
	return b.Bytes()
}
