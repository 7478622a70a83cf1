package anchor

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv("ANCHOR_TEST") == "" {
		os.Exit(m.Run())
	}
	// An anchor is a process of its own: it takes descriptors at fixed numbers and reaps all there is.
	starts := 0
	err := Run(slog.New(slog.NewTextHandler(io.Discard, nil)), func(int, []string, []int) (int, int, error) {
		starts++
		return 0, -1, errors.New("no such program")
	}, -1)
	if err == nil || starts < 3 {
		os.Exit(1)
	}
	os.Stdout.WriteString(err.Error())
	os.Exit(0)
}

func TestAnchorGivesUpOnAKeeperThatNeverStarts(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "ANCHOR_TEST=1")
	text, err := cmd.Output()
	if err != nil || !strings.Contains(string(text), "ends as soon as it is started") {
		t.Errorf("got %q, %v, want the reason", text, err)
	}
}

// The bookkeeping of hold and drop: what is replaced or dropped is closed, the rest is kept.
func TestHeldDescriptors(t *testing.T) {
	a := &anchor{log: slog.New(slog.NewTextHandler(io.Discard, nil)), held: map[string]*Held{}}
	fd := func() int {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	isOpen := func(fd int) bool {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		return err == nil
	}
	pidfd, log, stdin, newLog := fd(), fd(), fd(), fd()
	a.handle(&wire.Message{Op: wire.OpHold, ID: "c1", Process: &wire.Process{PID: 7}, Roles: []wire.Role{wire.RolePidfd, wire.RoleLog, wire.RoleStdinWrite}}, []int{pidfd, log, stdin})
	a.handle(&wire.Message{Op: wire.OpHold, ID: "c1", Roles: []wire.Role{wire.RoleLog}}, []int{newLog})
	if isOpen(log) || !isOpen(newLog) {
		t.Error("a reopened log: want the old one closed and the new one held")
	}
	a.handle(&wire.Message{Op: wire.OpDrop, ID: "c1", Role: wire.RoleStdinWrite}, nil)
	if h := a.held["c1"]; isOpen(stdin) || h == nil || h.PID != 7 || len(h.Fds) != 2 {
		t.Errorf("after stdin was dropped: got %+v, want pidfd and log of pid 7", h)
	}
	a.handle(&wire.Message{Op: wire.OpHold, ID: "c1", Process: &wire.Process{}}, nil)
	if h := a.held["c1"]; h.PID != 0 || !isOpen(pidfd) {
		t.Errorf("after it was reaped: got %+v, want no pid and the descriptors", h)
	}
	a.handle(&wire.Message{Op: wire.OpDrop, ID: "c1"}, nil)
	if len(a.held) != 0 || isOpen(pidfd) || isOpen(newLog) {
		t.Errorf("after the last drop: got %+v", a.held)
	}
	a.handle(&wire.Message{Op: wire.OpDrop, ID: "c2"}, nil) // unknown: nothing
}

func TestPeekLeavesTheZombieAndTellsHowItEnded(t *testing.T) {
	for script, want := range map[string]wire.Exit{"exit 3": {Code: 3}, "kill -9 $$": {Code: 137, Signal: 9}, "kill -11 $$": {Code: 139, Signal: 11}} {
		cmd := exec.Command("/bin/sh", "-c", script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var got wire.Exit
		for ok := false; !ok; {
			_, got, ok = Peek(unix.P_PID, cmd.Process.Pid)
		}
		if _, again, ok := Peek(unix.P_PID, cmd.Process.Pid); !ok || again.Code != got.Code {
			t.Errorf("%s: got %+v, %v the second time", script, again, ok)
		}
		if got.Time.IsZero() || got.Code != want.Code || got.Signal != want.Signal {
			t.Errorf("%s: got %+v, want %+v", script, got, want)
		}
		Reap(unix.P_PID, cmd.Process.Pid)
		if _, _, ok := Peek(unix.P_PID, cmd.Process.Pid); ok {
			t.Errorf("%s: still there after Reap", script)
		}
		cmd.Process.Release()
	}
}
