package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/spec"
)

// needV2 skips on a machine with cgroup v1, which has none of this.
func needV2(t *testing.T) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		t.Fatal(err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		t.Skip("this host has cgroup v1; the guest runs it: make vm-test")
	}
}

// want reads files of a container's group.
func (c *container) wantFiles(want map[string]string) {
	c.p.t.Helper()
	for file, value := range want {
		text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", c.info().CgroupPath, file))
		if got := strings.TrimSpace(string(text)); err != nil || got != value {
			c.p.t.Errorf("%s: got %q, %v, want %q", file, got, err, value)
		}
	}
}

// What a kubelet with MemoryQoS sends, and limits of 0 for every size of huge pages that the pod did not ask for.
func TestUnifiedAndHugePagesHoldAsTheKubeletSendsThem(t *testing.T) {
	needV2(t)
	p := onNode(t).pod(t)
	var sizes []*criv1.HugepageLimit
	want := map[string]string{
		"memory.min": "4194304", "memory.low": "8388608", "memory.high": "50331648", "memory.max": "67108864", "memory.swap.max": "0",
		"memory.oom.group": "1", "cpu.max": "50000 100000", "cpu.max.burst": "20000", "cpu.weight": "59",
	}
	dirs, err := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no sizes of huge pages: %v", err)
	}
	for _, dir := range dirs {
		size := map[string]string{"hugepages-2048kB": "2MB", "hugepages-1048576kB": "1GB"}[filepath.Base(dir)]
		sizes = append(sizes, &criv1.HugepageLimit{PageSize: size})
		want["hugetlb."+size+".max"], want["hugetlb."+size+".rsvd.max"] = "0", "0"
	}
	c := p.sleeper(func(c *criv1.ContainerConfig) {
		c.Linux.Resources = &criv1.LinuxContainerResources{
			CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20, HugepageLimits: sizes,
			Unified: map[string]string{"memory.min": "4194304", "memory.low": "8388608", "memory.high": "50331648", "memory.oom.group": "1", "cpu.max.burst": "20000"},
		}
	})
	c.wantFiles(want)
	if r, confirmed := c.explained(); !confirmed || finding(r, "memory.high").Enforced != "50331648" {
		t.Errorf("explain: %q, memory.high %+v", differing(r), finding(r, "memory.high"))
	}
	c.update(&criv1.LinuxContainerResources{Unified: map[string]string{"memory.high": "max"}})
	want["memory.high"] = "max"
	c.wantFiles(want)
	for file, value := range map[string]string{"memory.high": "many", "memory.nosuch": "1", "memory.reclaim": "4096", "memory.current": "5", "cpu.weight": "0", "cgroup.kill": "1"} {
		err := c.tryUpdate(&criv1.LinuxContainerResources{Unified: map[string]string{file: value, "memory.low": "4096"}})
		wantError(t, err, codes.InvalidArgument, c.id, file)
	}
	c.wantFiles(want)
	// Of every other size there is nothing to be had: mapping one fails, and does not kill.
	if got := c.exec("sh", "-c", "cat /sys/fs/cgroup/hugetlb.2MB.max"); got != "0\n" {
		t.Errorf("as the container sees it: got %q", got)
	}
}

// memory.oom.group is what the kubelet sets where singleProcessOOMKill is off, its default on v2.
func TestOOMGroupEndsTheWholeContainer(t *testing.T) {
	needV2(t)
	p := onNode(t).pod(t)
	group := func(c *criv1.ContainerConfig) {
		limited32MiB(c)
		c.Linux.Resources.Unified = map[string]string{"memory.oom.group": "1"}
	}
	wantOOM(t, "a child with the group", p.start(group, "sh", "-c", "probe alloc 200; sleep 1; exit 0").wait(60*time.Second), 137, "own limit of 33554432 bytes")
	c := p.start(group, "sh", "-c", "sleep 1000 & wait")
	if resp, err := c.tryExec(60, "probe", "alloc", "200"); err == nil && resp.GetExitCode() != 137 {
		t.Errorf("a command over the limit: got %v", resp)
	}
	wantOOM(t, "a command with the group", c.wait(20*time.Second), 137)
}

// A limit by its v2 name is held against what is in use as one by field is.
func TestUnifiedMemoryBelowUseIsRefusedB58(t *testing.T) {
	needV2(t)
	p := onNode(t).pod(t)
	c := p.start(func(c *criv1.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 64 << 20 }, "probe", "hold", "40")
	eventually(t, 60*time.Second, "memory in use", func() bool { return c.stream("stdout") == "allocated 40 MiB\n" })
	err := c.tryUpdate(&criv1.LinuxContainerResources{Unified: map[string]string{"memory.max": "8388608"}})
	wantError(t, err, codes.FailedPrecondition, c.id, "limits are as before")
	c.wantFiles(map[string]string{"memory.max": "67108864"})
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING {
		t.Errorf("got %v, want it running", s)
	}
}

