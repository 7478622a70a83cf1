package podsandbox

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestParseMemberReadsHostileNames(t *testing.T) {
	line := "42 (a) R 1 (b) S 7 9 11 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 1\n"
	got, err := parseMember(line)
	want := member{pid: 42, parent: 7, session: 11, start: 12345, state: 'S'}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if leaving, err := parseMember(strings.Replace(line, "4194560", "4194564", 1)); err != nil || !leaving.exiting {
		t.Errorf("with PF_EXITING: got %+v, %v, want it exiting", leaving, err)
	}
	for _, bad := range []string{"", "42", "42 (x", "42 (x) S 1", "x (y) S a b c d e f g h i j k l m n o p q r s t"} {
		if p, err := parseMember(bad); err == nil {
			t.Errorf("%q: got %+v, want an error", bad, p)
		}
	}
}

func FuzzParseMember(f *testing.F) {
	f.Add("42 (a) S 7 9 11 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 1")
	f.Fuzz(func(t *testing.T, line string) { parseMember(line) })
}

// The tree of a command is its session and all their descendants, whoever else lives in the group.
func TestTreeOfFindsTheSessionAndLeavesOthers(t *testing.T) {
	command := exec.Command("/bin/sh", "-c", "sleep 100 & sleep 100 & wait")
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	other := exec.Command("/bin/sleep", "100")
	for _, c := range []*exec.Cmd{command, other} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		defer c.Wait()
		defer c.Process.Kill()
	}
	all := func() []int {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			t.Fatal(err)
		}
		var pids []int
		for _, e := range entries {
			pid := 0
			for _, c := range e.Name() {
				if c < '0' || c > '9' {
					pid = 0
					break
				}
				pid = pid*10 + int(c-'0')
			}
			if pid > 0 {
				pids = append(pids, pid)
			}
		}
		return pids
	}
	deadline := time.Now().Add(5 * time.Second)
	var tree []member
	for len(tree) != 3 && time.Now().Before(deadline) {
		tree = treeOf(command.Process.Pid, all())
	}
	if len(tree) != 3 {
		t.Fatalf("got %v, want the shell and its two children", tree)
	}
	for _, p := range tree {
		if p.pid == other.Process.Pid {
			t.Errorf("the tree holds %d, which is nobody's child", p.pid)
		}
		p.kill()
	}
	for len(treeOf(command.Process.Pid, all())) > 0 {
		if time.Now().After(deadline) {
			t.Fatal("the tree is still there after its kill")
		}
	}
	if p, err := readMember(other.Process.Pid); err != nil || p.state == 'Z' {
		t.Errorf("the process outside the tree was killed: %+v, %v", p, err)
	}
}
