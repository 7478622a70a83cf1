package cgroup

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func p[T any](v T) *T { return &v }

func v1Host() host {
	return host{
		version: 1, controllers: []string{"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids"},
		memsw: true, cpus: "0-3", mems: "0", pageSize: 4096,
	}
}

func v2Host() host {
	return host{
		version: 2, controllers: []string{"cpu", "cpuset", "hugetlb", "io", "memory", "pids"},
		hugePages: []string{"2MB", "1GB"}, cpus: "0-3", mems: "0", pageSize: 4096,
	}
}

func weighted(major, minor int64, weight uint16) (d specs.LinuxWeightDevice) {
	d.Major, d.Minor, d.Weight = major, minor, &weight
	return d
}

func throttled(major, minor int64, rate uint64) []specs.LinuxThrottleDevice {
	d := specs.LinuxThrottleDevice{Rate: rate}
	d.Major, d.Minor = major, minor
	return []specs.LinuxThrottleDevice{d}
}

func (w write) text() string {
	s := w.File + "=" + w.Value
	if w.Optional {
		s += "?"
	}
	return s
}

func TestSharesToWeightMapsTheFieldsCurve(t *testing.T) {
	for shares, want := range map[uint64]uint64{
		0: 0, 1: 1, 2: 1, 3: 2, 10: 4, 51: 11, 102: 17, 512: 59, 1024: 100, 2048: 174, 10240: 639,
		262143: 10000, 262144: 10000, math.MaxUint64: 10000,
	} {
		if got := SharesToWeight(shares); got != want {
			t.Errorf("SharesToWeight(%d) = %d, want %d", shares, got, want)
		}
	}
	last := uint64(0)
	for shares := uint64(2); shares <= maxShares; shares++ {
		w := SharesToWeight(shares)
		if w < last || w < 1 || w > 10000 {
			t.Fatalf("SharesToWeight(%d) = %d after %d: not monotonic in 1..10000", shares, w, last)
		}
		last = w
	}
}

