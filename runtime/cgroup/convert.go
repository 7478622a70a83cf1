package cgroup

import "math"

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
// to 10000, default 100) on the curve that runc and crun use since 2025, which
// maps each default on the other's and keeps small requests apart. 0 is unset
// and stays 0; values outside the range are taken as its ends.
// https://github.com/opencontainers/cgroups, ConvertCPUSharesToCgroupV2Value.
func SharesToWeight(shares uint64) uint64 {
	switch {
	case shares == 0:
		return 0
	case shares <= minShares:
		return 1
	case shares >= maxShares:
		return 10000
	}
	l := math.Log2(float64(shares))
	exponent := (l*l+125*l)/612 - 7.0/34.0
	return uint64(math.Ceil(math.Pow(10, exponent)))
}
