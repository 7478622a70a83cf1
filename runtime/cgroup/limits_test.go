package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// needControllers skips where the limits can't be had at all.
func needControllers(t *testing.T, m *Manager, names ...string) {
	t.Helper()
	for _, n := range names {
		if !m.has(n) {
			t.Skipf("cgroup v%d without controller %s", m.version, n)
		}
	}
}

func TestSpinnerOverItsQuotaIsThrottled(t *testing.T) {
	m := newManager(t)
	needControllers(t, m, "cpu")
	ctx, path := testContext(t), groupName(t, m)
	err := m.Create(ctx, path, &specs.LinuxResources{CPU: &specs.LinuxCPU{
		Shares: p[uint64](1024), Quota: p[int64](3000), Period: p[uint64](100000)}}) // little enough for a busy machine
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	join(t, m, path, `exec `+os.Args[0], childRole+"=spin")
	// The time is counted at its end, and one look of a late timer counts many periods.
	waitFor(t, "throttled ten times", func() bool {
		s, err := m.Stats(path)
		return err == nil && s.CPUTimes.ThrottledPeriods >= 10 && s.CPUTimes.Throttled > 0 && s.CPUTimes.User > 0
	})
	s, err := m.Stats(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v, %+v after %v", s.CPU, s.CPUTimes, time.Since(begin))
	if times := s.CPUTimes; times.Throttled == 0 || s.CPU.Time == 0 || times.User == 0 || times.User+times.System > s.CPU.Time+20*time.Millisecond || times.Periods < times.ThrottledPeriods {
		t.Errorf("counters make no sense: %+v, %+v", s.CPU, times)
	}
	// Three hundredths of a CPU, with room for slices that the kernel hands out ahead.
	if most := time.Since(begin)/5 + 50*time.Millisecond; s.CPU.Time > most {
		t.Errorf("used %v of CPU, at most %v were allowed", s.CPU.Time, most)
	}
}

func TestAllocatorOverItsLimitIsKilled(t *testing.T) {
	m := newManager(t)
	needControllers(t, m, "memory")
	ctx, path := testContext(t), groupName(t, m)
	err := m.Create(ctx, path+"/c", &specs.LinuxResources{Memory: &specs.LinuxMemory{
		Limit: p[int64](48 << 20), Swap: p[int64](48 << 20)}})
	if err != nil {
		t.Fatal(err)
	}
	if before, err := m.OOM(path + "/c"); err != nil || before.Kills != 0 {
		t.Fatalf("before: %+v, %v", before, err)
	}
	cmd, _ := join(t, m, path+"/c", `exec `+os.Args[0], childRole+"=allocate")
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the allocator ended with %v, want a kill", err)
	}
	oom, err := m.OOM(path + "/c")
	if err != nil || oom.Kills == 0 || oom.KillsLocal == 0 {
		t.Errorf("after: %+v, %v", oom, err)
	}
	if limit := oom.Limit; limit.Bytes != 48<<20 || limit.Hits == 0 && !limit.AtPeak {
		t.Errorf("the limit: %+v, want 48 MiB, reached", limit)
	}
	if limit, err := m.MemoryLimit(path); err != nil || limit.Bytes != NoLimit || limit.Hits != 0 || limit.AtPeak {
		t.Errorf("the limit of the group above: %+v, %v, want none, never reached", limit, err)
	}
	above, err := m.OOM(path)
	if err != nil || above.Kills == 0 || above.KillsLocal != 0 {
		t.Errorf("the group above: %+v, %v; want kills below it only", above, err)
	}
	s, err := m.Stats(path + "/c")
	if err != nil || s.Memory.LimitBytes != 48<<20 || s.Detail.PeakBytes < 40<<20 || s.Detail.OOMKills == 0 {
		t.Errorf("statistics %+v, %v", s, err)
	}
}

func TestPidsLimitStopsForks(t *testing.T) {
	m := newManager(t)
	needControllers(t, m, "pids")
	ctx, path := testContext(t), groupName(t, m)
	if err := m.Create(ctx, path, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p[int64](5)}}); err != nil {
		t.Fatal(err)
	}
	cmd, _ := join(t, m, path, `exec 2>/dev/null; for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done`)
	if err := cmd.Wait(); err == nil {
		t.Error("the shell forked eight times under a limit of five")
	}
	s, err := m.Stats(path)
	if err != nil || s.Pids.Limit != 5 || s.Pids.Current == 0 || s.Pids.Current > 5 {
		t.Errorf("statistics %+v, %v", s, err)
	}
}

