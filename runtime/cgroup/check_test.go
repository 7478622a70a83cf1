package cgroup

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/podwright/podwright/runtime/sys"
)

func TestSameLimitIsAsTheKernelWritesIt(t *testing.T) {
	for _, c := range []struct {
		controller, file, asked, got string
		same                         bool
	}{
		{"memory", "memory.max", "1000000", "999424", true}, // whole pages
		{"memory", "memory.max", "1000000", "1003520", false},
		{"memory", "memory.max", "max", "1003520", false},
		{"memory", "memory.limit_in_bytes", "-1", "9223372036854771712", true},
		{"memory", "memory.limit_in_bytes", "1048576", "9223372036854771712", false},
		{"memory", "memory.swappiness", "60", "10", false},
		{"memory", "memory.oom_control", "1", "oom_kill_disable 1\nunder_oom 0\noom_kill 0", true},
		{"memory", "memory.oom_control", "1", "oom_kill_disable 0\nunder_oom 0\noom_kill 0", false},
		{"hugetlb", "hugetlb.2MB.max", "3000000", "2097152", true},
		{"hugetlb", "hugetlb.2MB.max", "0", "max", false},
		{"pids", "pids.max", "max", "max", true},
		{"pids", "pids.max", "100", "101", false},
		{"cpu", "cpu.max", "max", "max 100000", true},
		{"cpu", "cpu.max", "5000 50000", "5000 100000", false},
		{"cpu", "cpu.cfs_quota_us", "-1", "-1", true},
		{"cpu", "cpu.cfs_quota_us", "5000", "-1", false},
		{"cpuset", "cpuset.cpus", "0,1,2", "0-2", true},
		{"cpuset", "cpuset.cpus", "0", "0-2", false},
		{"cpuset", "cpuset.cpus", "0-2", "0", false},
		{"io", "io.max", "8:0 rbps=1", "8:0 rbps=2", false},
		{"io", "io.max", "8:0 rbps=1", "8:16 rbps=2 wbps=max\n8:0 rbps=1 wbps=max riops=max wiops=max", true},
		{"io", "io.max", "8:0 rbps=1", "8:16 rbps=1 wbps=max riops=max wiops=max", false},
		{"io", "io.max", "8:0 rbps=max wbps=max", "", true},
		{"io", "io.weight", "default 5", "default 5\n8:0 7", true},
		{"io", "io.weight", "5", "default 5", true},
		{"io", "io.weight", "8:0 7", "default 7", false},
		{"cpu", "cpu.idle", "1", "0", false},
	} {
		if same := sameLimit(write{Controller: c.controller, File: c.file, Value: c.asked}, c.got, 4096); same != c.same {
			t.Errorf("%s %q against %q: same %v, want %v", c.file, c.asked, c.got, same, c.same)
		}
	}
}

func TestEveryLineOfAFileIsChecked(t *testing.T) {
	got := lastWrites([]write{
		{Controller: "io", File: "io.max", Value: "8:0 rbps=1"}, {Controller: "io", File: "io.max", Value: "8:0 wbps=2"},
		{Controller: "io", File: "io.max", Value: "8:16 rbps=3"}, {Controller: "io", File: "io.max", Value: "8:0 rbps=4"},
		{Controller: "cpu", File: "cpu.max", Value: "1000 10000"}, {Controller: "cpu", File: "cpu.max", Value: "2000 20000"},
	})
	var values []string
	for _, w := range got {
		values = append(values, w.Value)
	}
	if want := []string{"8:0 wbps=2", "8:16 rbps=3", "8:0 rbps=4", "2000 20000"}; !slices.Equal(values, want) {
		t.Errorf("got %q, want %q", values, want)
	}
}

func TestCheckFindsWhatIsNotEnforced(t *testing.T) {
	m := newManager(t)
	needControllers(t, m, "cpu", "memory", "pids")
	if m.version == 1 {
		needControllers(t, m, "devices")
	}
	ctx, path := testContext(t), groupName(t, m)
	res := &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: p[uint64](102), Quota: p[int64](5000), Period: p[uint64](50000)},
		Memory: &specs.LinuxMemory{Limit: p[int64](64<<20 + 5)}, Pids: &specs.LinuxPids{Limit: p[int64](77)},
		Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "c", Major: p[int64](1), Minor: p[int64](3), Access: "rwm"}},
	}
	if err := m.Create(ctx, path, res); err != nil {
		t.Fatal(err)
	}
	differing := func() (list []string) {
		readings, err := Check(m, path, res)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range readings {
			if r.Asked == "" || r.Enforced == "" {
				t.Errorf("got %+v", r)
			}
			if r.Differs {
				list = append(list, r.Limit)
			}
		}
		return list
	}
	if got := differing(); len(got) != 0 {
		t.Errorf("nothing was changed, and %v differ", got)
	}
	g, err := m.group(path)
	if err != nil {
		t.Fatal(err)
	}
	dir, _ := g.dir("pids")
	if err := sys.WriteKernelFile(filepath.Join(dir, "pids.max"), "max"); err != nil {
		t.Fatal(err)
	}
	if err := m.Update(ctx, path, &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}); err != nil {
		t.Fatal(err)
	}
	if got := differing(); !slices.Equal(got, []string{"pids.max", "devices"}) {
		t.Errorf("%v differ, want pids.max and devices", got)
	}
}
