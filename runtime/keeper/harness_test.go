package keeper

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/spawn"
	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// keeperBinary is the real program, built once for all tests of this package; initBinary is this one (fakeInit).
var keeperBinary, initBinary string

func TestMain(m *testing.M) {
	switch os.Args[0] {
	case "podwright-init":
		fakeInit()
	case "socket-client":
		os.Exit(unprivilegedClient())
	}
	dir, err := os.MkdirTemp("", "keeper-test-")
	if err != nil {
		panic(err)
	}
	keeperBinary, initBinary = filepath.Join(dir, "podwright-keeper"), filepath.Join(dir, "podwright-init")
	for _, args := range [][]string{
		{"build", "-o", keeperBinary, "github.com/podwright/podwright/cmd/podwright-keeper"},
		// Static, whatever these tests are: the race detector's programs look for their interpreter, and the keeper sees no
		// file of the host's.
		{"test", "-c", "-o", initBinary, "."},
	} {
		build := exec.Command("go", args...)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// fakeInit stands in for podwright-init, so that these tests decide what it reports: it does what the Arg of the
// plan's only operation says. The file to execute is table entry 0, and 1 the host's root, which the keeper hasn't.
func fakeInit() {
	text, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(launch.PlanFd))
	if err != nil {
		os.Exit(90)
	}
	plan, err := launch.Decode(spawn.AfterImage(text))
	if err != nil {
		os.Exit(91)
	}
	unix.CloseOnExec(launch.PlanFd)
	unix.CloseOnExec(launch.StatusFd)
	for i := range plan.Fds {
		unix.CloseOnExec(launch.FirstFd + i)
	}
	report := func(s launch.Status, rights ...int) {
		var oob []byte
		if len(rights) > 0 {
			oob = unix.UnixRights(rights...)
		}
		if err := unix.Sendmsg(launch.StatusFd, s.Encode(), oob, nil, unix.MSG_NOSIGNAL); err != nil {
			os.Exit(92)
		}
	}
	exe := "/proc/self/fd/" + strconv.Itoa(launch.FirstFd)
	if unix.Fchdir(launch.FirstFd+1) != nil || unix.Chroot(".") != nil {
		os.Exit(96)
	}
	switch plan.Ops[0].Arg {
	case "error":
		report(launch.Status{Kind: launch.StatusError, Step: "mount /proc", Errno: syscall.ENOENT, Path: "/proc"})
		os.Exit(1)
	case "die":
		unix.Kill(os.Getpid(), unix.SIGKILL)
	case "crash":
		os.Stderr.WriteString("fatal error: out of\x1b memory\n\n\tstack")
		os.Exit(2)
	case "rubbish":
		unix.Write(launch.StatusFd, []byte("rubbish"))
	case "hang":
		time.Sleep(time.Hour)
	case "clone", "clone and die":
		report(launch.Status{Kind: launch.StatusChild, Pid: fakeClone(exe, plan)})
		os.Exit(0)
	case "clone, unnamed": // it was killed before it could say so
		attr := &syscall.ProcAttr{Env: plan.Env, Files: []uintptr{0, 1, 2, 0, launch.StatusFd}, Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_PARENT}}
		if _, err := syscall.ForkExec(exe, plan.Args, attr); err != nil {
			os.Exit(93)
		}
		unix.Kill(os.Getpid(), unix.SIGKILL)
	case "forge": // what a container can do that took the socket from init's clone
		victim, _ := strconv.Atoi(plan.Args[len(plan.Args)-1])
		report(launch.Status{Kind: launch.StatusChild, Pid: victim})
		os.Exit(1)
	case "show table":
		text, _ := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(launch.FirstFd+2))
		os.Stdout.Write(text)
	case "terminal":
		unix.Setsid()
		fd, _, e := unix.Syscall(unix.SYS_IOCTL, launch.FirstFd+2, unix.TIOCGPTPEER, unix.O_RDWR)
		if e != 0 {
			os.Exit(94)
		}
		slave := int(fd)
		unix.IoctlSetInt(slave, unix.TIOCSCTTY, 0)
		report(launch.Status{Kind: launch.StatusConsole}, launch.FirstFd+2)
		for fd := range 3 {
			unix.Dup3(slave, fd, 0)
		}
		unix.CloseOnExec(slave)
	}
	report(launch.Status{Kind: launch.StatusExecNext})
	unix.Exec(exe, plan.Args, plan.Env)
	os.Exit(95)
}

