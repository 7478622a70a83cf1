package spec

import (
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What the kernel takes (kernel/sched/core.c, Documentation/scheduler/sched-bwc.rst): shares, microseconds.
const (
	minShares, maxShares = 2, 262144
	minPeriod, maxPeriod = 1000, 1000000
	minQuota             = 1000
	resourcesField       = "linux.resources."
	cpusetBytes          = 4096
)

// Resources derives the limits of a container, without device rules and process count. Zero is "not given" in every
// field and leaves the limit out. A limit whose controller this node lacks is refused.
func Resources(resources *criv1.LinuxContainerResources, node Node) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	if score := resources.GetOomScoreAdj(); score < -1000 || score > 1000 {
		return nil, invalid(resourcesField+"oom_score_adj", strconv.FormatInt(score, 10), "want -1000 to 1000")
	}
	for _, step := range []func(*criv1.LinuxContainerResources, Node, *specs.LinuxResources) error{
		cpuLimits, cpusetLimits, memoryLimits, hugepageLimits, unifiedLimits,
	} {
		if err := step(resources, node, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func cpuLimits(r *criv1.LinuxContainerResources, node Node, out *specs.LinuxResources) error {
	period, quota, shares := r.GetCpuPeriod(), r.GetCpuQuota(), r.GetCpuShares()
	switch {
	case period != 0 && (period < minPeriod || period > maxPeriod):
		return invalid(resourcesField+"cpu_period", strconv.FormatInt(period, 10), "want %d to %d microseconds", minPeriod, maxPeriod)
	case quota != 0 && quota != -1 && quota < minQuota:
		return invalid(resourcesField+"cpu_quota", strconv.FormatInt(quota, 10), "want -1 or at least %d microseconds", minQuota)
	case shares != 0 && (shares < minShares || shares > maxShares):
		return invalid(resourcesField+"cpu_shares", strconv.FormatInt(shares, 10), "want %d to %d", minShares, maxShares)
	case period == 0 && quota == 0 && shares == 0:
		return nil
	}
	if err := need(node, "cpu", "cpu_shares"); err != nil {
		return err
	}
	cpu := cpuOf(out)
	if period != 0 {
		cpu.Period = ptr(uint64(period))
	}
	if quota != 0 {
		cpu.Quota = ptr(quota)
	}
	if shares != 0 {
		cpu.Shares = ptr(uint64(shares))
	}
	return nil
}

func cpusetLimits(r *criv1.LinuxContainerResources, node Node, out *specs.LinuxResources) error {
	for _, f := range []struct{ field, list string }{{"cpuset_cpus", r.GetCpusetCpus()}, {"cpuset_mems", r.GetCpusetMems()}} {
		if f.list == "" {
			continue
		}
		if !goodCPUList(f.list) {
			return invalid(resourcesField+f.field, f.list, "want a list like 0-3,7")
		}
		if err := need(node, "cpuset", f.field); err != nil {
			return err
		}
	}
	if cpus, mems := r.GetCpusetCpus(), r.GetCpusetMems(); cpus != "" || mems != "" {
		cpu := cpuOf(out)
		cpu.Cpus, cpu.Mems = cpus, mems
	}
	return nil
}

// goodCPUList checks the kernel's list format without strides (cpuset(7), "List format").
func goodCPUList(list string) bool {
	if len(list) > cpusetBytes {
		return false
	}
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return false
		}
		if !isRange {
			continue
		}
		if b, err := strconv.ParseUint(last, 10, 16); err != nil || b < a {
			return false
		}
	}
	return true
}

// memoryLimits: the swap limit counts memory and swap together.
func memoryLimits(r *criv1.LinuxContainerResources, node Node, out *specs.LinuxResources) error {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	switch {
	case limit < 0:
		return invalid(resourcesField+"memory_limit_in_bytes", strconv.FormatInt(limit, 10), "negative")
	case swap < -1:
		return invalid(resourcesField+"memory_swap_limit_in_bytes", strconv.FormatInt(swap, 10), "want -1 or a number of bytes")
	case swap > 0 && limit == 0:
		return invalid(resourcesField+"memory_swap_limit_in_bytes", strconv.FormatInt(swap, 10), "needs memory_limit_in_bytes")
	case swap > 0 && swap < limit:
		return invalid(resourcesField+"memory_swap_limit_in_bytes", strconv.FormatInt(swap, 10), "less than memory_limit_in_bytes")
	case swap > limit && !node.SwapLimit:
		return invalid(resourcesField+"memory_swap_limit_in_bytes", strconv.FormatInt(swap, 10), "this node cannot limit swap")
	case limit == 0 && swap == 0:
		return nil
	}
	if err := need(node, "memory", "memory_limit_in_bytes"); err != nil {
		return err
	}
	out.Memory = &specs.LinuxMemory{}
	if limit != 0 {
		out.Memory.Limit = ptr(limit)
	}
	if swap != 0 && node.SwapLimit {
		out.Memory.Swap = ptr(swap)
	}
	return nil
}

// hugepageLimits: the kubelet sends 0 for every size a pod does not ask for, on nodes without hugetlb too (B60). There,
// and for sizes the node does not have, 0 holds by itself and anything else is refused.
func hugepageLimits(r *criv1.LinuxContainerResources, node Node, out *specs.LinuxResources) error {
	for _, h := range r.GetHugepageLimits() {
		size := h.GetPageSize()
		if !goodPageSize(size) {
			return invalid(resourcesField+"hugepage_limits.page_size", size, "want a size like 2MB")
		}
		if !slices.Contains(node.Controllers, "hugetlb") || !slices.Contains(node.HugepageSizes, size) {
			if h.GetLimit() != 0 {
				return invalid(resourcesField+"hugepage_limits", size, "this node cannot limit huge pages of this size")
			}
			continue
		}
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: h.GetLimit()})
	}
	return nil
}

