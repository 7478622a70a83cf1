package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/prototext"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *container) stats() *criv1.ContainerStats {
	c.p.t.Helper()
	resp, err := c.p.n.ContainerStats(ctx(c.p.t), &criv1.ContainerStatsRequest{ContainerId: c.id})
	if err != nil {
		c.p.t.Fatal(err)
	}
	return resp.GetStats()
}

func (p *pod) stats() *criv1.PodSandboxStats {
	p.t.Helper()
	resp, err := p.n.PodSandboxStats(ctx(p.t), &criv1.PodSandboxStatsRequest{PodSandboxId: p.id})
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.GetStats()
}

// fresh fails the test unless a figure is of the last second.
func fresh(t *testing.T, what string, timestamp int64) {
	t.Helper()
	if age := time.Since(time.Unix(0, timestamp)); age < 0 || age > patient(time.Second) {
		t.Errorf("%s is %v old, want at most %v", what, age, patient(time.Second))
	}
}

// A loop is seen in the processor's figures, what a program holds in those of memory, and what it writes in the layer's.
func TestStatsSeeWhatAContainerUses(t *testing.T) {
	n := onNode(t)
	for name, change := range map[string]func(*criv1.PodSandboxConfig){"pod": func(*criv1.PodSandboxConfig) {}, "pod with a user namespace": ownUser} {
		t.Run(name, func(t *testing.T) {
			p := n.pod(t, change)
			c := p.start(func(c *criv1.ContainerConfig) {
				c.Linux.Resources.MemoryLimitInBytes = 512 << 20
				c.Labels, c.Annotations = map[string]string{"l": "1"}, map[string]string{"a": "2"}
			}, "sh", "-c", "x=$(head -c 30000000 /dev/zero | tr '\\0' x); echo ready; while [ ! -e /enough ]; do :; done; sleep 1000")
			eventually(t, 30*time.Second, "start", func() bool { return c.stream("stdout") == "ready\n" })
			one := c.stats()
			if a := one.GetAttributes(); a.GetId() != c.id || a.GetMetadata().GetName() != c.config.GetMetadata().GetName() || a.GetLabels()["l"] != "1" || a.GetAnnotations()["a"] != "2" {
				t.Errorf("attributes: got %v", a)
			}
			c.checkUse(t, one)
			c.checkLayer(t)
			c.exec("touch", "/enough")
			eventually(t, 5*time.Second, "end of the loop in the figures", func() bool { return c.stats().GetCpu().GetUsageNanoCores().GetValue() < 100_000_000 })
		})
	}
}