func TestCompileWritesFilesInOrder(t *testing.T) {
	limited := freshGroup()
	limited.memoryBytes, limited.memswBytes = 100<<20, 100<<20
	limited.quotaMicros, limited.periodMicros = 50000, 100000
	bursting := limited
	bursting.burstMicros = 40000
	full := &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: p[uint64](102), Quota: p[int64](20000), Period: p[uint64](100000), Cpus: "0-1,3", Mems: "0"},
		Memory: &specs.LinuxMemory{Limit: p[int64](64 << 20), Swap: p[int64](96 << 20)},
		Pids:   &specs.LinuxPids{Limit: p[int64](100)},
	}
	none := v1Host()
	none.memsw = false
	cases := []struct {
		name string
		host host
		now  present
		res  *specs.LinuxResources
		want string
	}{
		{"everything on v1", v1Host(), freshGroup(), full,
			"memory.limit_in_bytes=67108864 memory.memsw.limit_in_bytes=100663296 cpu.shares=102 " +
				"cpu.cfs_period_us=100000 cpu.cfs_quota_us=20000 cpuset.cpus=0-1,3 cpuset.mems=0 pids.max=100"},
		{"everything on v2", v2Host(), freshGroup(), full,
			"memory.max=67108864 memory.swap.max=33554432 cpu.weight=17 cpu.max=20000 100000 cpuset.cpus=0-1,3 cpuset.mems=0 pids.max=100"},
		{"zero is unset", v2Host(), freshGroup(), &specs.LinuxResources{
			CPU:    &specs.LinuxCPU{Shares: p[uint64](0), Quota: p[int64](0), Period: p[uint64](0)},
			Memory: &specs.LinuxMemory{Limit: p[int64](0), Swap: p[int64](0)}, Pids: &specs.LinuxPids{Limit: p[int64](0)}}, ""},
		{"zero is unset on v1", v1Host(), freshGroup(), &specs.LinuxResources{
			CPU:    &specs.LinuxCPU{Shares: p[uint64](0), Quota: p[int64](0), Period: p[uint64](0)},
			Memory: &specs.LinuxMemory{Limit: p[int64](0), Swap: p[int64](0)}, Pids: &specs.LinuxPids{}}, ""},
		{"B57 cpuset alone", v2Host(), limited, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "2"}}, "cpuset.cpus=2"},
		{"quota -1 on v1", v1Host(), limited, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p[int64](-1)}}, "cpu.cfs_quota_us=-1"},
		{"quota -1 on v2", v2Host(), limited, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p[int64](-1)}}, "cpu.max=max"},
		{"period alone keeps the quota on v2", v2Host(), limited, &specs.LinuxResources{CPU: &specs.LinuxCPU{Period: p[uint64](50000)}}, "cpu.max=50000 50000"},
		{"period alone without a quota on v2", v2Host(), freshGroup(), &specs.LinuxResources{CPU: &specs.LinuxCPU{Period: p[uint64](50000)}}, "cpu.max=max 50000"},
		{"quota alone on v2", v2Host(), limited, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p[int64](70000)}}, "cpu.max=70000"},
		{"shorter period after the quota on v1", v1Host(), limited, &specs.LinuxResources{
			CPU: &specs.LinuxCPU{Quota: p[int64](5000), Period: p[uint64](10000)}}, "cpu.cfs_quota_us=5000 cpu.cfs_period_us=10000"},
		{"shrinking pair on v1", v1Host(), limited, &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: p[int64](50 << 20), Swap: p[int64](50 << 20)}},
			"memory.limit_in_bytes=52428800 memory.memsw.limit_in_bytes=52428800"},
		{"growing pair on v1", v1Host(), limited, &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: p[int64](200 << 20), Swap: p[int64](200 << 20)}},
			"memory.memsw.limit_in_bytes=209715200 memory.limit_in_bytes=209715200"},
		{"memory unlimited takes the total with it on v1", v1Host(), limited, &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: p[int64](-1)}}, "memory.memsw.limit_in_bytes=-1 memory.limit_in_bytes=-1"},
		{"memory unlimited on a fresh v1 group", v1Host(), freshGroup(), &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: p[int64](-1)}}, "memory.limit_in_bytes=-1"},
		{"no swap accounting, no swap wanted", none, freshGroup(), &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: p[int64](1 << 20), Swap: p[int64](1 << 20)}}, "memory.limit_in_bytes=1048576"},
		{"no swap on v2 may lack the file", v2Host(), freshGroup(), &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: p[int64](1 << 20), Swap: p[int64](1 << 20)}}, "memory.max=1048576 memory.swap.max=0?"},
		{"swap unlimited on v2", v2Host(), freshGroup(), &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: p[int64](1 << 20), Swap: p[int64](-1)}}, "memory.max=1048576 memory.swap.max=max?"},
		{"swap alone is taken from the present limit on v2", v2Host(), limited, &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Swap: p[int64](150 << 20)}}, "memory.swap.max=52428800"},
		{"reservation and no limit", v2Host(), limited, &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: p[int64](-1), Reservation: p[int64](4096)}}, "memory.max=max memory.low=4096"},
		{"v1 memory extras", v1Host(), freshGroup(), &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Reservation: p[int64](8192), Swappiness: p[uint64](0), DisableOOMKiller: p(true)}},
			"memory.soft_limit_in_bytes=8192 memory.swappiness=0 memory.oom_control=1"},
		{"pids unlimited", v1Host(), freshGroup(), &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p[int64](-1)}}, "pids.max=max"},
		{"huge pages on v2", v2Host(), freshGroup(), &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{
			{Pagesize: "2MB", Limit: 0}, {Pagesize: "1GB", Limit: math.MaxUint64}}},
			"hugetlb.2MB.rsvd.max=0 hugetlb.2MB.max=0 hugetlb.1GB.rsvd.max=max hugetlb.1GB.max=max"},
		{"burst after a growing quota on v2", v2Host(), limited, &specs.LinuxResources{
			CPU: &specs.LinuxCPU{Quota: p[int64](80000), Burst: p[uint64](60000)}}, "cpu.max=80000 cpu.max.burst=60000"},
		{"burst before a shrinking quota on v2", v2Host(), bursting, &specs.LinuxResources{
			CPU: &specs.LinuxCPU{Quota: p[int64](20000), Burst: p[uint64](10000)}}, "cpu.max.burst=10000 cpu.max=20000"},
		{"burst alone on v2", v2Host(), limited, &specs.LinuxResources{CPU: &specs.LinuxCPU{Burst: p[uint64](50000)}}, "cpu.max.burst=50000"},
		{"idle on v2", v2Host(), freshGroup(), &specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: p[int64](1)}}, "cpu.idle=1"},
		{"no burst, no idle on v1", v1Host(), freshGroup(), &specs.LinuxResources{CPU: &specs.LinuxCPU{Burst: p[uint64](0), Idle: p[int64](0)}}, ""},
		{"block devices on v2", v2Host(), freshGroup(), &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
			Weight: p[uint16](10), WeightDevice: []specs.LinuxWeightDevice{weighted(8, 16, 1000), weighted(8, 0, 500)},
			ThrottleReadBpsDevice: throttled(8, 0, 1<<20), ThrottleWriteBpsDevice: throttled(8, 0, 0),
			ThrottleReadIOPSDevice: throttled(8, 0, 10), ThrottleWriteIOPSDevice: throttled(252, 1, 20)}},
			"io.weight=default 1 io.weight=8:16 10000 io.weight=8:0 4950 io.max=8:0 rbps=1048576 io.max=8:0 wbps=max io.max=8:0 riops=10 io.max=252:1 wiops=20"},
		{"unified by name, after the fields", v2Host(), freshGroup(), &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: p[int64](8 << 20)},
			Unified: map[string]string{"memory.oom.group": "1", "memory.high": "max", "memory.min": "4096",
				"io.max": "8:0 rbps=1\n8:16 wbps=2\n", "cgroup.max.descendants": "5"}},
			"memory.max=8388608 cgroup.max.descendants=5 io.max=8:0 rbps=1 io.max=8:16 wbps=2 memory.high=max memory.min=4096 memory.oom.group=1"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			plan, err := compile(c.res, c.host, c.now)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, w := range plan.writes {
				got = append(got, w.text())
				if prefix, _, _ := strings.Cut(w.File, "."); prefix != w.Controller {
					t.Errorf("write %s is filed under controller %s", w.File, w.Controller)
				}
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("got  %s\nwant %s", s, c.want)
			}
		})
	}
}