func goodPageSize(size string) bool {
	digits := strings.TrimRight(size, "KMGTB")
	n, err := strconv.ParseUint(digits, 10, 32)
	unit := size[len(digits):]
	return err == nil && n > 0 && (unit == "KB" || unit == "MB" || unit == "GB" || unit == "TB")
}

// unifiedLimits takes files of v2 controllers only: never cgroup.procs and its like, and no other directory's.
func unifiedLimits(r *criv1.LinuxContainerResources, node Node, out *specs.LinuxResources) error {
	if len(r.GetUnified()) == 0 {
		return nil
	}
	if node.CgroupVersion != 2 {
		return invalid(resourcesField+"unified", "", "this node has cgroup v1")
	}
	files := make([]string, 0, len(r.GetUnified()))
	for file := range r.GetUnified() {
		files = append(files, file)
	}
	sort.Strings(files)
	out.Unified = map[string]string{}
	for _, file := range files {
		controller, rest, ok := strings.Cut(file, ".")
		value := r.GetUnified()[file]
		switch {
		case !ok || rest == "" || controller == "cgroup" || !goodCgroupFile(file):
			return invalid(resourcesField+"unified", file, "no file of a cgroup v2 controller")
		case hasControl(value) || len(value) > pathBytes:
			return invalid(resourcesField+"unified", file, "its value is not one line")
		}
		if err := need(node, controller, "unified "+file); err != nil {
			return err
		}
		out.Unified[file] = value
	}
	return nil
}

func goodCgroupFile(file string) bool {
	for i := range len(file) {
		c := file[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '.' {
			return false
		}
	}
	return !strings.Contains(file, "..") && len(file) <= nameBytes
}

func need(node Node, controller, field string) error {
	if slices.Contains(node.Controllers, controller) {
		return nil
	}
	return invalid(resourcesField+field, "", "this node has no %s controller", controller)
}

// oomScore clamps to what podwright may give, as restrict_oom_score_adj does elsewhere (B62).
func oomScore(r *criv1.LinuxContainerResources, node Node) (score int, clamped bool) {
	score = int(r.GetOomScoreAdj()) // in range since Resources
	if score < node.MinOOMScoreAdj {
		return node.MinOOMScoreAdj, true
	}
	return score, false
}

func cpuOf(out *specs.LinuxResources) *specs.LinuxCPU {
	if out.CPU == nil {
		out.CPU = &specs.LinuxCPU{}
	}
	return out.CPU
}

func ptr[T any](v T) *T { return &v }