// fakeClone starts the workload as a sibling, and gives its pid.
func fakeClone(exe string, plan *launch.Plan) int {
	args, files := plan.Args, []uintptr{0, 1, 2}
	if plan.Ops[0].Arg == "clone" { // its last word before the workload is its own
		script := fmt.Sprintf(`printf '%s' >&%d || exit 1; exec %d>&-; exec /bin/busybox "$@"`, execNext(), launch.StatusFd, launch.StatusFd)
		args, files = append([]string{"busybox", "sh", "-c", script}, args...), append(files, 0, launch.StatusFd)
	}
	attr := &syscall.ProcAttr{Env: plan.Env, Files: files, Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_PARENT}}
	pid, err := syscall.ForkExec(exe, args, attr)
	if err != nil {
		os.Exit(93)
	}
	return pid
}

// execNext is the message as printf(1) writes it.
func execNext() string {
	var frame strings.Builder
	for _, b := range (&launch.Status{Kind: launch.StatusExecNext}).Encode() {
		fmt.Fprintf(&frame, "\\%03o", b)
	}
	return frame.String()
}

// node is a keeper of the test's own with its client.
type node struct {
	t      testing.TB
	dir    string
	config Config
	*Client
	anchorPID int

	mu    sync.Mutex
	exits map[string][]wire.Exit
}

func newNode(t testing.TB) *node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: the keeper makes mount namespaces and checks for uid 0")
	}
	n := &node{t: t, dir: t.TempDir(), exits: map[string][]wire.Exit{}}
	log, err := os.OpenFile(filepath.Join(n.dir, "keeper.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	n.config = Config{RunDir: filepath.Join(n.dir, "run"), KeeperBinary: keeperBinary, InitBinary: initBinary, Log: log}
	n.config.OnExit = func(id string, e wire.Exit) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.exits[id] = append(n.exits[id], e)
	}
	t.Cleanup(func() {
		log.Close()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("keeper's log:\n%s", text)
		}
	})
	n.connect()
	t.Cleanup(n.end)
	return n
}

func (n *node) connect() {
	n.t.Helper()
	var err error
	if n.Client, err = Connect(n.ctx(), n.config); err != nil {
		n.t.Fatal(err)
	}
	n.anchorPID = n.hello().AnchorPID
}

// end kills what runs and verifies that nothing is left.
func (n *node) end() {
	n.t.Helper()
	n.waitConnected()
	hello := n.hello()
	defer func() {
		if n.t.Failed() {
			unix.Kill(hello.AnchorPID, unix.SIGSTOP) // or it would start another
			unix.Kill(hello.KeeperPID, unix.SIGKILL)
			unix.Kill(hello.AnchorPID, unix.SIGKILL)
		}
	}()
	children, err := n.List(n.ctx())
	if err != nil {
		n.t.Error(err)
	}
	for _, c := range children {
		n.call(n.ctx(), &wire.Message{Op: wire.OpForget, ID: c.ID, Kill: true}, nil)
	}
	// Refused until the last launch that was cut short has ended, which List doesn't show.
	n.eventually("shutdown", func() bool { err := n.Shutdown(n.ctx()); return err == nil })
	for _, sub := range []string{wire.ExitsDir, wire.ChildrenDir} {
		if files, _ := os.ReadDir(filepath.Join(n.config.RunDir, sub)); len(files) > 0 {
			n.t.Errorf("left in %s: %v", sub, files)
		}
	}
	n.Client.Close()
	n.eventually("end of keeper and anchor", func() bool {
		n.anchorFate()
		return !alive(hello.KeeperPID) && !alive(hello.AnchorPID)
	})
}

// patience is for what takes milliseconds, on a machine that is emulated and shared.
const patience = 2 * time.Minute

func (n *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	n.t.Cleanup(cancel)
	return ctx
}

func (n *node) hello() wire.Hello {
	n.t.Helper()
	h, err := n.Hello(n.ctx())
	if err != nil {
		n.t.Fatal(err)
	}
	return h
}

func (n *node) waitConnected() { n.t.Helper(); n.eventually("a connection", n.Connected) }

func (n *node) eventually(what string, f func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("no %s within %s", what, patience)
		}
	}
}

func (n *node) exit(id string) wire.Exit {
	n.t.Helper()
	n.eventually("exit of "+id, func() bool { n.mu.Lock(); defer n.mu.Unlock(); return len(n.exits[id]) > 0 })
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.exits[id][0]
}

// kill ends a keeper or anchor of this node as the OOM killer would, and waits for the client to notice.
func (n *node) killKeeper() {
	n.t.Helper()
	before := n.hello()
	unix.Kill(before.KeeperPID, unix.SIGKILL)
	n.waitOther(before)
}