// limitFiles are the values that an update may change, by version.
func limitFiles(t *testing.T, m *Manager, path string) string {
	t.Helper()
	files := [][2]string{{"memory", "memory.limit_in_bytes"}, {"memory", "memory.memsw.limit_in_bytes"},
		{"cpu", "cpu.shares"}, {"cpu", "cpu.cfs_quota_us"}, {"cpu", "cpu.cfs_period_us"},
		{"cpuset", "cpuset.cpus"}, {"cpuset", "cpuset.mems"}, {"pids", "pids.max"}}
	if m.version == 2 {
		files = [][2]string{{"memory", "memory.max"}, {"cpu", "cpu.weight"}, {"cpu", "cpu.max"},
			{"cpuset", "cpuset.cpus"}, {"cpuset", "cpuset.mems"}, {"pids", "pids.max"}}
	}
	var out []string
	for _, f := range files {
		out = append(out, f[1]+"="+readFile(t, m, f[0], path, f[1]))
	}
	return strings.Join(out, " ")
}

func TestUpdateChangesOnlyWhatItNames(t *testing.T) { // B57
	m := newManager(t)
	needControllers(t, m, "cpu", "cpuset", "memory", "pids")
	ctx, path := testContext(t), groupName(t, m)
	err := m.Create(ctx, path, &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: p[uint64](512), Quota: p[int64](50000), Period: p[uint64](100000)},
		Memory: &specs.LinuxMemory{Limit: p[int64](64 << 20)}, Pids: &specs.LinuxPids{Limit: p[int64](77)},
	})
	if err != nil {
		t.Fatal(err)
	}
	before := limitFiles(t, m, path)
	if err := m.Update(ctx, path, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}}); err != nil {
		t.Fatal(err)
	}
	after := limitFiles(t, m, path)
	if readFile(t, m, "cpuset", path, "cpuset.cpus") != "0" {
		t.Errorf("cpuset was not set: %s", after)
	}
	field := func(s string) string {
		var keep []string
		for _, f := range strings.Fields(s) {
			if !strings.HasPrefix(f, "cpuset.cpus=") {
				keep = append(keep, f)
			}
		}
		return strings.Join(keep, " ")
	}
	if field(before) != field(after) {
		t.Errorf("an update of cpuset changed others:\nbefore %s\nafter  %s", before, after)
	}
	for _, step := range []*specs.LinuxResources{ // down, up, unlimited: every order the kernel checks
		{Memory: &specs.LinuxMemory{Limit: p[int64](32 << 20), Swap: p[int64](32 << 20)}},
		{Memory: &specs.LinuxMemory{Limit: p[int64](128 << 20), Swap: p[int64](128 << 20)}},
		{Memory: &specs.LinuxMemory{Limit: p[int64](-1)}},
		{CPU: &specs.LinuxCPU{Quota: p[int64](10000), Period: p[uint64](20000)}},
		{CPU: &specs.LinuxCPU{Quota: p[int64](-1)}},
		{Pids: &specs.LinuxPids{Limit: p[int64](-1)}},
	} {
		if err := m.Update(ctx, path, step); err != nil {
			t.Errorf("update %+v: %v", step, err)
		}
	}
}

func TestUpdateBelowUsageKeepsTheOldLimits(t *testing.T) { // B58
	m := newManager(t)
	needControllers(t, m, "cpu", "memory", "pids")
	ctx, path := testContext(t), groupName(t, m)
	err := m.Create(ctx, path, &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: p[uint64](512)},
		Memory: &specs.LinuxMemory{Limit: p[int64](256 << 20), Swap: p[int64](256 << 20)},
		Pids:   &specs.LinuxPids{Limit: p[int64](77)},
	})
	if err != nil {
		t.Fatal(err)
	}
	join(t, m, path, `exec `+os.Args[0], childRole+"=hold")
	waitFor(t, "60 MB in use", func() bool {
		s, err := m.Stats(path)
		return err == nil && s.Memory.WorkingSetBytes > 60<<20
	})
	before := limitFiles(t, m, path)
	err = m.Update(ctx, path, &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: p[uint64](1024)},
		Memory: &specs.LinuxMemory{Limit: p[int64](8 << 20), Swap: p[int64](8 << 20)},
		Pids:   &specs.LinuxPids{Limit: p[int64](88)},
	})
	if !errors.Is(err, ErrBelowUsage) {
		t.Errorf("got %v, want ErrBelowUsage", err)
	}
	if after := limitFiles(t, m, path); after != before {
		t.Errorf("limits changed:\nbefore %s\nafter  %s", before, after)
	}
	if oom, err := m.OOM(path); err != nil || oom.Kills != 0 {
		t.Errorf("the refused update killed: %+v, %v", oom, err)
	}
}

