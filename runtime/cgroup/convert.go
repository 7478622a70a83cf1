package cgroup

import "github.com/containerd/cgroups/v3/cgroup2"

// The kernel's ranges. MIN_SHARES and MAX_SHARES of kernel/sched/sched.h; for
// the rest see Documentation/scheduler/sched-bwc.rst and kernel/sched/core.c.
const (
	minShares       = 2
	maxShares       = 262144
	minPeriodMicros = 1000
	maxPeriodMicros = 1000000
	minQuotaMicros  = 1000
	maxQuotaMicros  = 1<<44 - 1
	maxPids         = 1 << 22 // PID_MAX_LIMIT
	defaultPeriod   = 100000
	smallFile       = 64 << 10
	listFile        = 8 << 20 // cgroup.procs of a fork bomb at pid_max
)

// SharesToWeight turns cpu.shares (2 to 262144, default 1024) into cpu.weight (1
// to 10000, default 100) on the curve that runc, crun and containerd share since
// 2025: it maps each default on the other's and keeps small requests apart. 0 is
// unset and stays 0; values outside the range are taken as its ends.
func SharesToWeight(shares uint64) uint64 {
	return cgroup2.ConvertCPUSharesToCgroupV2Value(shares)
}
