package spec

import (
	"reflect"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type limits = criv1.LinuxContainerResources

func TestResources(t *testing.T) {
	for _, c := range []struct {
		name string
		in   *limits
		want specs.LinuxResources
	}{
		{"nothing", nil, specs.LinuxResources{}},
		{"zeros", &limits{HugepageLimits: []*criv1.HugepageLimit{{PageSize: "64KB"}}}, specs.LinuxResources{}},
		{"no quota", &limits{CpuQuota: -1}, specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(-1))}}},
		{"cpuset only (B57)", &limits{CpusetCpus: "0-2,7"}, specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0-2,7"}}},
		{"no swap", &limits{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 5}, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(5)), Swap: ptr(int64(5))}}},
		{"swap unlimited", &limits{MemorySwapLimitInBytes: -1}, specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: ptr(int64(-1))}}},
		{"huge pages", &limits{HugepageLimits: []*criv1.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}},
			specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}}},
		{"unified", &limits{Unified: map[string]string{"io.weight": "default 100"}}, specs.LinuxResources{Unified: map[string]string{"io.weight": "default 100"}}},
	} {
		got, err := Resources(c.in, testNode(2))
		if err != nil || !reflect.DeepEqual(*got, c.want) {
			t.Errorf("%s: got %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
}

func TestImpossibleResourcesAreRefused(t *testing.T) {
	const r = "linux.resources."
	bare := Node{CgroupVersion: 2}
	noSwap := testNode(2)
	noSwap.SwapLimit = false
	for _, c := range []struct {
		name, field string
		in          *limits
		node        Node
	}{
		{"short period", r + "cpu_period", &limits{CpuPeriod: 999}, testNode(2)},
		{"long period", r + "cpu_period", &limits{CpuPeriod: 1000001}, testNode(2)},
		{"small quota", r + "cpu_quota", &limits{CpuQuota: 999}, testNode(2)},
		{"negative quota", r + "cpu_quota", &limits{CpuQuota: -2}, testNode(2)},
		{"one share", r + "cpu_shares", &limits{CpuShares: 1}, testNode(2)},
		{"many shares", r + "cpu_shares", &limits{CpuShares: 262145}, testNode(2)},
		{"negative memory", r + "memory_limit_in_bytes", &limits{MemoryLimitInBytes: -1}, testNode(2)},
		{"swap below memory", r + "memory_swap_limit_in_bytes", &limits{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 9}, testNode(2)},
		{"swap alone", r + "memory_swap_limit_in_bytes", &limits{MemorySwapLimitInBytes: 9}, testNode(2)},
		{"swap that nothing limits", r + "memory_swap_limit_in_bytes", &limits{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 20}, noSwap},
		{"low score", r + "oom_score_adj", &limits{OomScoreAdj: -1001}, testNode(2)},
		{"high score", r + "oom_score_adj", &limits{OomScoreAdj: 1001}, testNode(2)},
		{"cpus backwards", r + "cpuset_cpus", &limits{CpusetCpus: "3-1"}, testNode(2)},
		{"cpus with a path", r + "cpuset_cpus", &limits{CpusetCpus: "0\n1"}, testNode(2)},
		{"mems", r + "cpuset_mems", &limits{CpusetMems: "a"}, testNode(2)},
		{"page size", r + "hugepage_limits.page_size", &limits{HugepageLimits: []*criv1.HugepageLimit{{PageSize: "../2MB"}}}, testNode(2)},
		{"page size not here", r + "hugepage_limits", &limits{HugepageLimits: []*criv1.HugepageLimit{{PageSize: "16GB", Limit: 1}}}, testNode(2)},
		{"unified on v1", r + "unified", &limits{Unified: map[string]string{"memory.max": "1"}}, testNode(1)},
		{"cgroup core file", r + "unified", &limits{Unified: map[string]string{"cgroup.procs": "1"}}, testNode(2)},
		{"another directory", r + "unified", &limits{Unified: map[string]string{"memory.x/../../y": "1"}}, testNode(2)},
		{"two lines", r + "unified", &limits{Unified: map[string]string{"memory.max": "1\n2"}}, testNode(2)},
		{"no cpu controller", r + "cpu_shares", &limits{CpuShares: 2}, bare},
		{"no memory controller", r + "memory_limit_in_bytes", &limits{MemoryLimitInBytes: 1}, bare},
		{"no hugetlb controller", r + "hugepage_limits", &limits{HugepageLimits: []*criv1.HugepageLimit{{PageSize: "2MB", Limit: 1}}}, bare},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Resources(c.in, c.node)
			wantField(t, err, c.field)
		})
	}
	// The kubelet sends 0 for each size to every node (B60).
	if _, err := Resources(&limits{HugepageLimits: []*criv1.HugepageLimit{{PageSize: "2MB"}}}, bare); err != nil {
		t.Errorf("huge page limit 0 without a controller: %v", err)
	}
}

// Where swap cannot be limited, "no more than memory" is as near as it gets and is reported.
func TestMissingSwapAccountingIsReported(t *testing.T) {
	in := goodInput()
	in.Node.SwapLimit = false
	in.Config.Linux.Resources = &limits{MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 1 << 20}
	s, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	if s.Linux.Resources.Memory.Swap != nil || len(Notes(s)) != 1 {
		t.Errorf("got swap %v, notes %q, want none and one", s.Linux.Resources.Memory.Swap, Notes(s))
	}
}
