package podsandbox

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
	"github.com/podwright/podwright/runtime/wire"
)

// killTree ends a command that was executed in a container, and everything it started, but nothing else in the
// container: the members of its session (it leads one of its own) and all their descendants. It returns when they
// are gone and the command is reaped, or after killDeadline (a process stuck in the kernel).
func (m *execManager) killTree(group string, leader wire.Process, reaped <-chan wire.Exit) {
	deadline := time.Now().Add(killDeadline)
	// The kernel needs a moment to end them; nothing tells when.
	for pause := 2 * time.Millisecond; time.Now().Before(deadline); pause = min(2*pause, 100*time.Millisecond) {
		pids, err := m.cfg.Cgroups.Pids(group)
		if err != nil {
			break
		}
		victims := treeOf(leader.PID, pids)
		if len(victims) == 0 {
			break
		}
		for _, p := range victims {
			p.kill()
		}
		time.Sleep(pause)
	}
	select {
	case <-reaped:
	case <-time.After(time.Until(deadline)):
	}
}

// stuckPatience is how long the caller of a command that was killed waits for its end.
const stuckPatience = 2 * time.Second

// killTreeFor does so for a caller, who waits no longer than stuckPatience: a command that is stuck in the kernel must not
// take its call's deadline with it.
func (m *execManager) killTreeFor(group string, leader wire.Process, reaped <-chan wire.Exit) {
	gone := make(chan struct{})
	m.exits.Add(1)
	// Owner: core; ends by killDeadline; Shutdown waits for it.
	go func() {
		defer m.exits.Done()
		m.killTree(group, leader, reaped)
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(stuckPatience):
	}
}

// member is one process as /proc/<pid>/stat shows it (proc_pid_stat(5)).
type member struct {
	pid, parent, session int
	start                uint64
	state                byte
	exiting              bool // it is on its way out and runs no more code of its own
}

// treeOf finds the living processes of leader's session and their descendants among pids.
func treeOf(leader int, pids []int) []member {
	all := map[int]member{}
	for _, pid := range pids {
		if p, err := readMember(pid); err == nil && p.state != 'Z' {
			all[pid] = p
		}
	}
	var tree []member
	for _, p := range all {
		for at, hops := p, 0; hops <= len(all); hops++ {
			if at.session == leader || at.pid == leader {
				tree = append(tree, p)
				break
			}
			next, ok := all[at.parent]
			if !ok {
				break
			}
			at = next
		}
	}
	return tree
}

func readMember(pid int) (member, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return member{}, err
	}
	return parseMember(string(raw))
}

// parseMember reads a stat line; the name in it is the workload's to choose, parentheses and spaces included.
func parseMember(line string) (member, error) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 1 || end < open {
		return member{}, fmt.Errorf("stat line %q has no name", line)
	}
	fields := strings.Fields(line[end+1:])
	if len(fields) < 20 {
		return member{}, fmt.Errorf("stat line %q is short", line)
	}
	var p member
	var err error
	number := func(s string) int {
		n, convErr := strconv.Atoi(s)
		if convErr != nil {
			err = convErr
		}
		return n
	}
	p.pid = number(strings.TrimSpace(line[:open]))
	p.state, p.parent, p.session = fields[0][0], number(fields[1]), number(fields[3])
	p.exiting = number(fields[6])&sys.ProcessExiting != 0
	start, convErr := strconv.ParseUint(fields[19], 10, 64)
	if convErr != nil {
		err = convErr
	}
	p.start = start
	return p, err
}

// kill signals the process that was looked at, or nobody: the pid may be another's by now.
func (p member) kill() {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if now, err := readMember(p.pid); err == nil && now.start == p.start {
		unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}
