package node

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *container) tryUpdate(change *criv1.LinuxContainerResources) error {
	_, err := c.p.n.UpdateContainerResources(ctx(c.p.t), &criv1.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: change})
	return err
}

func (c *container) update(change *criv1.LinuxContainerResources) {
	c.p.t.Helper()
	if err := c.tryUpdate(change); err != nil {
		c.p.t.Fatal(err)
	}
}

// limits are what the tests read of a group, by their v1 names.
func (c *container) limits() string {
	c.p.t.Helper()
	return fmt.Sprintf("shares %s, quota %s, memory %s, cpus %s", c.groupFile("cpu.shares", "cpu.weight"), c.groupFile("cpu.cfs_quota_us", "cpu.max"),
		c.groupFile("memory.limit_in_bytes", "memory.max"), c.groupFile("cpuset.cpus", "cpuset.cpus"))
}

var atFirst = &criv1.LinuxContainerResources{
	CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0-1", OomScoreAdj: 500,
}

func limitedAtFirst(c *criv1.ContainerConfig) { c.Linux.Resources = atFirst }

// Each field alone changes what it names and nothing else: in the group, in the status, in the spec.
func TestUpdateChangesOnlyWhatIsGivenB57(t *testing.T) {
	p := onNode(t).pod(t)
	for name, test := range map[string]struct {
		change         *criv1.LinuxContainerResources
		wantV1, wantV2 string
		status         func(*criv1.LinuxContainerResources)
	}{
		"cpuset, as the CPU manager sends it": {&criv1.LinuxContainerResources{CpusetCpus: "1"},
			"shares 512, quota 50000, memory 67108864, cpus 1", "shares 59, quota 50000 100000, memory 67108864, cpus 1",
			func(r *criv1.LinuxContainerResources) { r.CpusetCpus = "1" }},
		"memory": {&criv1.LinuxContainerResources{MemoryLimitInBytes: 96 << 20},
			"shares 512, quota 50000, memory 100663296, cpus 0-1", "shares 59, quota 50000 100000, memory 100663296, cpus 0-1",
			func(r *criv1.LinuxContainerResources) { r.MemoryLimitInBytes = 96 << 20 }},
		"quota lifted": {&criv1.LinuxContainerResources{CpuQuota: -1},
			"shares 512, quota -1, memory 67108864, cpus 0-1", "shares 59, quota max 100000, memory 67108864, cpus 0-1",
			func(r *criv1.LinuxContainerResources) { r.CpuQuota = -1 }},
		"nothing": {&criv1.LinuxContainerResources{},
			"shares 512, quota 50000, memory 67108864, cpus 0-1", "shares 59, quota 50000 100000, memory 67108864, cpus 0-1",
			func(*criv1.LinuxContainerResources) {}},
	} {
		t.Run(name, func(t *testing.T) {
			p.t = t
			c := p.sleeper(limitedAtFirst)
			c.update(test.change)
			if got := c.limits(); got != test.wantV1 && got != test.wantV2 {
				t.Errorf("group: got %s, want %s", got, test.wantV1)
			}
			want := &criv1.LinuxContainerResources{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0-1", OomScoreAdj: 500}
			test.status(want)
			if got := c.status().GetResources().GetLinux(); got.String() != want.String() {
				t.Errorf("status: got %v, want %v", got, want)
			}
			var ociSpec specs.Spec
			if err := json.Unmarshal(c.info().RuntimeSpec, &ociSpec); err != nil {
				t.Fatal(err)
			}
			if r := ociSpec.Linux.Resources; *r.Memory.Limit != want.MemoryLimitInBytes || r.CPU.Cpus != want.CpusetCpus || *r.CPU.Quota != want.CpuQuota ||
				*r.Pids.Limit != 64 || len(r.Devices) == 0 {
				t.Errorf("spec: got %+v", r)
			}
		})
	}
}

// What the kubelet sends for a resize of a burstable pod: all of it, with another score.
func TestUpdateOfTheOOMScoreReachesEveryProcess(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.start(func(c *criv1.ContainerConfig) { c.Linux.Resources.OomScoreAdj = 500 },
		"sh", "-c", "sleep 1000 & (echo 700 > /proc/self/oom_score_adj; exec sleep 1001) & sleep 1002")
	scores := func() string {
		return c.exec("sh", "-c", "for p in /proc/[0-9]*; do read name < $p/cmdline; case $name in *sleep*) cat $p/oom_score_adj;; esac; done | sort | uniq -c | tr -s ' \\n' ' '")
	}
	eventually(t, 10*time.Second, "processes with their scores", func() bool { return strings.Contains(scores(), "1 700") && strings.Contains(scores(), "500") })
	c.update(&criv1.LinuxContainerResources{CpuShares: 300, CpuPeriod: 100000, OomScoreAdj: 650})
	if got := scores(); strings.Contains(got, "500") || !strings.Contains(got, "650") || !strings.Contains(got, "1 700") {
		t.Errorf("scores: got %q, want 650 instead of 500, and the process with its own 700 as it was", got)
	}
	if got := strings.TrimSpace(c.exec("cat", "/proc/self/oom_score_adj")); got != "650" {
		t.Errorf("a command started afterwards: got %s, want 650", got)
	}
	c.update(&criv1.LinuxContainerResources{OomScoreAdj: 300})
	if got := scores(); strings.Contains(got, "650") || !strings.Contains(got, "300") {
		t.Errorf("scores after a lower one: got %q, want 300", got)
	}
}

func TestMemoryBelowUseIsRefusedWithAllLimitsKeptB58(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.start(limitedAtFirst, "probe", "hold", "40")
	eventually(t, 20*time.Second, "memory in use", func() bool { return c.stream("stdout") == "allocated 40 MiB\n" })
	before := c.limits()
	err := c.tryUpdate(&criv1.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, CpuShares: 1024, CpuQuota: 20000, CpusetCpus: "0", OomScoreAdj: 900})
	wantError(t, err, codes.FailedPrecondition, c.id, "linux.memory_limit_in_bytes", "16777216", "limits are as before")
	if after := c.limits(); after != before {
		t.Errorf("limits: got %s, want %s", after, before)
	}
	if got := strings.TrimSpace(c.exec("cat", "/proc/1/oom_score_adj")); got != "500" {
		t.Errorf("oom_score_adj: got %s, want 500", got)
	}
	if got := c.status().GetResources().GetLinux(); got.String() != atFirst.String() {
		t.Errorf("status: got %v, want %v", got, atFirst)
	}
	c.update(&criv1.LinuxContainerResources{MemoryLimitInBytes: 50 << 20}) // and the next one that fits is taken
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING || s.GetResources().GetLinux().GetMemoryLimitInBytes() != 50<<20 {
		t.Errorf("afterwards: got %v", s)
	}
}

