package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// NoLimit is what a limit reads as when there is none.
const NoLimit = math.MaxUint64

// Usage is what is asked of a group every few seconds: what it and all below it use.
// What the host has no controller for stays zero.
type Usage struct {
	CPU    CPUUsage
	Memory MemoryUsage
	Swap   *SwapUsage // nil where the kernel does not account for swap
	// IO is nil on v1, and where the kernel keeps no pressure; so are those of CPU and Memory.
	IO *Pressure
}

// CPUUsage is of the time since the group was made.
type CPUUsage struct {
	Time     time.Duration
	Pressure *Pressure
}

// MemoryUsage is in bytes, but for the faults. WorkingSet is Usage without file pages
// that have not been used lately, which is what the kubelet evicts by.
type MemoryUsage struct {
	UsageBytes      uint64
	WorkingSetBytes uint64
	RSSBytes        uint64 // anonymous memory
	LimitBytes      uint64 // the group's own; NoLimit if there is none
	PageFaults      uint64
	MajorPageFaults uint64
	Pressure        *Pressure
}

// SwapUsage is in bytes of swap alone, on v1 too.
type SwapUsage struct {
	UsageBytes uint64
	LimitBytes uint64 // NoLimit if there is none
}

// Stats is Usage and all else that metrics tell of a group.
type Stats struct {
	Usage
	CPUTimes CPUTimes
	Detail   MemoryDetail
	Pids     PidsStats
	Devices  []DeviceIO // one for each block device that was used
}

// CPUTimes are since the group was made. Periods count only while a quota is set.
type CPUTimes struct {
	User, System     time.Duration
	Periods          uint64
	ThrottledPeriods uint64
	Throttled        time.Duration
}

// MemoryDetail is in bytes, but for what is counted.
type MemoryDetail struct {
	PeakBytes         uint64 // v2: 0 before Linux 5.19
	CacheBytes        uint64
	MappedFileBytes   uint64
	ActiveFileBytes   uint64
	InactiveFileBytes uint64
	KernelBytes       uint64 // v2: 0 before Linux 5.18
	// Of the group itself, without those below; v2 has only the sum.
	OwnPageFaults, OwnMajorPageFaults uint64
	LimitHits                         uint64
	OOMKills                          uint64
}

// PidsStats count tasks.
type PidsStats struct {
	Current uint64
	Limit   uint64 // NoLimit if there is none
}

// Usage reads what changes all the time. A group that is gone is an error that is
// fs.ErrNotExist.
func (m *Manager) Usage(path string) (*Usage, error) {
	s, err := m.stats(path, false)
	if err != nil {
		return nil, err
	}
	return &s.Usage, nil
}

// Stats reads all there is, for about three times the price of Usage.
func (m *Manager) Stats(path string) (*Stats, error) { return m.stats(path, true) }