// waitOther waits for a keeper after one that was killed; the connection may take a moment to show it.
func (n *node) waitOther(before wire.Hello) {
	n.t.Helper()
	n.eventually("another keeper", func() bool {
		h, err := n.Hello(n.ctx())
		return err == nil && h.KeeperPID != before.KeeperPID && n.Connected()
	})
}

// workload is what a test launches: busybox with args, started in the way init is told.
type workload struct {
	Launch
	files   []*os.File
	log     string
	fifos   [2]string
	torn    int // lines cut off by the death of a keeper, of which mayTear are no error
	mayTear int
}

func (n *node) workload(id, how string, args ...string) *workload {
	n.t.Helper()
	exe, err := os.Open("/bin/busybox")
	if err != nil {
		n.t.Skipf("needs busybox-static: %v", err)
	}
	root, err := os.Open("/")
	if err != nil {
		n.t.Fatal(err)
	}
	plan := &launch.Plan{Fds: []string{"exe", "root"}, Args: append([]string{"busybox"}, args...), Ops: []launch.Op{{Code: launch.OpExec, Step: "exec", Arg: how, Fd: -1}}}
	w := &workload{Launch: Launch{ID: id, Kind: wire.KindContainer, Plan: plan, JoinIndex: -1, Table: []*os.File{exe, root}}, files: []*os.File{exe, root}}
	return w
}

// sh is a shell script whose output is logged.
func (n *node) sh(id, script string) *workload {
	n.t.Helper()
	w := n.workload(id, "exec", "sh", "-c", script)
	w.log = filepath.Join(n.dir, id+".log")
	w.Log = n.open(w, w.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND)
	for i, name := range []string{"stdout", "stderr"} {
		w.fifos[i] = filepath.Join(n.dir, id+"."+name)
		if err := unix.Mkfifo(w.fifos[i], 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
	w.StdoutRead, w.Stdout = n.fifo(w, w.fifos[0])
	w.StderrRead, w.Stderr = n.fifo(w, w.fifos[1])
	return w
}

// terminal is a shell script on a terminal of its own.
func (n *node) terminal(id string, kind wire.Kind, script string) *workload {
	n.t.Helper()
	w := n.sh(id, script)
	w.Plan.Ops[0].Arg, w.Terminal, w.Kind = "terminal", true, kind
	w.Stdout, w.Stderr, w.StdoutRead, w.StderrRead = nil, nil, nil, nil
	master := n.open(w, "/dev/ptmx", os.O_RDWR|unix.O_NOCTTY)
	raw, _ := master.SyscallConn()
	raw.Control(func(fd uintptr) { unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0) })
	w.Plan.Fds, w.Table = append(w.Plan.Fds, "ptmx"), append(w.Table, master)
	return w
}

func (n *node) fifo(w *workload, path string) (read, write *os.File) {
	n.t.Helper()
	return n.open(w, path, os.O_RDONLY|unix.O_NONBLOCK), n.open(w, path, os.O_WRONLY)
}

func (n *node) open(w *workload, path string, flags int) *os.File {
	n.t.Helper()
	f, err := os.OpenFile(path, flags, 0o640)
	if err != nil {
		n.t.Fatal(err)
	}
	w.files = append(w.files, f)
	return f
}

func (n *node) start(w *workload) Process {
	n.t.Helper()
	defer closeFiles(w.files)
	p, err := n.Launch(n.ctx(), w.Launch)
	if err != nil {
		n.t.Fatalf("launch %s: %v", w.ID, err)
	}
	return p
}

// text is what was logged of a stream, chunks joined.
func (w *workload) text(t *testing.T, stream string) string {
	t.Helper()
	w.torn = 0
	raw, err := os.ReadFile(w.log)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(raw)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(fields) != 4 || fields[2] != "F" && fields[2] != "P" {
			if w.torn++; w.torn > w.mayTear {
				t.Fatalf("%s: bad line %q", w.log, line)
			}
			continue
		}
		if _, err := time.Parse(time.RFC3339Nano, fields[0]); err != nil {
			t.Fatal(err)
		}
		if fields[1] == stream {
			out.WriteString(fields[3])
			if fields[2] == "F" {
				out.WriteByte('\n')
			}
		}
	}
	return out.String()
}

// alive: zombies are not.
func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	rest := string(text[strings.LastIndexByte(string(text), ')')+1:])
	return !strings.HasPrefix(rest, " Z") && !strings.HasPrefix(rest, " X")
}
