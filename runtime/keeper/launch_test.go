package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// B20, B35.
func TestLaunchLogsAndTellsTheExit(t *testing.T) {
	n := newNode(t)
	w := n.sh("c1", "echo out; echo err >&2; printf unfinished; exit 3")
	p := n.start(w)
	if p.PID <= 0 || p.StartTime == 0 || p.Console != nil {
		t.Errorf("got %+v, want pid and start time", p)
	}
	if e := n.exit("c1"); e.Code != 3 || e.Signal != 0 || time.Since(e.Time) > time.Minute {
		t.Errorf("got %+v, want code 3", e)
	}
	// The exit is told after the last output is in the log.
	if got, want := w.text(t, "stdout"), "out\nunfinished"; got != want {
		t.Errorf("stdout: got %q, want %q", got, want)
	}
	if got, want := w.text(t, "stderr"), "err\n"; got != want {
		t.Errorf("stderr: got %q, want %q", got, want)
	}
	if e, ok, err := n.Exit(n.ctx(), "c1"); !ok || err != nil || e.Code != 3 {
		t.Errorf("asked again: got %+v, %v, %v", e, ok, err)
	}
	if _, err := n.Launch(n.ctx(), n.sh("c1-b", "true").Launch); err != nil {
		t.Error(err)
	}
	if err := n.Forget(n.ctx(), "c1"); err != nil {
		t.Error(err)
	}
	if _, _, err := n.Exit(n.ctx(), "c1"); !errors.Is(err, ErrUnknown) {
		t.Errorf("after forget: got %v, want ErrUnknown", err)
	}
	if err := n.Forget(n.ctx(), "c1"); err != nil {
		t.Errorf("forget again: %v", err)
	}
}

func TestFailedLaunchSaysWhyAndLeavesNothing(t *testing.T) {
	n := newNode(t)
	for how, want := range map[string]string{
		"error":         "mount /proc /proc: no such file or directory",
		"die":           "init: SIGKILL",
		"crash":         `init: exit status 2: "fatal error: out of\x1b memory stack"`,
		"rubbish":       "malformed launch encoding",
		"clone and die": "init: SIGKILL",
	} {
		t.Run(how, func(t *testing.T) {
			for i := range 2 { // the id is free again
				w := n.workload("c1", how, "sleep", "1000")
				if how == "crash" {
					w = n.sh(fmt.Sprintf("crash%d", i), "true")
					w.Plan.Ops[0].Arg = how
				}
				_, err := n.Launch(n.ctx(), w.Launch)
				closeFiles(w.files)
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Fatalf("got %v, want %q", err, want)
				}
				var step *launch.StepError
				if how == "error" && (!errors.As(err, &step) || step.Errno != syscall.ENOENT) {
					t.Fatalf("got %#v, want a StepError with ENOENT", err)
				}
			}
		})
	}
	if children, err := n.List(n.ctx()); err != nil || len(children) != 0 {
		t.Errorf("got %v, %v, want no children", children, err)
	}
	n.noOrphans()
}

// noOrphans: keeper and anchor have no children but the keeper itself.
func (n *node) noOrphans() {
	n.t.Helper()
	h := n.hello()
	n.eventually("end of every orphan", func() bool { return children(h.KeeperPID) == "" && children(h.AnchorPID) == fmt.Sprint(h.KeeperPID) })
}

func children(pid int) string {
	var all []string
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, task := range tasks {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		all = append(all, strings.Fields(string(text))...)
	}
	return strings.Join(all, " ")
}

// B5.
func TestLaunchNobodyWaitsForIsUndone(t *testing.T) {
	n := newNode(t)
	for _, how := range []string{"hang", "exec"} {
		for i := range 20 {
			w := n.workload(fmt.Sprintf("c%d", i), how, "sleep", "1000")
			ctx, cancel := context.WithTimeout(n.ctx(), time.Duration(i)*500*time.Microsecond)
			_, err := n.Launch(ctx, w.Launch)
			cancel()
			closeFiles(w.files)
			if how == "hang" && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want deadline exceeded", err)
			}
			if err == nil {
				n.call(n.ctx(), &wire.Message{Op: wire.OpForget, ID: w.ID, Kill: true}, nil)
			}
		}
	}
	n.eventually("end of all launches", func() bool {
		children, err := n.List(n.ctx())
		return err == nil && len(children) == 0
	})
	n.noOrphans()
}

// B5: a workload that has begun when its launch is given up has started others by then. It leads a session.
func TestLaunchNobodyWaitsForIsUndoneWithWhatItStarted(t *testing.T) {
	n := newNode(t)
	w := n.terminal("c1", wire.KindContainer, `trap "" HUP; sleep 1000 & echo $!; wait`)
	n.start(w)
	child := 0
	n.eventually("a process that it started", func() bool {
		said, _, whole := strings.Cut(w.text(t, "stdout"), "\n")
		child, _ = strconv.Atoi(strings.TrimSpace(said))
		return whole && child > 0
	})
	n.undo("c1")
	n.eventually("the end of both", func() bool {
		children, err := n.List(n.ctx())
		return err == nil && len(children) == 0 && !alive(child)
	})
}

func TestCloneOfInitIsTheChild(t *testing.T) {
	n := newNode(t)
	w := n.sh("c1", "echo $$; exit 5")
	w.Plan.Ops[0].Arg = "clone"
	p := n.start(w)
	if e := n.exit("c1"); e.Code != 5 {
		t.Errorf("got %+v, want code 5", e)
	}
	if got, want := w.text(t, "stdout"), fmt.Sprintln(p.PID); got != want {
		t.Errorf("pid: got %q, want %q", got, want)
	}
	n.noOrphans()
}