// checkUse is of a loop that holds 30 MB.
func (c *container) checkUse(t *testing.T, one *criv1.ContainerStats) {
	t.Helper()
	fresh(t, "use of the processor", one.GetCpu().GetTimestamp())
	fresh(t, "use of memory", one.GetMemory().GetTimestamp())
	began := time.Now()
	var two *criv1.ContainerStats
	eventually(t, 20*time.Second, "200 ms of the loop", func() bool {
		two = c.stats()
		return two.GetCpu().GetUsageCoreNanoSeconds().GetValue() > one.GetCpu().GetUsageCoreNanoSeconds().GetValue()+200_000_000
	})
	used, passed := two.GetCpu().GetUsageCoreNanoSeconds().GetValue()-one.GetCpu().GetUsageCoreNanoSeconds().GetValue(), time.Since(began)
	// The kernel may be behind with what it counts, and an emulated one is.
	if used > uint64(passed+patient(150*time.Millisecond)) {
		t.Errorf("one loop used %v in %v", time.Duration(used), passed)
	}
	// Before the loop there was a pipeline, whose programs ran side by side.
	eventually(t, 20*time.Second, "one processor's use per second", func() bool {
		rate := c.stats().GetCpu().GetUsageNanoCores().GetValue()
		return rate >= 20_000_000 && rate <= 1_100_000_000
	})
	m := two.GetMemory()
	// A fault may bring a huge page.
	if rss := m.GetRssBytes().GetValue(); rss < 30_000_000 || rss > 100_000_000 || m.GetUsageBytes().GetValue() < rss || m.GetWorkingSetBytes().GetValue() < rss ||
		m.GetAvailableBytes().GetValue() != 512<<20-m.GetWorkingSetBytes().GetValue() || m.GetPageFaults().GetValue() < 100 || m.GetMajorPageFaults() == nil {
		t.Errorf("memory of a program that holds 30 MB of 512: got %s", prototext.Format(m))
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil { // v1
		if two.GetCpu().GetPsi() != nil || m.GetPsi() != nil || two.GetIo() != nil {
			t.Errorf("pressure on cgroup v1: got %v, %v, %v, want none", two.GetCpu().GetPsi(), m.GetPsi(), two.GetIo())
		}
	} else if _, err := os.Stat("/proc/pressure/cpu"); err == nil && (two.GetCpu().GetPsi() == nil || m.GetPsi() == nil || two.GetIo().GetPsi() == nil) {
		t.Errorf("no pressure on cgroup v2: got %s", prototext.Format(two))
	}
}

// checkLayer writes 100 MB, and removes them. What is a link counts as a link.
func (c *container) checkLayer(t *testing.T) {
	t.Helper()
	layer := func() *criv1.FilesystemUsage { return c.stats().GetWritableLayer() }
	dir := c.p.n.path("state", "containers")
	if got := layer().GetFsId().GetMountpoint(); got != dir {
		t.Errorf("mountpoint: got %s, want %s", got, dir)
	}
	c.exec("sh", "-c", "ln -s / /rootlink; ln -s /proc /proclink; mkfifo /fifo; mkdir -p /a/b/c; ln -s .. /a/up")
	eventually(t, 3*time.Second, "count of an almost empty layer", func() bool { return layer().GetInodesUsed().GetValue() >= 7 })
	before := layer().GetUsedBytes().GetValue()
	if before > 1<<20 {
		t.Errorf("an almost empty layer: got %d bytes", before)
	}
	c.exec("dd", "if=/dev/zero", "of=/big", "bs=1M", "count=100")
	written := time.Now()
	eventually(t, 5*time.Second, "100 MB", func() bool { return layer().GetUsedBytes().GetValue() >= before+100<<20 })
	if took := time.Since(written); took > patient(2*time.Second) {
		t.Errorf("100 MB were seen after %v, want about a second", took)
	}
	fresh(t, "the layer's count", layer().GetTimestamp())
	if used := layer().GetUsedBytes().GetValue(); used > before+110<<20 {
		t.Errorf("100 MB were counted as %d", used)
	}
	c.exec("rm", "/big")
	eventually(t, 5*time.Second, "100 MB less", func() bool { return layer().GetUsedBytes().GetValue() < before+1<<20 })
}

func TestPodStatsCarryNetworkAndContainers(t *testing.T) {
	n := onNode(t)
	p := n.pod(t, ownNetwork, podPID, func(c *criv1.PodSandboxConfig) { c.Labels = map[string]string{"l": "1"} })
	a, b := p.sleeper(nil), p.start(nil, "sh", "-c", "sleep 1000 & sleep 1000 & wait")
	ended, created := p.start(nil, "true"), p.create(nil, "true")
	ended.wait(10 * time.Second)
	f := p.forward(8000)
	p.server("127.0.0.1:8000", "echo")
	f.talk(t, 8000, "lo is none of the pod's interfaces")
	a.tryExec(5, "nc", "-w", "1", "10.88.0.1", "9") // nobody answers there but the bridge

	one := p.stats()
	if at := one.GetAttributes(); at.GetId() != p.id || at.GetMetadata().GetUid() != p.config.GetMetadata().GetUid() || at.GetLabels()["l"] != "1" {
		t.Errorf("attributes: got %v", at)
	}
	linux := one.GetLinux()
	eth0 := linux.GetNetwork().GetDefaultInterface()
	if eth0.GetName() != "eth0" || eth0.GetRxBytes().GetValue() == 0 || eth0.GetTxBytes().GetValue() == 0 || eth0.GetRxErrors() == nil || len(linux.GetNetwork().GetInterfaces()) != 0 {
		t.Errorf("network: got %s", prototext.Format(linux.GetNetwork()))
	}
	fresh(t, "the network", linux.GetNetwork().GetTimestamp())
	var ids []string
	for _, c := range linux.GetContainers() {
		ids = append(ids, c.GetAttributes().GetId())
		if c.GetCpu() == nil || c.GetMemory() == nil || c.GetWritableLayer() == nil {
			t.Errorf("got %s", prototext.Format(c))
		}
	}
	if len(ids) != 3 || ids[2] != a.id || ids[1] != b.id || strings.Contains(strings.Join(ids, " "), ended.id) || strings.Contains(strings.Join(ids, " "), created.id) {
		t.Errorf("containers: got %v, want the three that run, newest first", ids)
	}
	// a sleep, a shell with two, the server, and the pod's first process.
	if got := linux.GetProcess().GetProcessCount().GetValue(); got != 6 {
		t.Errorf("processes: got %d, want 6", got)
	}
	if linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || linux.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("the pod's own: got %v, %v", linux.GetCpu(), linux.GetMemory())
	}
	if host := n.pod(t).stats().GetLinux(); host.GetNetwork() != nil {
		t.Errorf("a pod on the node's network: got %v, want no network of its own", host.GetNetwork())
	}
}

