package initproc

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/podwright/podwright/runtime/launch"
	"golang.org/x/sys/unix"
)

func TestReaper(t *testing.T) {
	newLab(t)
	plan := &launch.Plan{Ops: []launch.Op{{Code: launch.OpSetsid, Step: "setsid", Fd: -1}, {Code: launch.OpReap, Step: "reap", Fd: -1}}}
	r := sleepingReaper(t, plan)
	status := ""
	for i := 0; i < 200 && !strings.HasPrefix(status, "Name:\tpodwright-reap\n"); i++ { // its first call of its own
		time.Sleep(time.Millisecond)
		content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.pid))
		status = string(content)
	}
	for _, want := range []string{"Name:\tpodwright-reap\n", "Threads:\t1\n", "CapPrm:\t0000000000000000\n", "CapBnd:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n", "SigBlk:\tfffffffffffabefd\n"} {
		if !strings.Contains(status, want) {
			t.Errorf("status without %q:\n%s", want, status)
		}
	}
	if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.pid)); err != nil || len(fds) != 0 {
		t.Errorf("descriptors %v, %v", fds, err)
	}
	rollup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", r.pid))
	pss := 0
	for line := range strings.Lines(string(rollup)) {
		if _, err := fmt.Sscanf(line, "Pss: %d kB", &pss); err == nil {
			break
		}
	}
	if t.Logf("PSS %d kB", pss); pss == 0 || pss > 64 {
		t.Errorf("PSS is %d kB, want at most 64", pss)
	}
	if f, err := os.OpenFile(fmt.Sprintf("/proc/%d/exe", r.pid), os.O_WRONLY, 0); err == nil {
		f.Close()
		t.Error("the reaper's program can be opened for writing")
	}
	if names, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", r.pid)); err != nil || len(names) != 1 || names[0].Name() != "podwright-reap" {
		t.Errorf("root directory: %v, %v", names, err)
	}
	if mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", r.pid)); err != nil || strings.Count(string(mounts), "\n") != 1 || !strings.Contains(string(mounts), " / ro,") {
		t.Errorf("mounts: %s, %v", mounts, err)
	}
	before := switches(r.pid)
	// An orphan of the namespace ends: its parent is the reaper, which leaves no zombie.
	_, table := oneRoot(t)
	child := container("(sleep 0.05 & ); ls /proc/1/root; readlink /proc/1/exe; exit 0")
	child.Ops = append([]launch.Op{{Code: launch.OpSetns, Step: "join pid", Fd: 1, Flags: unix.CLONE_NEWPID}}, child.Ops...)
	l := start(t, child, append(table, namespaceFile(t, r.pid, "pid")), false)
	if got, want := l.finish(t), "ls: /proc/1/root: Permission denied\nexit 0"; got != want {
		t.Errorf("a container sees of the reaper %q, want %q", got, want)
	}
	for i := 0; ; i++ {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", r.pid, r.pid))
		if len(children) == 0 && switches(r.pid) > before {
			break
		}
		if i == 200 {
			t.Fatalf("children of the reaper: %q", children)
		}
		time.Sleep(10 * time.Millisecond)
	}
	idle := switches(r.pid)
	time.Sleep(300 * time.Millisecond)
	if now := switches(r.pid); now != idle {
		t.Errorf("the idle reaper woke up %d times", now-idle)
	}
	unix.PidfdSendSignal(r.pidfd, unix.SIGHUP, nil, 0)
	unix.PidfdSendSignal(r.pidfd, unix.SIGTERM, nil, 0)
	if got := r.finish(t); got != "exit 0" {
		t.Errorf("after SIGTERM: %q", got)
	}
}

func TestReaperMayCallWhatItsLoopDoes(t *testing.T) {
	filter := reaperFilter()
	for nr, want := range map[uint32]bool{
		unix.SYS_EXECVEAT: true, unix.SYS_PRCTL: true, unix.SYS_WAIT4: true, unix.SYS_RT_SIGTIMEDWAIT: true, unix.SYS_EXIT_GROUP: true,
		unix.SYS_MMAP: false, unix.SYS_READ: false, unix.SYS_WRITE: false, unix.SYS_CLONE: false, unix.SYS_KILL: false, unix.SYS_SOCKET: false,
		unix.SYS_WAIT4 | 1<<30: false, // of another ABI
	} {
		if got := allows(filter, nr); got != want {
			t.Errorf("call %d: got %t, want %t", nr, got, want)
		}
	}
}

// sleepingReaper starts a reaper that the test ends itself.
func sleepingReaper(t *testing.T, plan *launch.Plan) *launched {
	l := start(t, plan, nil, true)
	if l.failed != nil {
		t.Fatal(l.failed)
	}
	return l
}

// switches counts how often the process gave up the processor of its own accord.
func switches(pid int) (n int) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	i := strings.Index(string(status), "\nvoluntary_ctxt_switches:")
	if i >= 0 {
		fmt.Sscanf(string(status[i+1:]), "voluntary_ctxt_switches: %d", &n)
	}
	return n
}
