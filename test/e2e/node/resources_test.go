package node

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/kerneltest"
)

// groupFile finds a file of a container's cgroup by its v1 or its v2 name.
func (c *container) groupFile(v1, v2 string) string {
	c.p.t.Helper()
	group := c.info().CgroupPath
	for _, path := range []string{
		filepath.Join("/sys/fs/cgroup", strings.SplitN(v1, ".", 2)[0], group, v1), filepath.Join("/sys/fs/cgroup", group, v2),
	} {
		if text, err := os.ReadFile(path); err == nil {
			return strings.TrimSpace(string(text))
		}
	}
	c.p.t.Fatalf("neither %s nor %s in cgroup %s", v1, v2, group)
	return ""
}

func TestLimitsReachTheGroup(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.sleeper(func(c *criv1.ContainerConfig) {
		c.Linux.Resources = &criv1.LinuxContainerResources{
			CpuShares: 1024, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0", CpusetMems: "0", OomScoreAdj: 500,
		}
	})
	for _, test := range []struct{ v1, v2, wantV1, wantV2 string }{
		{"cpu.shares", "cpu.weight", "1024", "100"}, {"cpu.cfs_quota_us", "cpu.max", "50000", "50000 100000"},
		{"memory.limit_in_bytes", "memory.max", "67108864", "67108864"}, {"cpuset.cpus", "cpuset.cpus", "0", "0"}, {"pids.max", "pids.max", "64", "64"},
	} {
		if got := c.groupFile(test.v1, test.v2); got != test.wantV1 && got != test.wantV2 {
			t.Errorf("%s: got %s, want %s", test.v1, got, test.wantV1)
		}
	}
	if got := strings.TrimSpace(c.exec("cat", "/proc/1/oom_score_adj")); got != "500" {
		t.Errorf("oom_score_adj: got %s, want 500", got)
	}
	if got := strings.TrimSpace(c.exec("cat", "/proc/self/oom_score_adj")); got != "500" {
		t.Errorf("oom_score_adj of an exec: got %s, want 500", got)
	}
	if got := c.exec("nproc"); got != "1\n" {
		t.Errorf("nproc: got %q, want 1", got)
	}
	if r := c.status().GetResources().GetLinux(); r.GetMemoryLimitInBytes() != 64<<20 || r.GetCpuQuota() != 50000 {
		t.Errorf("status resources: got %v", r)
	}
}

// A score below what podwright may set is raised, with a note, and the container runs; in a user namespace too.
func TestLowOOMScoreDegradesB62(t *testing.T) {
	n := onNode(t)
	for name, change := range map[string][]func(*criv1.PodSandboxConfig){"host's users": nil, "a user namespace": {ownUser}} {
		t.Run(name, func(t *testing.T) {
			c := n.pod(t, change...).sleeper(func(c *criv1.ContainerConfig) { c.Linux.Resources.OomScoreAdj = -998 })
			own, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", n.daemon.Process.Pid))
			if err != nil {
				t.Fatal(err)
			}
			lowest := strings.TrimSpace(string(own))
			got := strings.TrimSpace(c.exec("cat", "/proc/1/oom_score_adj"))
			switch notes := strings.Join(c.info().Notes, "\n"); {
			case got == "-998": // podwright has CAP_SYS_RESOURCE
			case got != lowest || !strings.Contains(notes, "oom_score_adj -998 raised to "+lowest):
				t.Errorf("got score %s and notes %q, want -998, or podwright's own %s and a note", got, notes, lowest)
			}
		})
	}
}

// Nothing of the runtime's is in a pod's group or counted there: not while a container starts, runs, has commands and
// terminals in it, or shares its PID namespace, whose PID 1 has a group of its own.
func TestRuntimeIsOutsideThePodsLimitsB61(t *testing.T) {
	n := onNode(t)
	keeper, anchor := n.pair(t)
	for name, pid := range map[string]int{"daemon": n.daemon.Process.Pid, "keeper": keeper, "anchor": anchor} {
		groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(groups), n.group+"/pods") {
			t.Errorf("%s is in a pod's group: %s", name, groups)
		}
	}
	for name, change := range map[string][]func(*criv1.PodSandboxConfig){"processes of its own": nil, "processes shared in the pod": {podPID}} {
		t.Run(name, func(t *testing.T) {
			c := n.pod(t, change...).start(func(c *criv1.ContainerConfig) { c.Tty = true }, "sleep", "1000")
			var wait sync.WaitGroup
			for range 3 {
				wait.Go(func() { c.tryExec(20, "sleep", "2") }) // how it ends is another test's
			}
			defer wait.Wait()
			got := ""
			defer func() {
				if t.Failed() {
					t.Logf("in the container's group: %s", got)
				}
			}()
			// Init counts until it has become the command: what a start costs is the container's.
			eventually(t, 10*time.Second, "group of four commands and nothing else", func() bool {
				got = c.commands()
				return got == "sleep 1000, sleep 2, sleep 2, sleep 2" && c.groupFile("pids.current", "pids.current") == "4"
			})
		})
	}
}