func TestUpdateRollsBackWhatWasWritten(t *testing.T) { // B58
	m := newManager(t)
	needControllers(t, m, "cpu", "cpuset", "memory", "pids")
	ctx, path := testContext(t), groupName(t, m)
	err := m.Create(ctx, path, &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: p[uint64](512), Quota: p[int64](50000), Period: p[uint64](100000)},
		Memory: &specs.LinuxMemory{Limit: p[int64](64 << 20)}, Pids: &specs.LinuxPids{Limit: p[int64](77)},
	})
	if err != nil {
		t.Fatal(err)
	}
	before := limitFiles(t, m, path)
	g, err := m.group(path)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := compile(&specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: p[uint64](1024), Quota: p[int64](70000), Period: p[uint64](10000), Cpus: "0"},
		Memory: &specs.LinuxMemory{Limit: p[int64](32 << 20)}, Pids: &specs.LinuxPids{Limit: p[int64](5)},
	}, m.host(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}}), g.present())
	if err != nil {
		t.Fatal(err)
	}
	// What no check foresees: the kernel refuses the last write.
	plan.writes = append(plan.writes, write{Controller: "pids", File: "pids.max", Value: "-7"})
	err = g.apply(plan, false)
	var value *ValueError
	if !errors.As(err, &value) || value.File != "pids.max" || value.Value != "-7" {
		t.Errorf("got %v, want a ValueError of pids.max=-7", err)
	}
	if after := limitFiles(t, m, path); after != before {
		t.Errorf("not rolled back:\nbefore %s\nafter  %s", before, after)
	}
}

func TestUnifiedIsRefusedOnV1(t *testing.T) {
	m := newManager(t)
	if m.version != 1 {
		t.Skip("this host has cgroup v2")
	}
	err := m.Create(testContext(t), groupName(t, m), &specs.LinuxResources{Unified: map[string]string{"memory.high": "max"}})
	if !errors.Is(err, ErrNotSupported) || !strings.Contains(fmt.Sprint(err), "memory.high") {
		t.Errorf("got %v, want ErrNotSupported naming memory.high", err)
	}
}

func TestUnifiedIsWrittenAndResetOnV2(t *testing.T) {
	m := newManager(t)
	if m.version != 2 {
		t.Skip("this host has cgroup v1")
	}
	needControllers(t, m, "memory", "hugetlb", "cpu")
	ctx, path := testContext(t), groupName(t, m)
	err := m.Create(ctx, path+"/c", &specs.LinuxResources{
		Memory:         &specs.LinuxMemory{Limit: p[int64](64 << 20), Swap: p[int64](96 << 20)},
		CPU:            &specs.LinuxCPU{Shares: p[uint64](102), Period: p[uint64](50000)},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}, {Pagesize: "16GB"}},
		Unified:        map[string]string{"memory.high": "33554432", "memory.oom.group": "1", "memory.min": "4096"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"memory.max": "67108864", "memory.swap.max": "33554432", "memory.high": "33554432", "memory.oom.group": "1",
		"memory.min": "4096", "cpu.weight": "17", "cpu.max": "max 50000",
		"hugetlb.2MB.max": "4194304", "hugetlb.2MB.rsvd.max": "4194304",
	}
	check := func() {
		t.Helper()
		for file, value := range want {
			if got := readFile(t, m, "memory", path+"/c", file); got != value {
				t.Errorf("%s is %q, want %q", file, got, value)
			}
		}
	}
	check()
	// The second of the two fails, so the first is taken back (B58).
	err = m.Update(ctx, path+"/c", &specs.LinuxResources{Unified: map[string]string{"memory.high": "max", "memory.min": "rubbish"}})
	if !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
	check()
	if err := m.Update(ctx, path+"/c", &specs.LinuxResources{Unified: map[string]string{"memory.high": "max"}}); err != nil {
		t.Fatal(err)
	}
	want["memory.high"] = "max"
	check()
}
