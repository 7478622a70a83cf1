package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

func TestNewDetectsThisMachine(t *testing.T) {
	m := newManager(t)
	if m.Driver() != "cgroupfs" || m.Version() != 1 && m.Version() != 2 {
		t.Errorf("driver %q, version %d", m.Driver(), m.Version())
	}
	if m.Version() == 1 {
		for _, h := range m.V1Hierarchies() {
			if _, err := os.Stat(filepath.Join(h.MountPoint, "tasks")); err != nil {
				t.Errorf("hierarchy %+v: %v", h, err)
			}
		}
	}
	if _, err := New(Config{Driver: "systemd"}); !errors.Is(err, ErrNotSupported) {
		t.Errorf("systemd driver: got %v, want ErrNotSupported", err)
	}
	if _, err := New(Config{Root: t.TempDir()}); !errors.Is(err, ErrNotSupported) {
		t.Errorf("a root without cgroups: got %v, want ErrNotSupported", err)
	}
	if _, err := New(Config{Root: "/nonexistent"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent root: got %v, want ErrNotExist", err)
	}
}

func TestCreateMakesUsableGroupTwice(t *testing.T) {
	for _, m := range []*Manager{newManager(t), unifiedManager(t)} {
		t.Run(fmt.Sprintf("v%d", m.version), func(t *testing.T) {
			ctx, parent := testContext(t), groupName(t, m)
			path := parent + "/pod/container"
			for range 2 {
				if err := m.Create(ctx, path, nil); err != nil {
					t.Fatal(err)
				}
			}
			names, err := m.List(parent)
			if err != nil || fmt.Sprint(names) != "[pod]" {
				t.Errorf("List = %v, %v", names, err)
			}
			if populated, err := m.Populated(path); populated || err != nil {
				t.Errorf("empty group: Populated = %v, %v", populated, err)
			}
			cmd, out := join(t, m, path, `echo in; exec sleep 1000`)
			needLine(t, out, "in")
			pids, err := m.Pids(parent)
			if err != nil || fmt.Sprint(pids) != fmt.Sprint([]int{cmd.Process.Pid}) {
				t.Errorf("Pids = %v, %v; want [%d]", pids, err, cmd.Process.Pid)
			}
			own, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
			want := 1
			if m.version == 1 {
				want = len(m.hierarchies)
			}
			if got := strings.Count(string(own), ":"+path+"\n"); err != nil || got != want {
				t.Errorf("the child is in the group in %d of %d hierarchies:\n%s", got, want, own)
			}
			short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
			if err := m.Remove(short, parent); !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Remove of a populated group: %v, want ErrBusy and the deadline", err)
			}
			if err := m.RemoveEmpty(path); !errors.Is(err, ErrBusy) {
				t.Errorf("RemoveEmpty of a populated group: %v, want ErrBusy", err)
			}
			if err := m.Kill(ctx, parent); err != nil {
				t.Fatal(err)
			}
			if err := m.Remove(ctx, parent); err != nil {
				t.Fatal(err)
			}
			// Absent is done (B1), and can't be opened or updated.
			if err := errors.Join(m.Remove(ctx, parent), m.RemoveEmpty(parent), m.Kill(ctx, parent), m.Thaw(ctx, parent)); err != nil {
				t.Errorf("second teardown: %v", err)
			}
			if populated, err := m.Populated(path); populated || err != nil {
				t.Errorf("removed group: Populated = %v, %v", populated, err)
			}
			if _, err := m.Open(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Open of a removed group: %v", err)
			}
			if err := m.Update(ctx, path, nil); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Update of a removed group: %v", err)
			}
			if _, err := m.Stats(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Stats of a removed group: %v", err)
			}
		})
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	m := newManager(t)
	ctx, path := testContext(t), groupName(t, m)
	exists := func() bool {
		for _, dir := range m.dirs(path) {
			if _, err := os.Stat(dir); err == nil {
				return true
			}
		}
		return false
	}
	bad := &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "60000"}}
	if err := m.Create(ctx, path+"/x", bad); !errors.Is(err, ErrInvalid) || exists() {
		t.Errorf("refused before anything is made: %v, exists %v", err, exists())
	}
	if m.version == 2 {
		needControllers(t, m, "memory", "pids")
		err := m.Create(ctx, path+"/a/b", &specs.LinuxResources{
			Pids: &specs.LinuxPids{Limit: p[int64](9)}, Unified: map[string]string{"memory.high": "rubbish"}})
		var value *ValueError
		if !errors.As(err, &value) || value.File != "memory.high" || value.Value != "rubbish" || exists() {
			t.Errorf("got %v, exists %v; want a ValueError of memory.high=rubbish and nothing left", err, exists())
		}
		return
	}
	// The kernel refuses a child more CPU time than its parent has.
	if err := m.Create(ctx, path, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p[int64](10000), Period: p[uint64](100000)}}); err != nil {
		t.Fatal(err)
	}
	more := &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: p[int64](64 << 20)},
		CPU:    &specs.LinuxCPU{Quota: p[int64](20000), Period: p[uint64](100000)},
	}
	err := m.Create(ctx, path+"/a/b", more)
	var value *ValueError
	if !errors.As(err, &value) || value.File != "cpu.cfs_quota_us" || value.Value != "20000" || !errors.Is(err, ErrInvalid) || !errors.Is(err, unix.EINVAL) {
		t.Errorf("got %v (%+v), want a ValueError of cpu.cfs_quota_us=20000", err, value)
	}
	if names, err := m.List(path); len(names) != 0 || err != nil {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

func TestConcurrentCreatesShareAParent(t *testing.T) {
	m := newManager(t)
	ctx, parent := testContext(t), groupName(t, m)
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			path := fmt.Sprintf("%s/pod/c%d", parent, i)
			// Every third fails half way and must not take the others' parent along.
			if i%3 == 0 {
				made, err := group{&m.mountedTree, path}.make(plan{})
				if err != nil {
					t.Error(err)
				}
				removeMade(made)
				return
			}
			if err := m.Create(ctx, path, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p[int64](9)}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	names, err := m.List(parent + "/pod")
	if err != nil || len(names) != 16 {
		t.Errorf("%d groups, %v; want 16", len(names), err)
	}
}

func TestKillEndsAForkBomb(t *testing.T) {
	for _, m := range []*Manager{newManager(t), unifiedManager(t)} {
		t.Run(fmt.Sprintf("v%d", m.version), func(t *testing.T) {
			ctx, path := testContext(t), groupName(t, m)
			if err := m.Create(ctx, path+"/child", nil); err != nil {
				t.Fatal(err)
			}
			// 20 that fork without pause and 30 that ignore everything that can be ignored.
			join(t, m, path+"/child", `trap "" TERM INT HUP
				for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do (while :; do (:) done) & done
				for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do (exec sleep 1000) & done
				wait`)
			waitFor(t, "50 processes", func() bool { pids, _ := m.Pids(path); return len(pids) >= 50 })
			begin := time.Now()
			if err := m.Kill(ctx, path); err != nil {
				t.Fatal(err)
			}
			t.Logf("killed in %v", time.Since(begin))
			if pids, err := m.Pids(path); len(pids) != 0 || err != nil {
				t.Errorf("left: %v, %v", pids, err)
			}
			if err := m.Remove(ctx, path); err != nil {
				t.Error(err)
			}
		})
	}
}

// The kernel gives a list a page at a time, of some 820 processes with numbers of four digits.
func TestManyProcessesAreAllListed(t *testing.T) {
	m := newManager(t)
	path := groupName(t, m)
	if err := m.Create(testContext(t), path, nil); err != nil {
		t.Fatal(err)
	}
	const children = 850
	// They wait for a line that nobody writes, which takes no program of their own to start.
	_, out := join(t, m, path, "mkfifo $FIFO; exec 9<>$FIFO; i=0; while [ $i -lt $CHILDREN ]; do (read line <&9) & i=$((i+1)); done; echo started; wait",
		"FIFO="+filepath.Join(t.TempDir(), "fifo"), fmt.Sprintf("CHILDREN=%d", children))
	needLine(t, out, "started")
	for name, list := range map[string]func(string) ([]int, error){"Pids": m.Pids, "Processes": m.Processes} {
		if got, err := list(path); err != nil || len(got) != children+1 {
			t.Errorf("%s: got %d processes, %v, want %d", name, len(got), err, children+1)
		}
	}
}

func TestFreezeStopsAndThawResumes(t *testing.T) {
	for _, m := range []*Manager{newManager(t), unifiedManager(t)} {
		t.Run(fmt.Sprintf("v%d", m.version), func(t *testing.T) {
			ctx, path := testContext(t), groupName(t, m)
			if err := m.Create(ctx, path, nil); err != nil {
				t.Fatal(err)
			}
			cmd, out := join(t, m, path, `while :; do echo tick; sleep 0.01; done`)
			needLine(t, out, "tick")
			if err := m.Freeze(ctx, path); err != nil {
				t.Fatal(err)
			}
			// Frozen is said on a process's way off its processor.
			waitFor(t, "it lies still", func() bool { return !running(t, cmd.Process.Pid) })
			before := cpuTicks(t, cmd.Process.Pid)
			time.Sleep(100 * time.Millisecond)
			if after := cpuTicks(t, cmd.Process.Pid); after != before {
				t.Errorf("frozen, but its CPU time went from %s to %s", before, after)
			}
			if err := m.Thaw(ctx, path); err != nil {
				t.Fatal(err)
			}
			for range 50 { // more than the pipe can have held from before
				needLine(t, out, "tick")
			}
			if err := m.Freeze(ctx, path); err != nil {
				t.Fatal(err)
			}
			if err := m.Kill(ctx, path); err != nil { // a frozen group can be killed
				t.Fatal(err)
			}
		})
	}
}

func cpuTicks(t *testing.T, pid int) string {
	t.Helper()
	text, err := sys.ReadKernelFile(fmt.Sprintf("/proc/%d/schedstat", pid), 4096)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// running says whether the process has a processor or waits for one (proc_pid_stat(5)).
func running(t *testing.T, pid int) bool {
	t.Helper()
	text, err := sys.ReadKernelFile(fmt.Sprintf("/proc/%d/stat", pid), 4096)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(text, ") ")
	return strings.HasPrefix(rest, "R")
}

func TestKillRefusesItsOwnGroup(t *testing.T) {
	m := newManager(t)
	if m.version != 1 {
		t.Skip("v2 kills by the kernel's own file")
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	path := groupName(t, m)
	if err := m.Create(testContext(t), path, nil); err != nil {
		t.Fatal(err)
	}
	// A stranger's hierarchy that this process is the member of, so that nothing
	// else can be hit: only pids, and only this process's threads' group.
	var back string
	for line := range strings.Lines(string(own)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); f[1] == "pids" {
			back = f[2]
		}
	}
	dir, _ := m.controllerDir("pids", path)
	home, _ := m.controllerDir("pids", back)
	if err := sys.WriteKernelFile(dir+"/cgroup.procs", fmt.Sprint(os.Getpid())); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sys.WriteKernelFile(home+"/cgroup.procs", fmt.Sprint(os.Getpid())); err != nil {
			t.Error(err)
		}
	}()
	if err := m.Kill(testContext(t), path); err == nil || !strings.Contains(err.Error(), "this process") {
		t.Errorf("got %v, want a refusal", err)
	}
}
