package guesttest

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const cgroupRoot = "/sys/fs/cgroup"

// podSlice is a slice as the kubelet names a pod's.
const podSlice = "kubepods-besteffort-pod0123_4567.slice"

const podSlicePath = "/kubepods.slice/kubepods-besteffort.slice/" + podSlice

// info is what verbose status tells of a container.
func (c *container) info() (info struct {
	PID        int    `json:"pid"`
	CgroupPath string `json:"cgroupPath"`
}) {
	c.p.t.Helper()
	resp, err := connect(c.p.t).ContainerStatus(ctx(c.p.t), &criv1.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	if err == nil {
		err = json.Unmarshal([]byte(resp.GetInfo()["info"]), &info)
	}
	if err != nil || info.PID == 0 {
		c.p.t.Fatalf("container %s: %+v, %v", c.id, info, err)
	}
	return info
}

// startTime tells one process from another that has its pid later.
func startTime(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	return fields[19]
}

func groupFile(t *testing.T, group, file string) string {
	t.Helper()
	text, err := os.ReadFile(path.Join(cgroupRoot, group, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func property(t *testing.T, unit, name string) string {
	t.Helper()
	return run(t, "systemctl", "show", "-P", name, unit)
}

// scopes are those of podwright's that systemd knows, failed ones too.
func scopes(t *testing.T) string {
	t.Helper()
	return run(t, "systemctl", "list-units", "--all", "--plain", "--no-legend", "podwright-*.scope")
}

func inSlice(c *criv1.PodSandboxConfig) { c.Linux.CgroupParent = podSlice }

func limited(c *criv1.ContainerConfig) {
	c.Linux.Resources = &criv1.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 102, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0",
		Unified: map[string]string{"memory.high": "62914560", "memory.oom.group": "1"},
	}
}

func TestRuntimeConfigSaysSystemd(t *testing.T) {
	needs(t, "any")
	resp, err := connect(t).RuntimeConfig(ctx(t), &criv1.RuntimeConfigRequest{})
	if err != nil || resp.GetLinux().GetCgroupDriver() != criv1.CgroupDriver_SYSTEMD || resp.GetLinux() == nil {
		t.Errorf("got %v, %v, want the driver SYSTEMD", resp, err)
	}
}

func TestCgroupParentOfTheOtherDriverIsRefused(t *testing.T) {
	needs(t, "any")
	d := connect(t)
	for _, parent := range []string{"/kubepods/besteffort/pod1", "kubepods", "a--b.slice", "/a-b.slice", "-.slice", "a/b.slice"} {
		_, err := d.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: &criv1.PodSandboxConfig{
			Metadata: &criv1.PodSandboxMetadata{Name: "refused", Namespace: "guest", Uid: "refused"}, Linux: &criv1.LinuxPodSandboxConfig{CgroupParent: parent},
		}})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "slice") || !strings.Contains(err.Error(), parent) {
			t.Errorf("%q: got %v, want InvalidArgument that says what is valid", parent, err)
		}
	}
}

// What systemd does to its units must not reach limits: it forgets those that it was not told of.
func TestLimitsSurviveReloadAndRestart(t *testing.T) {
	needs(t, "any")
	d := connect(t)
	p := d.pod(inSlice)
	c := p.sleeper(limited)
	group := c.info().CgroupPath
	if want := podSlicePath + "/podwright-" + p.id + ".scope/" + c.id; group != want {
		t.Fatalf("the container is in %s, want %s", group, want)
	}
	scope := path.Dir(group)
	check := func(when string, want map[string]string) {
		t.Helper()
		for file, value := range want {
			if got := groupFile(t, group, file); got != value {
				t.Errorf("%s: %s is %q, want %q", when, file, got, value)
			}
		}
		for file, value := range map[string]string{"pids.max": "max", "memory.max": "max", "memory.min": "max", "cpu.max": "max 100000"} {
			if got := groupFile(t, scope, file); got != value {
				t.Errorf("%s: %s of the scope is %q, want %q: it has no limits", when, file, got, value)
			}
		}
		run(t, "podwright", "explain", c.id) // its devices program, too
	}
	disturb := map[string]func(){
		"daemon-reload":     func() { run(t, "systemctl", "daemon-reload") },
		"restart podwright": func() { run(t, "systemctl", "restart", "podwright"); p.d = connect(t) },
		"property of slice": func() { run(t, "systemctl", "set-property", "--runtime", podSlice, "CPUWeight=50", "TasksMax=500") },
	}
	limits := map[string]string{"memory.max": "67108864", "memory.high": "62914560", "memory.oom.group": "1", "cpu.max": "50000 100000", "cpu.weight": "17", "cpuset.cpus": "0"}
	check("at first", limits)
	for when, f := range disturb {
		f()
		check(when, limits)
	}
	_, err := connect(t).UpdateContainerResources(ctx(t), &criv1.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: &criv1.LinuxContainerResources{
		CpuPeriod: 50000, CpuQuota: 30000, CpuShares: 1024, MemoryLimitInBytes: 128 << 20, CpusetCpus: "0-1",
	}})
	if err != nil {
		t.Fatal(err)
	}
	limits = map[string]string{"memory.max": "134217728", "memory.high": "62914560", "memory.oom.group": "1", "cpu.max": "30000 50000", "cpu.weight": "100", "cpuset.cpus": "0-1"}
	check("after an update", limits)
	for when, f := range disturb {
		f()
		check("after an update and "+when, limits)
	}
	p.remove()
	if left := scopes(t); strings.Contains(left, p.id) {
		t.Errorf("a scope is left: %s", left)
	}
	if left, err := os.ReadDir(cgroupRoot + podSlicePath); err == nil {
		for _, entry := range left {
			if entry.IsDir() {
				t.Errorf("a group is left in the pod's slice: %s", entry.Name())
			}
		}
	}
	run(t, "systemctl", "stop", podSlice)
}