// What does not run uses nothing but its layer, and is in no list.
func TestStatsOfWhatDoesNotRun(t *testing.T) {
	n := onNode(t)
	p := n.pod(t, ownNetwork)
	created, ended := p.create(nil, "true"), p.start(nil, "sh", "-c", "dd if=/dev/zero of=/file bs=1M count=5")
	ended.wait(20 * time.Second)
	eventually(t, 5*time.Second, "size of the layer that was left", func() bool { return ended.stats().GetWritableLayer().GetUsedBytes().GetValue() >= 5<<20 })
	for name, c := range map[string]*container{"created": created, "ended": ended} {
		if s := c.stats(); s.GetAttributes().GetId() != c.id || s.GetCpu() != nil || s.GetMemory() != nil || s.GetSwap() != nil || s.GetWritableLayer().GetTimestamp() == 0 {
			t.Errorf("%s: got %s", name, prototext.Format(s))
		}
	}
	resp, err := n.ListContainerStats(ctx(t), &criv1.ListContainerStatsRequest{Filter: &criv1.ContainerStatsFilter{PodSandboxId: p.id}})
	if err != nil || len(resp.GetStats()) != 0 {
		t.Errorf("listed: got %v, %v, want none", resp.GetStats(), err)
	}
	if linux := p.stats().GetLinux(); linux.GetCpu() == nil || len(linux.GetContainers()) != 0 || linux.GetProcess().GetProcessCount().GetValue() != 0 {
		t.Errorf("a pod in which nothing runs: got %s", prototext.Format(linux))
	}
	if _, err := n.StopPodSandbox(ctx(t), &criv1.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	if s := p.stats(); s.GetAttributes().GetId() != p.id || s.GetLinux().GetCpu() != nil || s.GetLinux().GetNetwork() != nil {
		t.Errorf("a stopped pod: got %s", prototext.Format(s))
	}
	pods, err := n.ListPodSandboxStats(ctx(t), &criv1.ListPodSandboxStatsRequest{Filter: &criv1.PodSandboxStatsFilter{Id: p.id}})
	if err != nil || len(pods.GetStats()) != 0 {
		t.Errorf("listed: got %v, %v, want no stopped pod", pods.GetStats(), err)
	}
}

func TestStatsOfUnknownIDsAreNotFoundB2(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	c := p.sleeper(nil)
	for _, id := range []string{"", "no-such-id", strings.Repeat("0", 64), p.id + "0"} {
		_, err := n.ContainerStats(ctx(t), &criv1.ContainerStatsRequest{ContainerId: id})
		wantError(t, err, codes.NotFound, fmt.Sprintf("container %q", id))
		_, err = n.PodSandboxStats(ctx(t), &criv1.PodSandboxStatsRequest{PodSandboxId: id})
		wantError(t, err, codes.NotFound, fmt.Sprintf("sandbox %q", id))
	}
	// A prefix serves, as crictl's short ids need (B6).
	if resp, err := n.ContainerStats(ctx(t), &criv1.ContainerStatsRequest{ContainerId: c.id[:13]}); err != nil || resp.GetStats().GetAttributes().GetId() != c.id {
		t.Errorf("by prefix: got %v, %v", resp, err)
	}
	if resp, err := n.PodSandboxStats(ctx(t), &criv1.PodSandboxStatsRequest{PodSandboxId: p.id[:13]}); err != nil || resp.GetStats().GetAttributes().GetId() != p.id {
		t.Errorf("by prefix: got %v, %v", resp, err)
	}
}

// Lists and streams give the same; the parts of a filter are joined by AND.
func TestStatsAreFilteredAndStreamed(t *testing.T) {
	n := onNode(t)
	labelled := func(c *criv1.ContainerConfig) { c.Labels = map[string]string{"color": "red", "size": "s"} }
	p, q := n.pod(t, func(c *criv1.PodSandboxConfig) { c.Labels = map[string]string{"color": "red"} }), n.pod(t)
	red, plain, other := p.sleeper(labelled), p.sleeper(nil), q.sleeper(labelled)
	names := map[string]string{red.id: "red", plain.id: "plain", other.id: "other", p.id: "p", q.id: "q"}

	for _, test := range []struct {
		filter *criv1.ContainerStatsFilter
		want   string
	}{
		{nil, "other plain red"}, {&criv1.ContainerStatsFilter{}, "other plain red"},
		{&criv1.ContainerStatsFilter{Id: red.id}, "red"}, {&criv1.ContainerStatsFilter{Id: red.id[:20]}, "red"},
		{&criv1.ContainerStatsFilter{PodSandboxId: p.id}, "plain red"}, {&criv1.ContainerStatsFilter{PodSandboxId: p.id[:20], LabelSelector: red.config.Labels}, "red"},
		{&criv1.ContainerStatsFilter{LabelSelector: map[string]string{"color": "red"}}, "other red"},
		{&criv1.ContainerStatsFilter{LabelSelector: map[string]string{"color": "blue"}}, ""}, {&criv1.ContainerStatsFilter{Id: red.id, PodSandboxId: q.id}, ""},
	} {
		resp, err := n.ListContainerStats(ctx(t), &criv1.ListContainerStatsRequest{Filter: test.filter})
		if err != nil {
			t.Fatal(err)
		}
		stream, err := n.StreamContainerStats(ctx(t), &criv1.StreamContainerStatsRequest{Filter: test.filter})
		streamed, _ := collect(t, stream, err, (*criv1.StreamContainerStatsResponse).GetContainerStats)
		for how, list := range map[string][]*criv1.ContainerStats{"listed": resp.GetStats(), "streamed": streamed} {
			var got []string
			for _, s := range list {
				got = append(got, names[s.GetAttributes().GetId()])
				if s.GetCpu().GetTimestamp() == 0 || s.GetMemory().GetTimestamp() == 0 {
					t.Errorf("%s %v: got %s", how, test.filter, prototext.Format(s))
				}
			}
			if text := strings.Join(got, " "); text != test.want {
				t.Errorf("%s %v: got %q, want %q", how, test.filter, text, test.want)
			}
		}
	}
	for _, test := range []struct {
		filter *criv1.PodSandboxStatsFilter
		want   string
	}{
		{nil, "q p"}, {&criv1.PodSandboxStatsFilter{Id: q.id[:20]}, "q"}, {&criv1.PodSandboxStatsFilter{LabelSelector: map[string]string{"color": "red"}}, "p"},
		{&criv1.PodSandboxStatsFilter{Id: q.id, LabelSelector: map[string]string{"color": "red"}}, ""},
	} {
		resp, err := n.ListPodSandboxStats(ctx(t), &criv1.ListPodSandboxStatsRequest{Filter: test.filter})
		if err != nil {
			t.Fatal(err)
		}
		stream, err := n.StreamPodSandboxStats(ctx(t), &criv1.StreamPodSandboxStatsRequest{Filter: test.filter})
		streamed, _ := collect(t, stream, err, (*criv1.StreamPodSandboxStatsResponse).GetPodSandboxStats)
		for how, list := range map[string][]*criv1.PodSandboxStats{"listed": resp.GetStats(), "streamed": streamed} {
			var got []string
			for _, s := range list {
				got = append(got, names[s.GetAttributes().GetId()])
			}
			if text := strings.Join(got, " "); text != test.want {
				t.Errorf("%s %v: got %q, want %q", how, test.filter, text, test.want)
			}
		}
	}
}

// A group that the kubelet made for the pod counts what has ended as well.
func TestPodStatsAreOfThePodsOwnGroup(t *testing.T) {
	n := onNode(t)
	config := n.podConfig()
	parent := n.group + "/pod" + config.GetMetadata().GetUid()
	t.Cleanup(func() { n.removeGroups(parent) })
	p := n.pod(t, func(c *criv1.PodSandboxConfig) { c.Metadata, c.Linux.CgroupParent = config.Metadata, parent })
	c := p.start(nil, "sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")
	c.wait(time.Minute)
	c.remove()
	if used := p.stats().GetLinux().GetCpu().GetUsageCoreNanoSeconds().GetValue(); used < 20_000_000 {
		t.Errorf("after a loop that ended and was removed: got %v, want its time", time.Duration(used))
	}
}

// The daemon works for nobody: some seconds after the last question it is as quiet as before.
func TestStatisticsCostNothingWhileNobodyAsks(t *testing.T) {
	n := ownNode(t, options{})
	for range 5 {
		p := n.pod(t, ownNetwork)
		p.sleeper(nil)
	}
	for range 20 {
		if _, err := n.ListPodSandboxStats(ctx(t), &criv1.ListPodSandboxStatsRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	const window = 5 * time.Second
	used := func() time.Duration {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.daemon.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+2:]))
		var user, system time.Duration
		if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
			t.Fatal(err)
		}
		return (user + system) * 10 * time.Millisecond
	}
	least := window
	eventually(t, time.Minute, "five quiet seconds", func() bool {
		before := used()
		time.Sleep(window)
		least = min(least, used()-before)
		return least <= 20*time.Millisecond
	})
	t.Logf("%v in %v", least, window)
}