func TestImpossibleUpdatesAreRefusedByName(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	c := p.sleeper(limitedAtFirst)
	before := c.limits()
	for _, test := range []struct {
		change *criv1.LinuxContainerResources
		words  []string
	}{
		{&criv1.LinuxContainerResources{CpuShares: 1}, []string{"linux.cpu_shares", `"1"`, "want 2 to 262144"}},
		{&criv1.LinuxContainerResources{CpuQuota: 10}, []string{"linux.cpu_quota", `"10"`, "-1 or at least"}},
		{&criv1.LinuxContainerResources{CpusetCpus: "4000"}, []string{"cpuset.cpus", "4000", "this host has"}},
		{&criv1.LinuxContainerResources{CpusetCpus: "a"}, []string{"linux.cpuset_cpus", `"a"`}},
		{&criv1.LinuxContainerResources{MemoryLimitInBytes: -5}, []string{"linux.memory_limit_in_bytes", "negative"}},
		{&criv1.LinuxContainerResources{OomScoreAdj: 2000}, []string{"linux.oom_score_adj", "2000"}},
		{&criv1.LinuxContainerResources{Unified: map[string]string{"cgroup.procs": "1"}}, []string{"linux.unified"}},
		{&criv1.LinuxContainerResources{HugepageLimits: []*criv1.HugepageLimit{{PageSize: "3MB", Limit: 1}}}, []string{"linux.hugepage_limits", "3MB"}},
	} {
		wantError(t, c.tryUpdate(test.change), codes.InvalidArgument, append(test.words, c.id)...)
	}
	_, err := n.UpdateContainerResources(ctx(t), &criv1.UpdateContainerResourcesRequest{ContainerId: c.id, Windows: &criv1.WindowsContainerResources{CpuShares: 3}})
	wantError(t, err, codes.InvalidArgument, c.id, "windows", "Linux runtime")
	_, err = n.UpdateContainerResources(ctx(t), &criv1.UpdateContainerResourcesRequest{ContainerId: c.id, Annotations: map[string]string{"io.example/x": "1"}})
	wantError(t, err, codes.InvalidArgument, c.id, "annotations", "io.example/x")
	_, err = n.UpdateContainerResources(ctx(t), &criv1.UpdateContainerResourcesRequest{ContainerId: "nowhere", Linux: &criv1.LinuxContainerResources{CpuShares: 3}})
	wantError(t, err, codes.NotFound, "nowhere")
	if after := c.limits(); after != before {
		t.Errorf("limits: got %s, want %s", after, before)
	}
	c.stop(0)
	wantError(t, c.tryUpdate(&criv1.LinuxContainerResources{CpuShares: 100}), codes.FailedPrecondition, c.id, "exited")
}