func TestCompileRefusesImpossibleValues(t *testing.T) {
	limited := freshGroup()
	limited.memoryBytes, limited.memswBytes = 100<<20, 100<<20
	cpu := func(c specs.LinuxCPU) *specs.LinuxResources { return &specs.LinuxResources{CPU: &c} }
	mem := func(m specs.LinuxMemory) *specs.LinuxResources { return &specs.LinuxResources{Memory: &m} }
	device := func(d specs.LinuxDeviceCgroup) *specs.LinuxResources {
		return &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{d}}
	}
	unified := func(k, v string) *specs.LinuxResources {
		return &specs.LinuxResources{Unified: map[string]string{k: v}}
	}
	both := []host{v1Host(), v2Host()}
	v1, v2 := both[:1], both[1:]
	cases := []struct {
		name  string
		hosts []host
		res   *specs.LinuxResources
		want  string // must be part of the message
		is    error
	}{
		{"shares 1", both, cpu(specs.LinuxCPU{Shares: p[uint64](1)}), `cpu.shares to "1"`, ErrInvalid},
		{"shares over the top", both, cpu(specs.LinuxCPU{Shares: p[uint64](262145)}), `"262145"`, ErrInvalid},
		{"quota too small", both, cpu(specs.LinuxCPU{Quota: p[int64](999)}), "cpu.quota", ErrInvalid},
		{"quota -2", both, cpu(specs.LinuxCPU{Quota: p[int64](-2)}), `"-2"`, ErrInvalid},
		{"quota too large", both, cpu(specs.LinuxCPU{Quota: p[int64](1 << 44)}), "cpu.quota", ErrInvalid},
		{"period too short", both, cpu(specs.LinuxCPU{Period: p[uint64](999)}), "cpu.period", ErrInvalid},
		{"period too long", both, cpu(specs.LinuxCPU{Period: p[uint64](1000001)}), "cpu.period", ErrInvalid},
		{"cpu that is not there", both, cpu(specs.LinuxCPU{Cpus: "0,4"}), "this host has 0-3", ErrInvalid},
		{"node that is not there", both, cpu(specs.LinuxCPU{Mems: "1"}), "cpuset.mems", ErrInvalid},
		{"cpu list of rubbish", both, cpu(specs.LinuxCPU{Cpus: "0-"}), "cpuset.cpus", ErrInvalid},
		{"cpu list backwards", both, cpu(specs.LinuxCPU{Cpus: "3-0"}), "backwards", ErrInvalid},
		{"cpu list with a newline", both, cpu(specs.LinuxCPU{Cpus: "0\n1"}), "cpuset.cpus", ErrInvalid},
		{"cpu burst", v1, cpu(specs.LinuxCPU{Burst: p[uint64](1)}), "cpu.burst", ErrNotSupported},
		{"cpu burst above the quota", v2, cpu(specs.LinuxCPU{Burst: p[uint64](30000), Quota: p[int64](20000)}), "at most the quota", ErrInvalid},
		{"cpu burst without a quota", v2, cpu(specs.LinuxCPU{Burst: p[uint64](1), Quota: p[int64](-1)}), "cpu.burst", ErrInvalid},
		{"idle", v1, cpu(specs.LinuxCPU{Idle: p[int64](1)}), "cpu.idle", ErrNotSupported},
		{"idle 2", v2, cpu(specs.LinuxCPU{Idle: p[int64](2)}), "cpu.idle", ErrInvalid},
		{"idle with shares", v2, cpu(specs.LinuxCPU{Idle: p[int64](1), Shares: p[uint64](100)}), "cpu.idle", ErrInvalid},
		{"realtime", both, cpu(specs.LinuxCPU{RealtimeRuntime: p[int64](1)}), "cpu.realtimeRuntime", ErrNotSupported},
		{"negative memory", both, mem(specs.LinuxMemory{Limit: p[int64](-2)}), "memory.limit", ErrInvalid},
		{"swap less than memory", both, mem(specs.LinuxMemory{Limit: p[int64](2 << 20), Swap: p[int64](1 << 20)}), "memory.swap", ErrInvalid},
		{"swap with unlimited memory", both, mem(specs.LinuxMemory{Limit: p[int64](-1), Swap: p[int64](1 << 20)}), "memory.swap", ErrInvalid},
		{"swap below the present limit", both, mem(specs.LinuxMemory{Swap: p[int64](99 << 20)}), "memory", ErrInvalid},
		{"limit above the present total", v1, mem(specs.LinuxMemory{Limit: p[int64](101 << 20)}), "memory.limit_in_bytes", ErrInvalid},
		{"kernel memory", both, mem(specs.LinuxMemory{Kernel: p[int64](1)}), "memory.kernel", ErrNotSupported},
		{"swappiness on v2", v2, mem(specs.LinuxMemory{Swappiness: p[uint64](1)}), "memory.swappiness", ErrNotSupported},
		{"swappiness too high", v1, mem(specs.LinuxMemory{Swappiness: p[uint64](101)}), "memory.swappiness", ErrInvalid},
		{"pids -2", both, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p[int64](-2)}}, "pids.max", ErrInvalid},
		{"pids over pid_max", both, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p[int64](1<<22 + 1)}}, "pids.max", ErrInvalid},
		{"page size of rubbish", both, &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "../2MB"}}}, "2MB", ErrInvalid},
		{"page size the host lacks", v2, &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "16GB", Limit: 1}}}, "16GB", ErrInvalid},
		{"block io", v1, &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: p[uint16](50)}}, "blockIO", ErrNotSupported},
		{"leaf weight", v2, &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{LeafWeight: p[uint16](50)}}, "blockIO.leafWeight", ErrNotSupported},
		{"block weight too low", v2, &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: p[uint16](9)}}, "blockIO.weight", ErrInvalid},
		{"block device number", v2, &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: throttled(4096, 0, 1)}}, "4096:0", ErrInvalid},
		{"rdma", both, &specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"mlx": {}}}, "rdma", ErrNotSupported},
		{"device type", both, device(specs.LinuxDeviceCgroup{Type: "q", Access: "r"}), "device rule", ErrInvalid},
		{"device access", both, device(specs.LinuxDeviceCgroup{Type: "c", Access: "rx"}), "rx", ErrInvalid},
		{"device without access", both, device(specs.LinuxDeviceCgroup{Type: "c"}), "device rule", ErrInvalid},
		{"device number", both, device(specs.LinuxDeviceCgroup{Type: "c", Major: p[int64](4096), Access: "r"}), "4096", ErrInvalid},
		{"everything with a number", both, device(specs.LinuxDeviceCgroup{Type: "a", Major: p[int64](1), Access: "rwm"}), "type a", ErrInvalid},
		{"unified on v1", v1, unified("memory.high", "1"), "memory.high", ErrNotSupported},
		{"unified with a slash", v2, unified("../memory.high", "1"), "../memory.high", ErrInvalid},
		{"unified without a dot", v2, unified("memory", "1"), "memory", ErrInvalid},
		{"unified that moves processes", v2, unified("cgroup.procs", "1"), "cgroup.procs", ErrInvalid},
		{"unified that kills", v2, unified("cgroup.kill", "1"), "cgroup.kill", ErrInvalid},
		{"unified without a value", v2, unified("memory.high", "\n"), "memory.high", ErrInvalid},
		{"unified that reclaims once", v2, unified("memory.reclaim", "4096"), "not a limit", ErrInvalid},
		{"unified trigger", v2, unified("memory.pressure", "some 150000 1000000"), "not a limit", ErrInvalid},
		{"unified peak", v2, unified("memory.peak", "1"), "not a limit", ErrInvalid},
		{"unified cpu that is not there", v2, unified("cpuset.cpus", "0,4"), "this host has 0-3", ErrInvalid},
		{"unified cpus of rubbish", v2, unified("cpuset.cpus", "0\n1"), "cpuset.cpus", ErrInvalid},
		{"unified of an absent controller", v2, unified("rdma.max", "x"), "rdma", ErrNotSupported},
	}
	for _, c := range cases {
		for _, h := range c.hosts {
			t.Run(fmt.Sprintf("%s on v%d", c.name, h.version), func(t *testing.T) {
				plan, err := compile(c.res, h, limited)
				if err == nil {
					t.Fatalf("accepted, writes %v", plan.writes)
				}
				if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %q, want one that is %q and says %q", err, c.is, c.want)
				}
			})
		}
	}
}