// Twenty pods and what of them is compared.
type twenty struct {
	list   []*container
	before map[string]string
}

func startTwenty(t *testing.T, d *daemon) *twenty {
	t.Helper()
	all := &twenty{before: map[string]string{}}
	for range 20 {
		c := d.pod().sleeper(nil)
		pid := c.info().PID
		all.list = append(all.list, c)
		all.before[c.id] = fmt.Sprintf("%d %s", pid, startTime(t, pid))
	}
	return all
}

func (all *twenty) check(t *testing.T) {
	t.Helper()
	d := connect(t)
	resp, err := d.ListContainers(ctx(t), &criv1.ListContainersRequest{Filter: &criv1.ContainerFilter{State: &criv1.ContainerStateValue{State: criv1.ContainerState_CONTAINER_RUNNING}}})
	if err != nil || len(resp.GetContainers()) < len(all.list) {
		t.Errorf("%d containers run, %v, want %d", len(resp.GetContainers()), err, len(all.list))
	}
	for _, c := range all.list {
		c.p.d = d
		pid := c.info().PID
		if got := fmt.Sprintf("%d %s", pid, startTime(t, pid)); got != all.before[c.id] {
			t.Errorf("container %s: process %s, want %s", c.id, got, all.before[c.id])
		}
	}
	if got := all.list[len(all.list)-1].shell("echo alive"); got != "alive" {
		t.Errorf("exec after it: got %q", got)
	}
}

func TestTwentyPodsLiveThroughRestartAndHang(t *testing.T) {
	needs(t, "any")
	all := startTwenty(t, connect(t))
	first := property(t, "podwright", "MainPID")
	begin := time.Now()
	run(t, "systemctl", "restart", "podwright")
	t.Logf("systemctl restart podwright took %v", time.Since(begin).Round(time.Millisecond))
	second := property(t, "podwright", "MainPID")
	if first == second {
		t.Fatalf("podwright is still process %s", first)
	}
	all.check(t)

	run(t, "kill", "-STOP", second)
	begin = time.Now()
	eventually(t, "the watchdog has a hung daemon restarted", func() bool {
		pid := property(t, "podwright", "MainPID")
		return pid != second && pid != "0" && property(t, "podwright", "ActiveState") == "active"
	})
	t.Logf("a stopped daemon was replaced after %v", time.Since(begin).Round(time.Millisecond))
	if got := run(t, "journalctl", "-b", "--no-pager", "-u", "podwright"); !strings.Contains(got, "Watchdog timeout") {
		t.Errorf("it was not the watchdog that did it:\n%s", got)
	}
	all.check(t)
	begin = time.Now()
	for _, c := range all.list {
		c.p.remove()
	}
	t.Logf("removing 20 pods took %v", time.Since(begin).Round(time.Millisecond))
	if left := scopes(t); left != "" {
		t.Errorf("scopes are left:\n%s", left)
	}
	eventually(t, "podwright's slice goes with the last pod", func() bool {
		_, err := os.Lstat(cgroupRoot + "/podwright.slice/podwright-pods.slice")
		return os.IsNotExist(err)
	})
	if failed := run(t, "systemctl", "list-units", "--failed", "--plain", "--no-legend", "podwright*"); failed != "" {
		t.Errorf("units failed:\n%s", failed)
	}
}

// The scope's own process is nothing that a pod depends on.
func TestHolderThatIsKilledIsReplaced(t *testing.T) {
	needs(t, "any")
	d := connect(t)
	p := d.pod()
	running := p.sleeper(nil)
	scope := path.Dir(running.info().CgroupPath)
	holder := groupFile(t, scope, "hold/cgroup.procs")
	if comm, err := os.ReadFile("/proc/" + holder + "/comm"); err != nil || strings.TrimSpace(string(comm)) != "podwright-hold" {
		t.Errorf("the holder is %q, %v", comm, err)
	}
	status, err := os.ReadFile("/proc/" + holder + "/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "Pss:") {
			t.Logf("memory of a holder: %s", strings.TrimSpace(line))
		}
	}
	run(t, "kill", "-KILL", holder)
	eventually(t, "the holder ends", func() bool { return groupFile(t, scope, "hold/cgroup.procs") == "" })
	running.shell("true")
	p.sleeper(nil)
	if next := groupFile(t, scope, "hold/cgroup.procs"); next == "" || next == holder {
		t.Errorf("the holder is %q, want another one than %s", next, holder)
	}
	p.remove()
	if left := scopes(t); strings.Contains(left, p.id) {
		t.Errorf("a scope is left: %s", left)
	}

	// The scope of a pod without containers goes with its holder, and comes back with the next container.
	p = d.pod()
	c := p.sleeper(nil)
	scope = path.Dir(c.info().CgroupPath)
	holder = groupFile(t, scope, "hold/cgroup.procs")
	if _, err := d.StopContainer(ctx(t), &criv1.StopContainerRequest{ContainerId: c.id, Timeout: 30}); err != nil {
		t.Fatal(err)
	}
	run(t, "kill", "-KILL", holder)
	p.sleeper(nil).shell("true")
}