// A created container starts with what updates made of it; a retry of its create still finds it; a restart changes nothing.
func TestUpdateOfACreatedContainerHoldsFromItsStart(t *testing.T) {
	n := ownNode(t, options{})
	p := n.pod(t)
	c := p.create(limitedAtFirst, "sleep", "1000")
	c.update(&criv1.LinuxContainerResources{MemoryLimitInBytes: 80 << 20, OomScoreAdj: 600})
	if got := c.status().GetResources().GetLinux(); got.GetMemoryLimitInBytes() != 80<<20 || got.GetCpuShares() != 512 {
		t.Errorf("status before the start: got %v", got)
	}
	if id, err := p.tryCreate(c.config); err != nil || id != c.id {
		t.Errorf("the same create again: got %s, %v, want %s", id, err, c.id)
	}
	n.restart(t, unix.SIGKILL, nil)
	if got := c.status().GetResources().GetLinux(); got.GetMemoryLimitInBytes() != 80<<20 || got.GetCpuShares() != 512 {
		t.Errorf("status after a restart: got %v", got)
	}
	if id, err := p.tryCreate(c.config); err != nil || id != c.id {
		t.Errorf("the same create after a restart: got %s, %v, want %s", id, err, c.id)
	}
	if err := c.tryStart(); err != nil {
		t.Fatal(err)
	}
	if got := c.groupFile("memory.limit_in_bytes", "memory.max"); got != "83886080" {
		t.Errorf("memory limit: got %s, want 83886080", got)
	}
	if got := strings.TrimSpace(c.exec("cat", "/proc/1/oom_score_adj")); got != "600" {
		t.Errorf("oom_score_adj: got %s, want 600", got)
	}
	c.update(&criv1.LinuxContainerResources{CpuShares: 256})
	n.restart(t, unix.SIGKILL, nil)
	if got := c.status().GetResources().GetLinux(); got.GetMemoryLimitInBytes() != 80<<20 || got.GetCpuShares() != 256 || got.GetCpuQuota() != 50000 {
		t.Errorf("status of the running one after another restart: got %v", got)
	}
}

// A daemon that dies between the announcement of an update and its end makes it again: group and status agree afterwards.
func TestInterruptedUpdateIsFinished(t *testing.T) {
	n := ownNode(t, options{})
	p := n.pod(t)
	c, full := p.sleeper(limitedAtFirst), p.start(limitedAtFirst, "probe", "hold", "40")
	eventually(t, 20*time.Second, "memory in use", func() bool { return full.stream("stdout") == "allocated 40 MiB\n" })
	exited := p.sleeper(limitedAtFirst)
	exited.stop(0)
	announce := func(c *container, change *criv1.LinuxContainerResources) {
		raw, err := protojson.Marshal(change)
		if err != nil {
			t.Fatal(err)
		}
		n.editRecord(t, "containers", c.id, func(r map[string]any) { r["updating"] = raw })
	}
	before := full.limits()
	n.restart(t, unix.SIGKILL, func() {
		announce(c, &criv1.LinuxContainerResources{MemoryLimitInBytes: 72 << 20, CpuShares: 128})
		announce(full, &criv1.LinuxContainerResources{MemoryLimitInBytes: 8 << 20, CpuShares: 128})
		announce(exited, &criv1.LinuxContainerResources{CpuShares: 128})
	})
	if got, status := c.groupFile("memory.limit_in_bytes", "memory.max"), c.status().GetResources().GetLinux(); got != "75497472" || status.GetMemoryLimitInBytes() != 72<<20 || status.GetCpuShares() != 128 {
		t.Errorf("got %s in the group and %v in the status", got, status)
	}
	if got, status := full.limits(), full.status().GetResources().GetLinux(); got != before || status.String() != atFirst.String() {
		t.Errorf("what the kernel refuses: got %s and %v, want it as before", got, status)
	}
	for _, c := range []*container{c, full, exited} {
		if raw, err := os.ReadFile(n.recordPath(t, "containers", c.id)); err != nil || strings.Contains(string(raw), `"updating"`) {
			t.Errorf("the record of %s still announces: %s, %v", c.id, raw, err)
		}
	}
}