// A limit by name is held against use as one by field is: the last word counts.
func TestUnifiedMemoryLimitIsTheOneThatIsCheckedAgainstUse(t *testing.T) {
	for value, want := range map[string]int64{"1048576": 1 << 20, "max": 0} {
		plan, err := compile(&specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: p[int64](8 << 20)}, Unified: map[string]string{"memory.max": value},
		}, v2Host(), freshGroup())
		if err != nil || plan.wantMemoryBytes != want {
			t.Errorf("memory.max %s: checked against use is %d, %v, want %d", value, plan.wantMemoryBytes, err, want)
		}
	}
}

func TestCompileNotesWhatItCannotEnforce(t *testing.T) {
	// B60: the kubelet sends a huge page limit for every size, whatever the host has.
	res := &specs.LinuxResources{
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 0}, {Pagesize: "1GB", Limit: 1 << 30}},
		Memory:         &specs.LinuxMemory{Limit: p[int64](1 << 20), Swap: p[int64](1 << 20)},
	}
	h := v1Host()
	h.memsw = false
	plan, err := compile(res, h, freshGroup())
	if err != nil {
		t.Fatal(err)
	}
	var fields []string
	for _, n := range plan.notes {
		fields = append(fields, n.Field)
	}
	if want := []string{"memory.swap", "hugetlb.2MB", "hugetlb.1GB"}; !reflect.DeepEqual(fields, want) {
		t.Errorf("notes %v, want %v", fields, want)
	}
	res.Memory.Swap = p[int64](2 << 20)
	if _, err := compile(res, h, freshGroup()); !errors.Is(err, ErrNotSupported) {
		t.Errorf("a distinct swap limit without swap accounting: got %v, want ErrNotSupported", err)
	}
}

