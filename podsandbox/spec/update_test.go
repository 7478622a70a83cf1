package spec

import (
	"errors"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func v2Node() Node {
	return Node{
		CgroupVersion: 2, Controllers: []string{"cpu", "cpuset", "memory", "pids", "hugetlb", "io"}, HugepageSizes: []string{"2MB", "1GB"},
		SwapLimit: true, MinOOMScoreAdj: -500,
	}
}

func TestUpdateJoinsWhatIsGivenWithWhatWas(t *testing.T) {
	was := &criv1.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20, CpusetCpus: "0-3", CpusetMems: "0",
		OomScoreAdj: -998, HugepageLimits: []*criv1.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}},
		Unified: map[string]string{"memory.high": "50000000", "memory.min": "0"},
	}
	shown := was.String()
	change := &criv1.LinuxContainerResources{
		CpuShares: 1024, MemoryLimitInBytes: 128 << 20, MemorySwapLimitInBytes: 128 << 20, OomScoreAdj: 100,
		HugepageLimits: []*criv1.HugepageLimit{{PageSize: "2MB"}}, Unified: map[string]string{"memory.high": "max"},
	}
	got, err := UpdateResources(was, change, v2Node())
	if err != nil {
		t.Fatal(err)
	}
	want := &criv1.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 1024, MemoryLimitInBytes: 128 << 20, MemorySwapLimitInBytes: 128 << 20, CpusetCpus: "0-3", CpusetMems: "0",
		OomScoreAdj: 100, HugepageLimits: []*criv1.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}},
		Unified: map[string]string{"memory.high": "max", "memory.min": "0"},
	}
	if got.All.String() != want.String() || was.String() != shown {
		t.Errorf("got %v, want %v; what was is now %v", got.All, want, was)
	}
	if got.WasAdj != -500 || got.WillAdj != 100 {
		t.Errorf("scores: got %d and %d, want -500 (clamped) and 100", got.WasAdj, got.WillAdj)
	}
	l := got.Limits
	if cpu := l.CPU; *cpu.Shares != 1024 || cpu.Quota != nil || cpu.Period != nil || cpu.Cpus != "" || cpu.Mems != "" {
		t.Errorf("cpu: got %+v, want the shares alone", cpu)
	}
	if *l.Memory.Limit != 128<<20 || *l.Memory.Swap != 128<<20 || len(l.HugepageLimits) != 1 || l.HugepageLimits[0].Pagesize != "2MB" ||
		len(l.Unified) != 1 || l.Unified["memory.high"] != "max" {
		t.Errorf("limits: got %+v", l)
	}
}

// v2 limits swap alone: another memory limit with the same sum is another amount of swap.
func TestUpdateOfMemoryTellsTheSumToo(t *testing.T) {
	was := &criv1.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 64 << 20}
	got, err := UpdateResources(was, &criv1.LinuxContainerResources{MemoryLimitInBytes: 48 << 20}, v2Node())
	if err != nil || *got.Limits.Memory.Swap != 64<<20 {
		t.Errorf("got %+v, %v, want the sum of 64 MiB", got, err)
	}
	_, err = UpdateResources(was, &criv1.LinuxContainerResources{MemoryLimitInBytes: 96 << 20}, v2Node())
	var field *FieldError
	if !errors.As(err, &field) || field.Field != "linux.memory_swap_limit_in_bytes" {
		t.Errorf("a limit above the sum: got %v, want linux.memory_swap_limit_in_bytes", err)
	}
}

func TestUpdatedSpecKeepsWhatNoRequestNames(t *testing.T) {
	s := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{
		Pids: &specs.LinuxPids{Limit: ptr(int64(64))}, Devices: []specs.LinuxDeviceCgroup{{Allow: true}}, CPU: &specs.LinuxCPU{Shares: ptr(uint64(2))},
	}}}
	if err := SetResources(s, &criv1.LinuxContainerResources{MemoryLimitInBytes: 1 << 20, OomScoreAdj: 7}, v2Node()); err != nil {
		t.Fatal(err)
	}
	if r := s.Linux.Resources; *r.Pids.Limit != 64 || len(r.Devices) != 1 || r.CPU != nil || *r.Memory.Limit != 1<<20 || *s.Process.OOMScoreAdj != 7 {
		t.Errorf("got %+v, score %d", r, *s.Process.OOMScoreAdj)
	}
}