func (m *Manager) stats(path string, all bool) (*Stats, error) {
	g, err := m.group(path)
	if err != nil {
		return nil, err
	}
	s := &Stats{Usage: Usage{Memory: MemoryUsage{LimitBytes: NoLimit}}, Pids: PidsStats{Limit: NoLimit}}
	r := reader{group: g}
	if g.version == 2 {
		r.usageV2(s, all)
	} else {
		r.usageV1(s, all)
	}
	if errors.Is(r.err, unix.ENODEV) { // removed between open and read
		r.err = fmt.Errorf("%w: %w", fs.ErrNotExist, r.err)
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

func (r *reader) usageV1(s *Stats, all bool) {
	s.CPU.Time = time.Duration(r.number("cpuacct", "cpuacct.usage"))
	s.Memory.UsageBytes = r.number("memory", "memory.usage_in_bytes")
	// The lowest limits of the group and those above it. Where there is none the group has none of its own, which saves
	// two files of five. Without accounting for swap the second is absent.
	const absent = NoLimit
	lowest, lowestSum := uint64(0), uint64(absent)
	var swap, inactiveFile uint64
	stat, _ := r.text("memory", "memory.stat")
	pick(stat,
		want{"total_rss", &s.Memory.RSSBytes}, want{"total_pgfault", &s.Memory.PageFaults}, want{"total_pgmajfault", &s.Memory.MajorPageFaults},
		want{"total_swap", &swap}, want{"total_inactive_file", &inactiveFile},
		want{"hierarchical_memory_limit", &lowest}, want{"hierarchical_memsw_limit", &lowestSum},
	)
	s.Memory.WorkingSetBytes = workingSet(s.Memory.UsageBytes, inactiveFile)
	if lowest < noLimitV1 {
		s.Memory.LimitBytes = r.limit("memory", "memory.limit_in_bytes")
	}
	if lowestSum != absent {
		s.Swap = &SwapUsage{UsageBytes: swap, LimitBytes: NoLimit}
		if s.Memory.LimitBytes != NoLimit && lowestSum < noLimitV1 {
			if limit := r.limit("memory", "memory.memsw.limit_in_bytes"); limit != NoLimit {
				s.Swap.LimitBytes = limit - min(limit, s.Memory.LimitBytes)
			}
		}
	}
	if all {
		r.detailsV1(s, stat)
	}
}

func (r *reader) detailsV1(s *Stats, stat string) {
	times := r.keyed("cpuacct", "cpuacct.stat")
	s.CPUTimes.User, s.CPUTimes.System = ticks(times["user"]), ticks(times["system"])
	cpu := r.keyed("cpu", "cpu.stat")
	s.CPUTimes.Periods, s.CPUTimes.ThrottledPeriods = cpu["nr_periods"], cpu["nr_throttled"]
	s.CPUTimes.Throttled = time.Duration(cpu["throttled_time"])
	d := &s.Detail
	pick(stat,
		want{"total_cache", &d.CacheBytes}, want{"total_mapped_file", &d.MappedFileBytes}, want{"total_active_file", &d.ActiveFileBytes},
		want{"total_inactive_file", &d.InactiveFileBytes}, want{"pgfault", &d.OwnPageFaults}, want{"pgmajfault", &d.OwnMajorPageFaults},
	)
	d.PeakBytes = r.number("memory", "memory.max_usage_in_bytes")
	d.LimitHits = r.number("memory", "memory.failcnt")
	d.OOMKills = r.keyed("memory", "memory.oom_control")["oom_kill"]
	if kernel, ok := r.optional("memory", "memory.kmem.usage_in_bytes"); ok { // absent with cgroup.memory=nokmem
		d.KernelBytes, _ = strconv.ParseUint(kernel, 10, 64)
	}
	s.Pids.Current = r.number("pids", "pids.current")
	s.Pids.Limit = r.limit("pids", "pids.max")
	// Absent without the throttling policy of blk-cgroup.
	bytes, _ := r.optional("blkio", "blkio.throttle.io_service_bytes_recursive")
	operations, _ := r.optional("blkio", "blkio.throttle.io_serviced_recursive")
	s.Devices = parseBlkio(bytes, operations)
}

func (r *reader) usageV2(s *Stats, all bool) {
	var cpu cpuStatV2
	cpu.read(r.core("cpu.stat")) // there without the controller
	s.CPU.Time = micros(cpu.usage)
	s.CPU.Pressure, s.IO = r.pressure("cpu.pressure"), r.pressure("io.pressure")
	if r.has("memory") {
		s.Memory.UsageBytes = r.number("memory", "memory.current")
		s.Memory.LimitBytes = r.limit("memory", "memory.max")
		stat, _ := r.text("memory", "memory.stat")
		inactiveFile := uint64(0)
		pick(stat,
			want{"anon", &s.Memory.RSSBytes}, want{"pgfault", &s.Memory.PageFaults}, want{"pgmajfault", &s.Memory.MajorPageFaults}, want{"inactive_file", &inactiveFile},
		)
		s.Memory.WorkingSetBytes = workingSet(s.Memory.UsageBytes, inactiveFile)
		s.Memory.Pressure = r.pressure("memory.pressure")
		if used, ok := r.optional("memory", "memory.swap.current"); ok {
			s.Swap = &SwapUsage{LimitBytes: r.limit("memory", "memory.swap.max")}
			s.Swap.UsageBytes, _ = strconv.ParseUint(used, 10, 64)
		}
		if all {
			r.memoryDetailV2(s, stat)
		}
	}
	if !all {
		return
	}
	s.CPUTimes = CPUTimes{User: micros(cpu.user), System: micros(cpu.system), Periods: cpu.periods, ThrottledPeriods: cpu.throttledPeriods, Throttled: micros(cpu.throttled)}
	s.Pids.Current = r.number("pids", "pids.current")
	s.Pids.Limit = r.limit("pids", "pids.max")
	io, _ := r.optional("io", "io.stat")
	s.Devices = parseIOStat(io)
}

func (r *reader) memoryDetailV2(s *Stats, stat string) {
	d := &s.Detail
	pick(stat,
		want{"file", &d.CacheBytes}, want{"file_mapped", &d.MappedFileBytes}, want{"active_file", &d.ActiveFileBytes}, want{"inactive_file", &d.InactiveFileBytes}, want{"kernel", &d.KernelBytes},
	)
	d.OwnPageFaults, d.OwnMajorPageFaults = s.Memory.PageFaults, s.Memory.MajorPageFaults
	events := r.keyed("memory", "memory.events")
	d.LimitHits, d.OOMKills = events["max"], events["oom_kill"]
	if peak, ok := r.optional("memory", "memory.peak"); ok {
		d.PeakBytes, _ = strconv.ParseUint(peak, 10, 64)
	}
}

// cpuStatV2 is what cpu.stat has of interest, in microseconds where it is time.
type cpuStatV2 struct {
	usage, user, system, periods, throttledPeriods, throttled uint64
}

func (c *cpuStatV2) read(text string) {
	pick(text,
		want{"usage_usec", &c.usage}, want{"user_usec", &c.user}, want{"system_usec", &c.system},
		want{"nr_periods", &c.periods}, want{"nr_throttled", &c.throttledPeriods}, want{"throttled_usec", &c.throttled},
	)
}

func workingSet(usage, inactiveFile uint64) uint64 {
	return usage - min(usage, inactiveFile)
}

func micros(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }

// ticks are of USER_HZ, which is 100 on every architecture that Go runs on.
func ticks(n uint64) time.Duration { return time.Duration(n) * (time.Second / 100) }

// text reads one file. A controller that the host lacks gives ok false and no error.
func (r *reader) text(controller, file string) (text string, ok bool) {
	if r.err != nil || !r.has(controller) {
		return "", false
	}
	return r.record(r.topOf(controller), file)
}

// record reads a file that is no list.
func (r *reader) record(t top, file string) (text string, ok bool) {
	if text, r.err = sys.ReadKernelRecordAt(t.fd(), r.path[1:]+"/"+file, smallFile); r.err != nil {
		r.err = fmt.Errorf("%s: %w", t.point, r.err)
	}
	return strings.TrimSpace(text), r.err == nil
}

// optional is text of a file that not every kernel has, or that it may refuse to read.
func (r *reader) optional(controller, file string) (string, bool) {
	if r.err != nil {
		return "", false
	}
	text, ok := r.text(controller, file)
	if errors.Is(r.err, unix.ENOENT) || errors.Is(r.err, unix.EOPNOTSUPP) {
		r.err = nil
	}
	return text, ok
}

// core reads a file that v2 has without any controller.
func (r *reader) core(file string) (text string) {
	if r.err == nil {
		text, _ = r.record(r.tops[0], file)
	}
	return text
}

// pressure is nil where the kernel keeps none: built without, psi=0, or cgroup.pressure switched off.
func (r *reader) pressure(file string) *Pressure {
	if r.err != nil {
		return nil
	}
	text := r.core(file)
	if errors.Is(r.err, unix.ENOENT) || errors.Is(r.err, unix.EOPNOTSUPP) {
		r.err = nil
		return nil
	}
	return parsePressure(text)
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
	if !ok {
		return NoLimit
	}
	return limitOf(text)
}

func limitOf(text string) uint64 {
	if n := parseLimit(text); n != math.MaxInt64 {
		return uint64(max(n, 0))
	}
	return NoLimit
}

func (r *reader) keyed(controller, file string) map[string]uint64 {
	text, _ := r.text(controller, file)
	return parseFlatKeyed(text)
}

// pick fills in what is wanted of a file of "key value" lines, of which memory.stat has dozens.
func pick(text string, wanted ...want) {
	for line := range strings.Lines(text) {
		key, number, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if !ok {
			continue
		}
		for _, w := range wanted {
			if w.key == key {
				*w.to, _ = strconv.ParseUint(number, 10, 64)
			}
		}
	}
}

// want says where the value of a key goes.
type want struct {
	key string
	to  *uint64
}