func TestExecJoinsItsContainer(t *testing.T) {
	n := newNode(t)
	exec := func(id string) (*workload, *os.File) {
		w := n.workload(id, "show table", "true")
		w.Kind, w.Container, w.JoinIndex = wire.KindExec, "c1", 2
		w.Plan.Fds, w.Table = append(w.Plan.Fds, "container"), append(w.Table, nil)
		r, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		w.Stdout, w.files = out, append(w.files, out)
		return w, r
	}
	refused := func(id string, want error) {
		t.Helper()
		w, _ := exec(id)
		if _, err := n.Launch(n.ctx(), w.Launch); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
		closeFiles(w.files)
	}
	refused("exec-0", ErrUnknown)
	p := n.start(n.workload("c1", "exec", "sleep", "1000"))
	w, r := exec("exec-1")
	n.start(w)
	text, err := io.ReadAll(r)
	if err != nil || !strings.Contains(string(text), fmt.Sprintf("\nPid:\t%d\n", p.PID)) {
		t.Errorf("got table entry %q, %v, want the pidfd of %d", text, err, p.PID)
	}
	if e := n.exit("exec-1"); e.Code != 0 {
		t.Errorf("got %+v, want code 0", e)
	}
	if err := n.Signal(n.ctx(), "c1", unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if e := n.exit("c1"); e.Code != 137 || e.Signal != 9 {
		t.Errorf("got %+v, want 137 by signal 9", e)
	}
	refused("exec-2", ErrState)
}

func TestTableOfMoreThanOneMessageOfDescriptors(t *testing.T) {
	n := newNode(t)
	w := n.workload("c1", "exec", "true")
	for range 600 {
		w.Plan.Fds, w.Table = append(w.Plan.Fds, "more"), append(w.Table, w.Table[0])
	}
	n.start(w)
	if e := n.exit("c1"); e.Code != 0 {
		t.Errorf("got %+v, want code 0", e)
	}
}

func TestStdinEndsWhenClosed(t *testing.T) {
	n := newNode(t)
	w := n.sh("c1", "cat; echo end")
	fifo := n.dir + "/stdin"
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	read, write := n.fifo(w, fifo)
	w.Stdin, w.StdinWrite = read, write
	write.WriteString("hello\n")
	n.start(w)
	n.eventually("the input as output", func() bool { return w.text(t, "stdout") == "hello\n" })
	if err := n.CloseStdin(n.ctx(), "c1"); err != nil {
		t.Fatal(err)
	}
	n.exit("c1")
	if got, want := w.text(t, "stdout"), "hello\nend\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// B40.
func TestTerminal(t *testing.T) {
	n := newNode(t)
	w := n.terminal("c1", wire.KindContainer, "echo out; echo err >&2; test -t 0 && echo terminal; exit 4")
	if p := n.start(w); p.Console != nil {
		t.Error("the terminal of a container went to the daemon")
	}
	if e := n.exit("c1"); e.Code != 4 {
		t.Errorf("got %+v, want code 4", e)
	}
	if got, want := w.text(t, "stdout"), "out\nerr\nterminal\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	p := n.start(n.terminal("exec-1", wire.KindExec, "read x; echo got $x"))
	if p.Console == nil {
		t.Fatal("the terminal of an exec did not come to the daemon")
	}
	defer p.Console.Close()
	p.Console.WriteString("word\n")
	n.exit("exec-1")
	text := make([]byte, 100)
	p.Console.SetReadDeadline(time.Now().Add(10 * time.Second))
	got := ""
	for !strings.Contains(got, "got word") {
		m, err := p.Console.Read(text)
		if err != nil {
			t.Fatalf("got %q, then %v", got, err)
		}
		got += string(text[:m])
	}
}

// B26 for a container: whoever inherited its output doesn't delay its end, and is logged on.
func TestExitDoesNotWaitForWhoInheritedTheOutput(t *testing.T) {
	n := newNode(t)
	w := n.sh("c1", "(sleep 1.5; echo late) & echo early")
	begin := time.Now()
	n.start(w)
	n.exit("c1")
	if took := time.Since(begin); took > time.Second {
		t.Errorf("exit was told after %v", took)
	}
	if got := w.text(t, "stdout"); got != "early\n" {
		t.Errorf("at the exit: got %q", got)
	}
	n.eventually("the late line", func() bool { return w.text(t, "stdout") == "early\nlate\n" })
}

func TestSignalReachesTheGroup(t *testing.T) {
	n := newNode(t)
	w := n.sh("c1", "trap 'echo parent' TERM; sleep 1000 & echo $!; wait; wait")
	w.Plan.Args = append([]string{"busybox", "setsid"}, w.Plan.Args[1:]...)
	n.start(w)
	var pid int
	n.eventually("the pid", func() bool { _, err := fmt.Sscan(w.text(t, "stdout"), &pid); return err == nil })
	// Before its execve the child has the shell's trap.
	n.eventually("sleep", func() bool {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return strings.Contains(string(text), "sleep\x001000") && !strings.Contains(string(text), "trap")
	})
	if err := n.Signal(n.ctx(), "c1", unix.SIGTERM, true); err != nil {
		t.Fatal(err)
	}
	n.exit("c1")
	if alive(pid) {
		t.Error("the child in the same group lives on")
		unix.Kill(pid, unix.SIGKILL)
	}
	if err := n.Signal(n.ctx(), "c1", unix.SIGTERM, false); !errors.Is(err, ErrState) {
		t.Errorf("after the exit: got %v, want ErrState", err)
	}
}
