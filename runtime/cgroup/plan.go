package cgroup

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// write is one write(2) to one file of a group.
type write struct {
	Controller string
	File       string
	Value      string
	// Optional: a kernel without this file enforces the same by other means.
	Optional bool
}

// Note is a limit that was asked for and is not enforced on this host, where
// Kubernetes defines that as acceptable.
type Note struct {
	Field  string
	Reason string
}

// host is what the compiler must know about the machine.
type host struct {
	version     int
	controllers []string
	memsw       bool     // v1: swap accounting is on
	hugePages   []string // sizes as hugetlb files spell them: "2MB", "1GB"
	cpus, mems  string   // what the root group has; "" = unknown
	pageSize    int64
}

// present are the values of an existing group that decide in which order, and
// to what, dependent files are written.
type present struct {
	memoryBytes  int64 // unlimited: math.MaxInt64
	memswBytes   int64 // v1
	quotaMicros  int64 // unlimited: -1
	periodMicros uint64
	burstMicros  uint64 // v2
}

// freshGroup is what the kernel gives a group that was just made.
func freshGroup() present {
	return present{memoryBytes: math.MaxInt64, memswBytes: math.MaxInt64, quotaMicros: -1, periodMicros: defaultPeriod}
}

// plan is what applying resources comes down to: data, so that it can be tested
// without a kernel, and known to be sound before anything is made.
type plan struct {
	writes  []write
	devices []specs.LinuxDeviceCgroup // nil: unchanged
	notes   []Note
	// wantMemoryBytes is the new memory limit, 0 if unchanged.
	wantMemoryBytes int64
}

// compiler collects the writes of one plan; the first error wins.
type compiler struct {
	host host
	now  present
	out  plan
}

// compile turns resources into ordered writes. Memory comes first because it is
// what an update most often can't have (B58). Unset and zero mean unchanged.
func compile(res *specs.LinuxResources, h host, now present) (plan, error) {
	c := &compiler{host: h, now: now}
	if res == nil {
		return c.out, nil
	}
	steps := []func(*specs.LinuxResources) error{
		c.refuseUnsupported, c.memory, c.cpu, c.cpuset, c.pids, c.blockIO, c.hugePages, c.devices, c.unified,
	}
	for _, step := range steps {
		if err := step(res); err != nil {
			return plan{}, err
		}
	}
	return c.out, nil
}

func (c *compiler) set(controller, file, value string) {
	c.out.writes = append(c.out.writes, write{Controller: controller, File: file, Value: value})
}

func (c *compiler) note(field, reason string) {
	c.out.notes = append(c.out.notes, Note{Field: field, Reason: reason})
}

// need refuses a limit whose controller the host lacks.
func (c *compiler) need(controller, field string) error {
	if slices.Contains(c.host.controllers, controller) {
		return nil
	}
	return fmt.Errorf("%s: controller %s is not available on this host: %w", field, controller, ErrNotSupported)
}

// refuseUnsupported names fields that nothing here enforces, so that none is
// ignored in silence.
func (c *compiler) refuseUnsupported(res *specs.LinuxResources) error {
	var fields []string
	add := func(set bool, field string) {
		if set {
			fields = append(fields, field)
		}
	}
	if b := res.BlockIO; b != nil && c.host.version == 1 {
		add(b.Weight != nil || b.LeafWeight != nil || len(b.WeightDevice)+len(b.ThrottleReadBpsDevice)+
			len(b.ThrottleWriteBpsDevice)+len(b.ThrottleReadIOPSDevice)+len(b.ThrottleWriteIOPSDevice) > 0, "blockIO")
	} else if b != nil { // v2 has no weight of a group against its children
		leaf := func(d specs.LinuxWeightDevice) bool { return d.LeafWeight != nil && *d.LeafWeight != 0 }
		add(b.LeafWeight != nil && *b.LeafWeight != 0 || slices.ContainsFunc(b.WeightDevice, leaf), "blockIO.leafWeight")
	}
	if n := res.Network; n != nil {
		add(n.ClassID != nil || len(n.Priorities) > 0, "network")
	}
	add(len(res.Rdma) > 0, "rdma")
	if cpu := res.CPU; cpu != nil {
		add(c.host.version == 1 && cpu.Burst != nil && *cpu.Burst != 0, "cpu.burst")
		add(c.host.version == 1 && cpu.Idle != nil && *cpu.Idle != 0, "cpu.idle")
		add(cpu.RealtimePeriod != nil && *cpu.RealtimePeriod != 0, "cpu.realtimePeriod")
		add(cpu.RealtimeRuntime != nil && *cpu.RealtimeRuntime != 0, "cpu.realtimeRuntime")
	}
	if mem := res.Memory; mem != nil {
		add(mem.Kernel != nil && *mem.Kernel != 0, "memory.kernel")
		add(mem.KernelTCP != nil && *mem.KernelTCP != 0, "memory.kernelTCP")
		add(mem.UseHierarchy != nil && !*mem.UseHierarchy, "memory.useHierarchy=false")
		if c.host.version == 2 {
			add(mem.Swappiness != nil, "memory.swappiness")
			add(mem.DisableOOMKiller != nil && *mem.DisableOOMKiller, "memory.disableOOMKiller")
		}
	}
	if len(fields) > 0 {
		return fmt.Errorf("resources %s on cgroup v%d: %w", strings.Join(fields, ", "), c.host.version, ErrNotSupported)
	}
	return nil
}