// Statistics need nothing that a restart loses, and a killed daemon leaves nothing behind of a count.
func TestStatsGoOnAfterADaemonThatWasKilled(t *testing.T) {
	n := ownNode(t, options{})
	p := n.pod(t, ownNetwork)
	c := p.start(nil, "sh", "-c", "mkdir /d; i=0; while [ $i -lt 20000 ]; do echo > /d/$i; i=$((i+1)); done; echo done; sleep 1000")
	eventually(t, time.Minute, "20000 files", func() bool { return c.stream("stdout") == "done\n" })
	before := c.stats()
	n.restart(t, unix.SIGKILL, func() {})
	after := c.stats()
	if was, is := before.GetCpu().GetUsageCoreNanoSeconds().GetValue(), after.GetCpu().GetUsageCoreNanoSeconds().GetValue(); was == 0 || is < was {
		t.Errorf("processor time: got %d after %d", is, was)
	}
	if p.stats().GetLinux().GetNetwork().GetDefaultInterface().GetName() != "eth0" {
		t.Error("no network after the restart")
	}
	// More files than are counted at once: aside, slowly, and seen to the end.
	eventually(t, 30*time.Second, "count of 20000 files", func() bool { return c.stats().GetWritableLayer().GetInodesUsed().GetValue() >= 20000 })
}

