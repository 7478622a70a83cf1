package spec

import (
	"errors"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Update is what a change of a container's resources comes to.
type Update struct {
	All     *criv1.LinuxContainerResources // every resource afterwards
	Limits  *specs.LinuxResources          // what the container's group has to be told: the limits that are given, no others
	WasAdj  int                            // oom_score_adj until now and afterwards, as podwright may give it
	WillAdj int
}

// UpdateResources joins what is given in change with what was: zero, of every field, means unchanged, and of the lists by
// name (huge page sizes, unified) each entry stands for itself (B57). The result as a whole has to make sense.
func UpdateResources(was, change *criv1.LinuxContainerResources, node Node) (*Update, error) {
	all := merge(was, change)
	limits, err := Resources(all, node)
	if err != nil {
		return nil, underLinux(err)
	}
	// Limits that the change itself makes no sense of are no less wrong because what was there hides it.
	if _, err := Resources(&criv1.LinuxContainerResources{HugepageLimits: change.GetHugepageLimits(), Unified: change.GetUnified()}, node); err != nil {
		return nil, underLinux(err)
	}
	out := &Update{All: all, Limits: given(limits, all, change)}
	out.WasAdj, _ = oomScore(was, node)
	out.WillAdj, _ = oomScore(all, node)
	return out, nil
}

func merge(was, change *criv1.LinuxContainerResources) *criv1.LinuxContainerResources {
	all := &criv1.LinuxContainerResources{}
	if was != nil {
		all = proto.Clone(was).(*criv1.LinuxContainerResources)
	}
	for _, f := range []struct {
		to   *int64
		from int64
	}{
		{&all.CpuPeriod, change.GetCpuPeriod()}, {&all.CpuQuota, change.GetCpuQuota()}, {&all.CpuShares, change.GetCpuShares()},
		{&all.MemoryLimitInBytes, change.GetMemoryLimitInBytes()}, {&all.OomScoreAdj, change.GetOomScoreAdj()},
		{&all.MemorySwapLimitInBytes, change.GetMemorySwapLimitInBytes()},
	} {
		if f.from != 0 {
			*f.to = f.from
		}
	}
	if list := change.GetCpusetCpus(); list != "" {
		all.CpusetCpus = list
	}
	if list := change.GetCpusetMems(); list != "" {
		all.CpusetMems = list
	}
	for _, limit := range change.GetHugepageLimits() {
		all.HugepageLimits = withHugepages(all.HugepageLimits, limit)
	}
	for file, value := range change.GetUnified() {
		if all.Unified == nil {
			all.Unified = map[string]string{}
		}
		all.Unified[file] = value
	}
	return all
}

func withHugepages(list []*criv1.HugepageLimit, limit *criv1.HugepageLimit) []*criv1.HugepageLimit {
	for i, have := range list {
		if have.GetPageSize() == limit.GetPageSize() {
			list[i] = proto.Clone(limit).(*criv1.HugepageLimit)
			return list
		}
	}
	return append(list, proto.Clone(limit).(*criv1.HugepageLimit))
}

// given reduces limits, made from all, to what change names.
func given(limits *specs.LinuxResources, all, change *criv1.LinuxContainerResources) *specs.LinuxResources {
	out := &specs.LinuxResources{}
	if cpu := limits.CPU; cpu != nil {
		out.CPU = &specs.LinuxCPU{Cpus: change.GetCpusetCpus(), Mems: change.GetCpusetMems()}
		if change.GetCpuPeriod() != 0 {
			out.CPU.Period = cpu.Period
		}
		if change.GetCpuQuota() != 0 {
			out.CPU.Quota = cpu.Quota
		}
		if change.GetCpuShares() != 0 {
			out.CPU.Shares = cpu.Shares
		}
	}
	if memory := limits.Memory; memory != nil && (change.GetMemoryLimitInBytes() != 0 || change.GetMemorySwapLimitInBytes() != 0) {
		// Both: v2 keeps the difference of the two, which another memory limit changes.
		out.Memory = &specs.LinuxMemory{Limit: memory.Limit, Swap: memory.Swap}
	}
	for _, limit := range limits.HugepageLimits {
		for _, named := range change.GetHugepageLimits() {
			if named.GetPageSize() == limit.Pagesize {
				out.HugepageLimits = append(out.HugepageLimits, limit)
			}
		}
	}
	for file := range change.GetUnified() {
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		out.Unified[file] = all.GetUnified()[file]
	}
	return out
}

// underLinux names a field as an update has it.
func underLinux(err error) error {
	var field *FieldError
	if errors.As(err, &field) {
		return &FieldError{Field: "linux." + strings.TrimPrefix(field.Field, resourcesField), Value: field.Value, Problem: field.Problem}
	}
	return err
}

// SetResources puts a container's resources, as updates left them, into the spec that was made at its creation.
func SetResources(s *specs.Spec, all *criv1.LinuxContainerResources, node Node) error {
	limits, err := Resources(all, node)
	if err != nil {
		return err
	}
	if was := s.Linux.Resources; was != nil {
		limits.Pids, limits.Devices = was.Pids, was.Devices // no part of the request
		if bound, ok := was.Unified[descendantsFile]; ok {  // nor is this
			if limits.Unified == nil {
				limits.Unified = map[string]string{}
			}
			limits.Unified[descendantsFile] = bound
		}
	}
	s.Linux.Resources = limits
	score, _ := oomScore(all, node)
	s.Process.OOMScoreAdj = ptr(score)
	return nil
}