func (c *compiler) cpu(res *specs.LinuxResources) error {
	cpu := res.CPU
	if cpu == nil {
		return nil
	}
	idle := cpu.Idle != nil && *cpu.Idle != 0
	if cpu.Shares != nil && *cpu.Shares != 0 {
		if idle { // the kernel would refuse the weight (EINVAL)
			return invalid("cpu.idle", *cpu.Idle, "a group that only gets idle time has no shares, and %d are given", *cpu.Shares)
		}
		if err := c.cpuShares(*cpu.Shares); err != nil {
			return err
		}
	}
	if idle {
		if err := c.cpuIdle(*cpu.Idle); err != nil {
			return err
		}
	}
	var quota int64
	var period, burst uint64
	if cpu.Quota != nil {
		quota = *cpu.Quota
	}
	if cpu.Period != nil {
		period = *cpu.Period
	}
	if cpu.Burst != nil && c.host.version == 2 {
		burst = *cpu.Burst
	}
	if quota == 0 && period == 0 && burst == 0 {
		return nil
	}
	return c.cpuLimits(quota, period, burst)
}

func (c *compiler) cpuIdle(idle int64) error {
	if idle != 1 {
		return invalid("cpu.idle", idle, "want 0 or 1")
	}
	if err := c.need("cpu", "cpu.idle"); err != nil {
		return err
	}
	c.set("cpu", "cpu.idle", "1")
	return nil
}

// cpuLimits orders quota and burst: the kernel holds burst <= quota at every moment.
func (c *compiler) cpuLimits(quota int64, period, burst uint64) error {
	if burst != 0 {
		if err := c.need("cpu", "cpu.burst"); err != nil {
			return err
		}
		limit := quota
		if limit == 0 {
			limit = c.now.quotaMicros
		}
		if limit <= 0 || burst > uint64(limit) {
			return invalid("cpu.burst", burst, "want at most the quota, %d microseconds", max(limit, 0))
		}
	}
	setBurst := func() {
		c.set("cpu", "cpu.max.burst", strconv.FormatUint(burst, 10))
	}
	first := burst != 0 && burst < c.now.burstMicros
	if first {
		setBurst()
	}
	if quota != 0 || period != 0 {
		if err := c.cpuBandwidth(quota, period); err != nil {
			return err
		}
	}
	if burst != 0 && !first {
		setBurst()
	}
	return nil
}

func (c *compiler) cpuShares(shares uint64) error {
	file, value := "cpu.shares", shares
	if c.host.version == 2 {
		file, value = "cpu.weight", SharesToWeight(shares)
	}
	// The kernel would clamp in silence.
	if shares < minShares || shares > maxShares {
		return invalid("cpu.shares", shares, "want %d to %d", minShares, maxShares)
	}
	if err := c.need("cpu", "cpu.shares"); err != nil {
		return err
	}
	c.set("cpu", file, strconv.FormatUint(value, 10))
	return nil
}

func (c *compiler) cpuBandwidth(quota int64, period uint64) error {
	if quota != 0 && quota != -1 && (quota < minQuotaMicros || quota > maxQuotaMicros) {
		return invalid("cpu.quota", quota, "want -1 or %d to %d microseconds", minQuotaMicros, maxQuotaMicros)
	}
	if period != 0 && (period < minPeriodMicros || period > maxPeriodMicros) {
		return invalid("cpu.period", period, "want %d to %d microseconds", minPeriodMicros, maxPeriodMicros)
	}
	if err := c.need("cpu", "cpu.quota"); err != nil {
		return err
	}
	if c.host.version == 2 {
		// cpu.max takes "quota" alone, but never the period alone.
		if quota == 0 {
			quota = c.now.quotaMicros
		}
		value := "max"
		if quota > 0 {
			value = strconv.FormatInt(quota, 10)
		}
		if period != 0 {
			value += " " + strconv.FormatUint(period, 10)
		}
		c.set("cpu", "cpu.max", value)
		return nil
	}
	setQuota := func() {
		if quota != 0 {
			c.set("cpu", "cpu.cfs_quota_us", strconv.FormatInt(quota, 10))
		}
	}
	// v1 holds each write against the parent's share of time, so the state between
	// the two writes must not be larger than both ends.
	if period != 0 && period < c.now.periodMicros {
		setQuota()
		c.set("cpu", "cpu.cfs_period_us", strconv.FormatUint(period, 10))
		return nil
	}
	if period != 0 {
		c.set("cpu", "cpu.cfs_period_us", strconv.FormatUint(period, 10))
	}
	setQuota()
	return nil
}

func (c *compiler) cpuset(res *specs.LinuxResources) error {
	if res.CPU == nil {
		return nil
	}
	for _, f := range []struct{ file, want, have string }{
		{"cpuset.cpus", res.CPU.Cpus, c.host.cpus},
		{"cpuset.mems", res.CPU.Mems, c.host.mems},
	} {
		if f.want == "" {
			continue
		}
		// v2 would take a list of absent CPUs and quietly use the parent's.
		if err := checkHas(f.file, f.want, f.have); err != nil {
			return err
		}
		if err := c.need("cpuset", f.file); err != nil {
			return err
		}
		c.set("cpuset", f.file, f.want)
	}
	return nil
}

func (c *compiler) pids(res *specs.LinuxResources) error {
	if res.Pids == nil || res.Pids.Limit == nil || *res.Pids.Limit == 0 {
		return nil
	}
	limit := *res.Pids.Limit
	if limit < -1 || limit > maxPids {
		return invalid("pids.max", limit, "want -1 or 1 to %d", maxPids)
	}
	if err := c.need("pids", "pids.limit"); err != nil {
		return err
	}
	c.set("pids", "pids.max", limitText(limit, "max"))
	return nil
}

// limitText spells a limit, with the word that the file uses for none.
func limitText(limit int64, none string) string {
	if limit == -1 {
		return none
	}
	return strconv.FormatInt(limit, 10)
}