// An update behind a start that hangs leaves with its caller, and changes nothing.
func TestUpdateDoesNotWaitLongerThanItsCaller(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	dir := t.TempDir()
	volume := filepath.Join(dir, "volume")
	if err := os.Mkdir(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	c := p.create(func(c *criv1.ContainerConfig) {
		c.Linux.Resources = atFirst
		c.Mounts = []*criv1.Mount{bind(volume, "/volume")}
	}, "sleep", "1000")
	release := hangingFileSystem(t, dir)
	defer release()
	started := make(chan error, 1)
	// Owner: the test, which waits for started.
	go func() { started <- c.tryStart() }()
	time.Sleep(200 * time.Millisecond) // until it hangs
	short, cancel := contextWithTimeout(time.Second)
	defer cancel()
	begin := time.Now()
	_, err := n.UpdateContainerResources(short, &criv1.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: &criv1.LinuxContainerResources{CpuShares: 100}})
	wantError(t, err, codes.DeadlineExceeded)
	if took := time.Since(begin); took > patient(3*time.Second) {
		t.Errorf("it took %s", took)
	}
	release()
	<-started // which of both ways is the kernel's choice
	if got := c.status().GetResources().GetLinux(); got.String() != atFirst.String() {
		t.Errorf("status: got %v, want %v", got, atFirst)
	}
}

// Updates and the start of one container take turns: group and status agree on the last of them.
func TestUpdatesAndAStartTakeTurns(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	c := p.create(nil, "sleep", "1000")
	done := make(chan error, 20)
	for i := range 20 {
		// Owner: the test, which waits for all of them.
		go func() {
			if i == 10 {
				done <- c.tryStart()
				return
			}
			done <- c.tryUpdate(&criv1.LinuxContainerResources{CpuShares: int64(100 + i), MemoryLimitInBytes: int64(64+i) << 20})
		}()
	}
	for range 20 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	memory, status := c.groupFile("memory.limit_in_bytes", "memory.max"), c.status().GetResources().GetLinux()
	if memory != fmt.Sprint(status.GetMemoryLimitInBytes()) || status.GetMemoryLimitInBytes()>>20-64 != status.GetCpuShares()-100 {
		t.Errorf("after updates side by side: got %s in the group and %v in the status", memory, status)
	}
}

func TestPodResourcesAreRecorded(t *testing.T) {
	n := ownNode(t, options{})
	p := n.pod(t)
	_, err := n.UpdatePodSandboxResources(ctx(t), &criv1.UpdatePodSandboxResourcesRequest{
		PodSandboxId: p.id, Overhead: &criv1.LinuxContainerResources{CpuShares: 20},
		Resources: &criv1.LinuxContainerResources{CpuShares: 1024, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 128 << 20},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.restart(t, unix.SIGKILL, nil)
	resp, err := n.PodSandboxStatus(ctx(t), &criv1.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Overhead, Resources struct{ CPUShares, MemoryLimitInBytes string }
	}
	if err := json.Unmarshal([]byte(resp.GetInfo()["info"]), &info); err != nil {
		t.Fatal(err)
	}
	if info.Overhead.CPUShares != "20" || info.Resources.MemoryLimitInBytes != "134217728" {
		t.Errorf("verbose status: got %+v", info)
	}
	_, err = n.UpdatePodSandboxResources(ctx(t), &criv1.UpdatePodSandboxResourcesRequest{PodSandboxId: "nowhere"})
	wantError(t, err, codes.NotFound, "nowhere")
}

func TestCrictlUpdates(t *testing.T) {
	if os.Getenv(crictlVariable) == "" {
		t.Skip("crictl is missing: test/e2e/tools/get crictl says why")
	}
	n := onNode(t)
	c := n.pod(t).sleeper(limitedAtFirst)
	crictl{t, n}.has([]string{c.id}, "update", "--cpu-share", "700", "--memory", fmt.Sprint(90<<20), c.id)
	if got := c.status().GetResources().GetLinux(); got.GetCpuShares() != 700 || got.GetMemoryLimitInBytes() != 90<<20 || got.GetCpuQuota() != 50000 {
		t.Errorf("after crictl update: got %v", got)
	}
	config := filepath.Join(t.TempDir(), "runtime.json")
	write(t, config, `{ "network_config": { "pod_cidr": "10.88.0.0/16" } }`)
	crictl{t, n}.run("update-runtime-config", config)
}
