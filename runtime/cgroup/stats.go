package cgroup

import (
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2"
	"golang.org/x/sys/unix"
)

// NoLimit is what a limit reads as when there is none.
const NoLimit = math.MaxUint64

// Stats is one look at a group. What the host has no controller for stays zero.
type Stats struct {
	CPU    CPUStats
	Memory MemoryStats
	Pids   PidsStats
}

// CPUStats are times since the group was made. Periods count only while a quota
// is set.
type CPUStats struct {
	Usage            time.Duration
	Periods          uint64
	ThrottledPeriods uint64
	Throttled        time.Duration
}

// MemoryStats are in bytes. WorkingSet is Usage without file pages that have not
// been used lately, which is what the kubelet evicts by.
type MemoryStats struct {
	UsageBytes      uint64
	PeakBytes       uint64 // v2: 0 before Linux 5.19
	LimitBytes      uint64 // NoLimit if there is none
	WorkingSetBytes uint64
}

// PidsStats count tasks.
type PidsStats struct {
	Current uint64
	Limit   uint64 // NoLimit if there is none
}

// Stats reads the group's counters. A group that is gone is an error that is
// fs.ErrNotExist.
func (m *Manager) Stats(path string) (*Stats, error) {
	g, err := m.group(path)
	if err != nil {
		return nil, err
	}
	s := &Stats{}
	r := reader{group: g}
	if g.version == 2 {
		r.statsV2(s)
	} else {
		r.statsV1(s)
	}
	if r.err != nil {
		return nil, fmt.Errorf("statistics of cgroup: %w", r.err)
	}
	return s, nil
}

// reader reads files of one group; the first error stays and later reads give 0.
type reader struct {
	group
	err error
}

func (r *reader) statsV1(s *Stats) {
	s.CPU.Usage = time.Duration(r.number("cpuacct", "cpuacct.usage"))
	cpu := r.keyed("cpu", "cpu.stat")
	s.CPU.Periods, s.CPU.ThrottledPeriods = cpu["nr_periods"], cpu["nr_throttled"]
	s.CPU.Throttled = time.Duration(cpu["throttled_time"])
	s.Memory.UsageBytes = r.number("memory", "memory.usage_in_bytes")
	s.Memory.PeakBytes = r.number("memory", "memory.max_usage_in_bytes")
	s.Memory.LimitBytes = r.limit("memory", "memory.limit_in_bytes")
	s.Memory.WorkingSetBytes = workingSet(s.Memory.UsageBytes, r.keyed("memory", "memory.stat")["total_inactive_file"])
	s.Pids.Current = r.number("pids", "pids.current")
	s.Pids.Limit = r.limit("pids", "pids.max")
}

// statsV2 has containerd's library read the group. To the library an absent group
// is an idle one, and a file with a single number that it can't read, for want of
// a descriptor say, is a 0: nothing in use, or a limit of nothing. So a 0 is read
// again here, to be confirmed or to give its error; a live container has none. The
// peak alone may be 0, on kernels without it.
func (r *reader) statsV2(s *Stats) {
	which := cgroup2.StatCPU // cpu.stat is there without the controller
	if r.has("memory") {
		which |= cgroup2.StatMemory
	}
	if r.has("pids") {
		which |= cgroup2.StatPids
	}
	manager, err := cgroup2.Load(r.path, cgroup2.WithMountpoint(r.root))
	if err != nil {
		r.err = err
		return
	}
	got, err := manager.StatFiltered(which)
	if err != nil {
		r.err = err
		return
	}
	s.CPU.Usage = time.Duration(got.CPU.UsageUsec) * time.Microsecond
	s.CPU.Periods, s.CPU.ThrottledPeriods = got.CPU.NrPeriods, got.CPU.NrThrottled
	s.CPU.Throttled = time.Duration(got.CPU.ThrottledUsec) * time.Microsecond
	s.Memory.UsageBytes = confirm(got.Memory.GetUsage(), r.number, "memory", "memory.current")
	s.Memory.LimitBytes = confirm(got.Memory.GetUsageLimit(), r.limit, "memory", "memory.max")
	s.Memory.WorkingSetBytes = workingSet(s.Memory.UsageBytes, got.Memory.GetInactiveFile())
	s.Memory.PeakBytes = got.Memory.GetMaxUsage()
	s.Pids.Current = confirm(got.Pids.GetCurrent(), r.number, "pids", "pids.current")
	s.Pids.Limit = confirm(got.Pids.GetLimit(), r.limit, "pids", "pids.max")
	if err := unix.Access(r.unified(), unix.F_OK); err != nil && r.err == nil {
		r.err = &fs.PathError{Op: "access", Path: r.unified(), Err: err}
	}
}

// confirm is got, or if that is 0 what the file really says.
func confirm(got uint64, read func(controller, file string) uint64, controller, file string) uint64 {
	if got != 0 {
		return got
	}
	return read(controller, file)
}

func workingSet(usage, inactiveFile uint64) uint64 {
	return usage - min(usage, inactiveFile)
}

// text reads one file. A controller that the host lacks gives ok false and no error.
func (r *reader) text(controller, file string) (text string, ok bool) {
	if r.err != nil || !r.has(controller) {
		return "", false
	}
	dir, _ := r.dir(controller)
	text, r.err = readTrimmed(filepath.Join(dir, file))
	return text, r.err == nil
}

func (r *reader) number(controller, file string) uint64 {
	text, ok := r.text(controller, file)
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		r.err = fmt.Errorf("%s: %w", file, err)
	}
	return n
}

func (r *reader) limit(controller, file string) uint64 {
	text, ok := r.text(controller, file)
	if n := parseLimit(text); ok && n != math.MaxInt64 {
		return uint64(n)
	}
	return NoLimit
}

func (r *reader) keyed(controller, file string) map[string]uint64 {
	text, _ := r.text(controller, file)
	return parseFlatKeyed(text)
}