// nest makes a group below the container's own for its processes, and gives the controllers to it.
const nest = "set -e; cd /sys/fs/cgroup; mkdir main; for p in $(cat cgroup.procs); do echo $p >main/cgroup.procs || true; done; " +
	"echo +memory +pids >cgroup.subtree_control; echo 7 >main/pids.max; echo nested; "

func wishing(value string) func(*criv1.PodSandboxConfig) {
	return func(c *criv1.PodSandboxConfig) { c.Annotations = map[string]string{spec.WritableCgroups: value} }
}

func TestWritableCgroupViewOnlyWhereAskedAndAllowed(t *testing.T) {
	shared := onNode(t)
	_, err := shared.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: shared.podConfig(wishing("true"))})
	wantError(t, err, codes.InvalidArgument, spec.WritableCgroups, "cgroup.allow_writable")
	needV2(t)
	n := ownNode(t, options{cgroup: "allow_writable = true\n"})
	n.watch(t)
	for name, change := range map[string]func(*criv1.PodSandboxConfig){"not asked": func(*criv1.PodSandboxConfig) {}, "asked not to": wishing("false")} {
		if got := n.pod(t, change).output(nil, "sh", "-c", "mkdir /sys/fs/cgroup/x 2>&1 | grep -o 'Read-only file system'"); got != "Read-only file system\n" {
			t.Errorf("%s: got %q", name, got)
		}
	}
	limited := func(c *criv1.ContainerConfig) {
		kubeletLike(c)
		c.Linux.Resources = &criv1.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuQuota: 50000, CpuPeriod: 100000}
	}
	_, err = n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: n.podConfig(wishing("true"))})
	wantError(t, err, codes.InvalidArgument, spec.WritableCgroups, "needs a user namespace")
	p := n.pod(t, wishing("true"), ownUser)
	c := p.start(limited, "sh", "-c", nest+"exec sleep 1000")
	eventually(t, 30*time.Second, "group of the container's making", func() bool { return c.stream("stdout") == "nested\n" })
	// Its own group's limits are not its to change, nor any group above.
	for _, attempt := range []string{
		"echo max >/sys/fs/cgroup/memory.max", "echo max >/sys/fs/cgroup/pids.max", "echo max >/sys/fs/cgroup/cpu.max",
		"mkdir /up && mount -t cgroup2 none /up", "echo 1 >/sys/fs/cgroup/cgroup.procs",
		"unshare -C sh -c 'echo max >/sys/fs/cgroup/memory.max'",
	} {
		if resp, err := c.tryExec(20, "sh", "-c", attempt); err != nil || resp.GetExitCode() == 0 {
			t.Errorf("%s: got %v, %v, want it refused", attempt, resp, err)
		}
	}
	c.wantFiles(map[string]string{"memory.max": "67108864", "pids.max": "64", "cpu.max": "50000 100000", "main/pids.max": "7", "cgroup.max.descendants": "4096"})
	// Commands start where the first process went: the group itself takes none any more.
	if got := strings.TrimSpace(c.exec("cat", "/proc/self/cgroup")); got != "0::/main" {
		t.Errorf("a command is in %q, want 0::/main", got)
	}
	if r, confirmed := c.explained(); !confirmed {
		t.Errorf("explain: %q", differing(r))
	}
	if resp, err := c.tryExec(1, "sh", "-c", "sleep 999 & sleep 999"); err == nil {
		t.Errorf("a command that takes too long: got %v", resp)
	}
	c.stop(0)
}

// A privileged container, which always has the view, is the one that nests: a container engine in a container.
func TestExecIntoAPrivilegedContainerThatNests(t *testing.T) {
	needV2(t)
	p := onNode(t).pod(t, privilegedPod)
	c := p.start(func(c *criv1.ContainerConfig) { security(c).Privileged = true }, "sh", "-c", nest+"exec sleep 1000")
	eventually(t, 30*time.Second, "group of the container's making", func() bool { return c.stream("stdout") == "nested\n" })
	if got := strings.TrimSpace(c.exec("cat", "/proc/self/cgroup")); got != "0::/main" {
		t.Errorf("a command is in %q, want 0::/main", got)
	}
	c.stop(0)
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_EXITED {
		t.Errorf("got %v", s)
	}
}