// Who ended it is read from the group, which must still be there.
func TestOOMIsToldUnderSystemd(t *testing.T) {
	needs(t, "any")
	d := connect(t)
	p := d.pod()
	for range 5 {
		c, err := p.create(func(c *criv1.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 32 << 20 }, "sh", "-c", "tail /dev/zero")
		if err == nil {
			err = c.start()
		}
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the container ends", func() bool {
			resp, err := d.ContainerStatus(ctx(t), &criv1.ContainerStatusRequest{ContainerId: c.id})
			if err != nil {
				t.Fatal(err)
			}
			if resp.Status.State != criv1.ContainerState_CONTAINER_EXITED {
				return false
			}
			if resp.Status.Reason != "OOMKilled" {
				t.Errorf("reason %q (%s), want OOMKilled", resp.Status.Reason, resp.Status.Message)
			}
			return true
		})
	}
}

func TestKeeperIsAUnitOfItsOwn(t *testing.T) {
	needs(t, "any")
	connect(t)
	if got := property(t, "podwright-keeper.service", "ActiveState"); got != "active" {
		t.Errorf("podwright-keeper.service is %s", got)
	}
	if got, want := property(t, "podwright-keeper.service", "ControlGroup"), "/podwright.slice/podwright-keeper.slice/podwright-keeper.service"; got != want {
		t.Errorf("it is in %s, want %s", got, want)
	}
	procs := strings.Fields(groupFile(t, property(t, "podwright-keeper.service", "ControlGroup"), "cgroup.procs"))
	if len(procs) != 2 || procs[0] != property(t, "podwright-keeper.service", "MainPID") && procs[1] != property(t, "podwright-keeper.service", "MainPID") {
		t.Errorf("processes %v, main process %s, want anchor and keeper", procs, property(t, "podwright-keeper.service", "MainPID"))
	}
	for _, pid := range procs {
		if score, err := os.ReadFile("/proc/" + pid + "/oom_score_adj"); err != nil || strings.TrimSpace(string(score)) != "-999" {
			t.Errorf("process %s: oom_score_adj %q, %v, want -999", pid, score, err)
		}
	}
}

// Upgrades in place keep the keeper's process, and so the unit's.
func TestKeeperUpgradeKeepsItsUnit(t *testing.T) {
	needs(t, "any")
	connect(t).pod().sleeper(nil)
	main := property(t, "podwright-keeper.service", "MainPID")
	run(t, "podwright", "keeper", "upgrade")
	if got := property(t, "podwright-keeper.service", "MainPID"); got != main || property(t, "podwright-keeper.service", "ActiveState") != "active" {
		t.Errorf("main process %s, %s, want %s, active", got, property(t, "podwright-keeper.service", "ActiveState"), main)
	}
}

// The journal has a line's priority as a field, and the time once.
func TestJournalKnowsPriorities(t *testing.T) {
	needs(t, "any")
	connect(t)
	out := run(t, "journalctl", "-b", "--no-pager", "-o", "json", "--output-fields=MESSAGE,PRIORITY,_COMM", "-u", "podwright")
	seen := 0
	for line := range strings.Lines(out) {
		var entry struct{ MESSAGE, PRIORITY, Comm string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil || !strings.Contains(line, `"_COMM":"podwright"`) {
			continue
		}
		if strings.Contains(entry.MESSAGE, "Serving") {
			seen++
			if entry.PRIORITY != "6" || !strings.HasPrefix(entry.MESSAGE, `"Serving"`) {
				t.Errorf("priority %s: %q, want 6 and nothing before the message", entry.PRIORITY, entry.MESSAGE)
			}
		}
	}
	if seen == 0 {
		t.Errorf("no line says that the daemon serves:\n%s", out)
	}
}

func TestUnitFilesAreCorrect(t *testing.T) {
	needs(t, "any")
	dir := "/etc/systemd/system/"
	out := run(t, "systemd-analyze", "verify", "--man=no", dir+"podwright.service", dir+"podwright-keeper.service",
		dir+"podwright.slice", dir+"podwright-keeper.slice", dir+"podwright-pods.slice", dir+"podwright-pods.target")
	for line := range strings.Lines(out) {
		if strings.Contains(line, "podwright") {
			t.Error(line)
		}
	}
}