func TestCheckPath(t *testing.T) {
	for _, ok := range []string{"/a", "/kubepods/burstable/pod12-ab/0123", "/kubepods.slice/x:y@1", "/a b"} {
		if err := checkPath(ok); err != nil {
			t.Errorf("checkPath(%q): %v", ok, err)
		}
	}
	for _, bad := range []string{
		"", "/", "a", "a/b", "/a/", "/a//b", "/a/./b", "/a/../b", "/..", "/a\nb", "/a\x00b", "/a/tasks", "/cgroup.procs",
		"/a/memory.max", "/a/io.max", "/" + strings.Repeat("x", 256), strings.Repeat("/x", 2001),
	} {
		if err := checkPath(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("checkPath(%q): got %v, want ErrInvalid", bad, err)
		}
	}
}

func TestRestoreWritesBringOldTextBack(t *testing.T) {
	for _, c := range []struct {
		file, value, old string
		want             []string
	}{
		{"memory.high", "5", "max\n", []string{"max"}},
		{"cpuset.cpus", "0", "\n", []string{"\n"}},
		{"memory.oom_control", "1", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", []string{"0"}},
		{"io.max", "8:0 rbps=1", "8:16 rbps=7\n", []string{"8:0 rbps=max wbps=max riops=max wiops=max"}},
		{"io.max", "8:16 rbps=1", "8:16 rbps=7 wbps=max\n", []string{"8:16 rbps=max wbps=max riops=max wiops=max", "8:16 rbps=7 wbps=max"}},
		{"io.weight", "default 7", "default 100\n8:0 50\n", []string{"default 100"}},
		{"io.weight", "8:0 7", "default 100\n8:0 50\n", []string{"8:0 default", "8:0 50"}},
		{"io.weight", "8:0 7", "default 100\n", []string{"8:0 default"}},
	} {
		got := restoreWrites(oldValue{write: write{File: c.file, Value: c.value}, text: c.old})
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("restore %s from %q: got %q, want %q", c.file, c.old, got, c.want)
		}
	}
}

func FuzzParseList(f *testing.F) {
	for _, s := range []string{"", "0", "0-3", "0-3,8", "3-0", "0-99999", ",", "-", "0x1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := parseList(s)
		if err != nil {
			return
		}
		for _, r := range list {
			if r[0] < 0 || r[1] < r[0] || r[1] >= maxListMember {
				t.Errorf("parseList(%q) = %v", s, list)
			}
		}
		if strings.ContainsAny(s, " \n\t/") {
			t.Errorf("parseList(%q) accepted", s)
		}
	})
}