// A container that changes its layer all the time, and as nastily as it can, costs its own figures at most.
func TestStatsBesideAHostileLayer(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	hostile := p.start(nil, "sh", "-c", `while :; do mkdir -p /x/y/z; : > /x/y/z/f; mv /x /w; ln -s / /x; mkfifo /w/y/p; rm -rf /w; rm -f /x; done`)
	good := p.start(nil, "sh", "-c", "dd if=/dev/zero of=/file bs=1M count=3; sleep 1000")
	hostile.stats()
	eventually(t, 10*time.Second, "figures of both", func() bool {
		return good.stats().GetWritableLayer().GetUsedBytes().GetValue() >= 3<<20 && hostile.stats().GetWritableLayer().GetUsedBytes() != nil
	})
	for range 20 {
		time.Sleep(100 * time.Millisecond)
		if used := hostile.stats().GetWritableLayer(); used.GetUsedBytes().GetValue() > 1<<20 || used.GetInodesUsed().GetValue() > 100 {
			t.Fatalf("a few empty files: got %v", used)
		}
		fresh(t, "the other's count", good.stats().GetWritableLayer().GetTimestamp())
	}
}

// Many who ask at once, and leave before they have an answer, keep nothing open.
func TestStatsForManyWhoLeave(t *testing.T) {
	n := onNode(t)
	n.pod(t, ownNetwork).sleeper(nil)
	files := func() int {
		names, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", n.daemon.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	if _, err := n.ListPodSandboxStats(ctx(t), &criv1.ListPodSandboxStatsRequest{}); err != nil {
		t.Fatal(err)
	}
	before := files()
	done := make(chan error)
	for i := range 64 {
		// Owner: the test, which waits for all.
		go func() {
			for j := range 20 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i*j%7+1)*time.Millisecond)
				n.ListPodSandboxStats(ctx, &criv1.ListPodSandboxStatsRequest{})
				n.ListContainerStats(ctx, &criv1.ListContainerStatsRequest{})
				cancel()
			}
			done <- nil
		}()
	}
	for range 64 {
		<-done
	}
	eventually(t, 10*time.Second, "as many descriptors as before", func() bool { return files() <= before+1 })
	if resp, err := n.ListPodSandboxStats(ctx(t), &criv1.ListPodSandboxStatsRequest{}); err != nil || len(resp.GetStats()) == 0 {
		t.Errorf("afterwards: got %v, %v", resp, err)
	}
}