// commands are those of the processes in the container's group.
func (c *container) commands() string {
	group, list := c.info().CgroupPath, []string{}
	for _, dir := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		pids, _ := os.ReadFile(filepath.Join(dir, group, "cgroup.procs"))
		for _, field := range strings.Fields(string(pids)) {
			if pid, err := strconv.Atoi(field); err == nil {
				list = append(list, kerneltest.Process{PID: pid}.Command())
			}
		}
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

func TestSpinnerOverItsQuotaIsThrottled(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.start(func(c *criv1.ContainerConfig) {
		c.Linux.Resources = &criv1.LinuxContainerResources{CpuQuota: 10000, CpuPeriod: 100000}
	}, "sh", "-c", "while :; do :; done")
	throttled := func() int {
		for line := range strings.Lines(c.groupFile("cpu.stat", "cpu.stat")) {
			if text, ok := strings.CutPrefix(line, "nr_throttled "); ok {
				n, err := strconv.Atoi(strings.TrimSpace(text))
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
		return 0
	}
	eventually(t, 20*time.Second, "throttling", func() bool { return throttled() >= 3 })
	t.Logf("nr_throttled %d", throttled())
}

func TestProcessesAreLimited(t *testing.T) {
	p := onNode(t).pod(t)
	// 64 for each container of this node. busybox's shell ends where it can't fork.
	c := p.start(nil, "sh", "-c", "for i in $(seq 62); do sleep 1000 & done; echo many; for i in $(seq 10); do sleep 1000 & done; echo too many")
	if s := c.wait(30 * time.Second); s.GetExitCode() == 0 || c.stream("stdout") != "many\n" {
		t.Errorf("73 processes: got code %d and output %q, want many and then a failed fork", s.GetExitCode(), c.stream("stdout"))
	}
}

func TestExecAtTheProcessLimitIsAClearError(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.start(nil, "sh", "-c", "for i in $(seq 63); do sleep 1000 & done; echo full; wait")
	eventually(t, 20*time.Second, "full group", func() bool { return c.groupFile("pids.current", "pids.current") == "64" })
	begin := time.Now()
	_, err := c.tryExec(20, "true")
	if err == nil || !strings.Contains(err.Error(), "resource temporarily unavailable") {
		t.Errorf("exec into a full group: got %v, want the kernel's EAGAIN and the step", err)
	}
	if took := time.Since(begin); took > patient(10*time.Second) {
		t.Errorf("it took %s", took)
	}
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container afterwards: got %v, want it running", s.GetState())
	}
}

func TestPodsCgroupParentIsUsedAndLeftToItsOwnerB59(t *testing.T) {
	n := onNode(t)
	parent := n.group + "/kubelet-pod"
	var made []string
	for _, top := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, err := filepath.Glob(top + n.group)
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range dirs {
			path := filepath.Join(dir, "kubelet-pod")
			if err := os.Mkdir(path, 0o755); err != nil && !os.IsExist(err) {
				t.Fatal(err)
			}
			made = append(made, path)
		}
	}
	if len(made) == 0 {
		t.Fatalf("no cgroup %s anywhere", n.group)
	}
	t.Cleanup(func() {
		for _, path := range made {
			if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
				t.Error(err)
			}
		}
	})
	t.Run("pod", func(t *testing.T) {
		c := n.pod(t, func(c *criv1.PodSandboxConfig) { c.Linux.CgroupParent = parent }).sleeper(nil)
		if got, want := c.info().CgroupPath, parent+"/"+c.id; got != want {
			t.Errorf("cgroup: got %s, want %s", got, want)
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.info().PID))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), parent+"/"+c.id) {
			t.Errorf("the process is in %q, want %s", text, parent)
		}
	})
	for _, path := range made {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("the pod's own group after its end: %v", err)
		}
	}
}
