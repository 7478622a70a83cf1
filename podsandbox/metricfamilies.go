package podsandbox

import (
	"strconv"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/namespace"
)

// add takes a value, with the labels beyond metricLabels.
type add func(value uint64, labels ...string)

// metricFamily is one metric: what it is called, and its values for a subject.
type metricFamily struct {
	name, help string
	kind       criv1.MetricType
	labels     []string // beyond metricLabels
	values     func(*subject, add)
}

const (
	counter = criv1.MetricType_COUNTER
	gauge   = criv1.MetricType_GAUGE
	// defaultPeriod is the kernel's, in microseconds.
	defaultPeriod = 100_000
)

var (
	interfaceLabel = []string{"interface"}
	deviceLabel    = []string{"device"}
)

// metricFamilies are those of cAdvisor that the kubelet asks it for and that a control group can tell.
var metricFamilies = []metricFamily{
	{"container_last_seen", "Time at which these figures were read, in seconds since the epoch.", gauge, nil, ofGroup(func(f *figures, add add) { add(uint64(f.at.Unix())) })},
	{"container_start_time_seconds", "Start of the container, in seconds since the epoch.", gauge, nil, ofGroupAnd(func(s *subject, add add) { add(uint64(s.started.Unix())) })},

	{"container_cpu_usage_seconds_total", "Processor time used, in seconds.", counter, []string{"cpu"}, ofGroup(func(f *figures, add add) { add(seconds(f.stats.CPU.Time), "total") })},
	{"container_cpu_user_seconds_total", "Processor time used outside the kernel, in seconds.", counter, nil, ofGroup(func(f *figures, add add) { add(seconds(f.stats.CPUTimes.User)) })},
	{"container_cpu_system_seconds_total", "Processor time used in the kernel, in seconds.", counter, nil, ofGroup(func(f *figures, add add) { add(seconds(f.stats.CPUTimes.System)) })},
	{"container_cpu_cfs_periods_total", "Periods in which the quota of processor time was enforced.", counter, nil, ofQuota(func(t cgroup.CPUTimes, add add) { add(t.Periods) })},
	{"container_cpu_cfs_throttled_periods_total", "Periods in which the quota was used up.", counter, nil, ofQuota(func(t cgroup.CPUTimes, add add) { add(t.ThrottledPeriods) })},
	{"container_cpu_cfs_throttled_seconds_total", "Time without processor because the quota was used up, in seconds.", counter, nil, ofQuota(func(t cgroup.CPUTimes, add add) { add(seconds(t.Throttled)) })},

	{"container_memory_usage_bytes", "Memory in use, page cache included.", gauge, nil, ofMemory(func(m cgroup.MemoryUsage, _ cgroup.MemoryDetail, add add) { add(m.UsageBytes) })},
	{"container_memory_working_set_bytes", "Memory in use, without files that were not used lately.", gauge, nil, ofMemory(func(m cgroup.MemoryUsage, _ cgroup.MemoryDetail, add add) { add(m.WorkingSetBytes) })},
	{"container_memory_rss", "Anonymous memory, in bytes.", gauge, nil, ofMemory(func(m cgroup.MemoryUsage, _ cgroup.MemoryDetail, add add) { add(m.RSSBytes) })},
	{"container_memory_cache", "Page cache, in bytes.", gauge, nil, ofMemory(func(_ cgroup.MemoryUsage, d cgroup.MemoryDetail, add add) { add(d.CacheBytes) })},
	{"container_memory_mapped_file", "Mapped files, in bytes.", gauge, nil, ofMemory(func(_ cgroup.MemoryUsage, d cgroup.MemoryDetail, add add) { add(d.MappedFileBytes) })},
	{"container_memory_total_active_file_bytes", "Page cache that was used lately.", gauge, nil, ofMemory(func(_ cgroup.MemoryUsage, d cgroup.MemoryDetail, add add) { add(d.ActiveFileBytes) })},
	{"container_memory_total_inactive_file_bytes", "Page cache that was not used lately.", gauge, nil, ofMemory(func(_ cgroup.MemoryUsage, d cgroup.MemoryDetail, add add) { add(d.InactiveFileBytes) })},
	{"container_memory_kernel_usage", "Memory of the kernel, in bytes.", gauge, nil, ofMemory(func(_ cgroup.MemoryUsage, d cgroup.MemoryDetail, add add) { add.known(d.KernelBytes) })},
	{"container_memory_max_usage_bytes", "The most memory that was in use.", gauge, nil, ofMemory(func(_ cgroup.MemoryUsage, d cgroup.MemoryDetail, add add) { add.known(d.PeakBytes) })},
	{"container_memory_swap", "Swap in use, in bytes.", gauge, nil, ofGroup(func(f *figures, add add) {
		if swap := f.stats.Swap; swap != nil {
			add(swap.UsageBytes)
		}
	})},
	{"container_memory_failcnt", "How often the memory limit was reached.", counter, nil, ofMemory(func(_ cgroup.MemoryUsage, d cgroup.MemoryDetail, add add) { add(d.LimitHits) })},
	{"container_memory_failures_total", "Page faults; scope is the control group alone, or with those below.", counter, []string{"failure_type", "scope"}, ofMemory(func(m cgroup.MemoryUsage, d cgroup.MemoryDetail, add add) {
		add(d.OwnPageFaults, "pgfault", "container")
		add(d.OwnMajorPageFaults, "pgmajfault", "container")
		add(m.PageFaults, "pgfault", "hierarchy")
		add(m.MajorPageFaults, "pgmajfault", "hierarchy")
	})},
	{"container_oom_events_total", "Processes that were killed for want of memory.", counter, nil, ofMemory(func(_ cgroup.MemoryUsage, d cgroup.MemoryDetail, add add) { add(d.OOMKills) })},

	{"container_pressure_cpu_waiting_seconds_total", "Time in which some task waited for a processor, in seconds.", counter, nil, ofPressure(cpuPressure, some)},
	{"container_pressure_cpu_stalled_seconds_total", "Time in which all tasks waited for a processor, in seconds.", counter, nil, ofPressure(cpuPressure, full)},
	{"container_pressure_memory_waiting_seconds_total", "Time in which some task waited for memory, in seconds.", counter, nil, ofPressure(memoryPressure, some)},
	{"container_pressure_memory_stalled_seconds_total", "Time in which all tasks waited for memory, in seconds.", counter, nil, ofPressure(memoryPressure, full)},
	{"container_pressure_io_waiting_seconds_total", "Time in which some task waited for I/O, in seconds.", counter, nil, ofPressure(ioPressure, some)},
	{"container_pressure_io_stalled_seconds_total", "Time in which all tasks waited for I/O, in seconds.", counter, nil, ofPressure(ioPressure, full)},

	{"container_fs_reads_bytes_total", "Bytes read from a block device.", counter, deviceLabel, ofDevices(func(d cgroup.DeviceIO) uint64 { return d.ReadBytes })},
	{"container_fs_reads_total", "Reads from a block device.", counter, deviceLabel, ofDevices(func(d cgroup.DeviceIO) uint64 { return d.Reads })},
	{"container_fs_writes_bytes_total", "Bytes written to a block device.", counter, deviceLabel, ofDevices(func(d cgroup.DeviceIO) uint64 { return d.WriteBytes })},
	{"container_fs_writes_total", "Writes to a block device.", counter, deviceLabel, ofDevices(func(d cgroup.DeviceIO) uint64 { return d.Writes })},
	{"container_blkio_device_usage_total", "Bytes read from and written to a block device.", counter, []string{"device", "major", "minor", "operation"}, ofGroupAnd(func(s *subject, add add) {
		for _, d := range s.figures.stats.Devices {
			name, major, minor := s.disk.name(d.Major, d.Minor), strconv.Itoa(int(d.Major)), strconv.Itoa(int(d.Minor))
			add(d.ReadBytes, name, major, minor, "Read")
			add(d.WriteBytes, name, major, minor, "Write")
		}
	})},
	{"container_fs_usage_bytes", "What the writable layer takes on disk.", gauge, deviceLabel, ofLayer(func(s *subject) uint64 { return s.layer.Bytes })},
	{"container_fs_limit_bytes", "Size of the file system that writable layers are on.", gauge, deviceLabel, ofLayer(func(s *subject) uint64 { return s.disk.limitBytes })},
	{"container_fs_inodes_total", "Inodes of that file system.", gauge, deviceLabel, ofLayer(func(s *subject) uint64 { return s.disk.inodes })},
	{"container_fs_inodes_free", "Free inodes of that file system.", gauge, deviceLabel, ofLayer(func(s *subject) uint64 { return s.disk.freeNodes })},

	{"container_network_receive_bytes_total", "Bytes received.", counter, interfaceLabel, ofLinks(func(l namespace.Link) uint64 { return l.RxBytes })},
	{"container_network_receive_packets_total", "Packets received.", counter, interfaceLabel, ofLinks(func(l namespace.Link) uint64 { return l.RxPackets })},
	{"container_network_receive_packets_dropped_total", "Packets dropped while receiving.", counter, interfaceLabel, ofLinks(func(l namespace.Link) uint64 { return l.RxDropped })},
	{"container_network_receive_errors_total", "Errors while receiving.", counter, interfaceLabel, ofLinks(func(l namespace.Link) uint64 { return l.RxErrors })},
	{"container_network_transmit_bytes_total", "Bytes sent.", counter, interfaceLabel, ofLinks(func(l namespace.Link) uint64 { return l.TxBytes })},
	{"container_network_transmit_packets_total", "Packets sent.", counter, interfaceLabel, ofLinks(func(l namespace.Link) uint64 { return l.TxPackets })},
	{"container_network_transmit_packets_dropped_total", "Packets dropped while sending.", counter, interfaceLabel, ofLinks(func(l namespace.Link) uint64 { return l.TxDropped })},
	{"container_network_transmit_errors_total", "Errors while sending.", counter, interfaceLabel, ofLinks(func(l namespace.Link) uint64 { return l.TxErrors })},

	{"container_processes", "Processes in the container.", gauge, nil, ofContainer(func(s *subject, add add) { add(uint64(s.figures.processes)) })},
	{"container_threads", "Threads in the container.", gauge, nil, ofGroup(func(f *figures, add add) { add(f.stats.Pids.Current) })},
	{"container_threads_max", "How many threads there may be; 0 is no limit.", gauge, nil, ofGroup(func(f *figures, add add) { add(limitOrZero(f.stats.Pids.Limit)) })},
	{"container_file_descriptors", "Open file descriptors.", gauge, nil, ofProcesses(func(p *procFigures, add add) { add(p.descriptors) })},
	{"container_sockets", "Open sockets.", gauge, nil, ofProcesses(func(p *procFigures, add add) { add(p.sockets) })},
	{"container_ulimits_soft", "Soft limit of the first process; missing if there is none.", gauge, []string{"ulimit"}, ofProcesses(func(p *procFigures, add add) {
		if p.hasMaxOpenFiles {
			add(p.maxOpenFiles, "max_open_files")
		}
	})},

	{"container_spec_cpu_period", "Period of the quota of processor time, in microseconds.", gauge, nil, ofContainer(func(s *subject, add add) {
		if period := s.resources.GetCpuPeriod(); period > 0 {
			add(uint64(period))
		} else {
			add(defaultPeriod)
		}
	})},
	{"container_spec_cpu_quota", "Processor time in a period, in microseconds; missing if there is no limit.", gauge, nil, ofContainer(func(s *subject, add add) {
		if quota := s.resources.GetCpuQuota(); quota > 0 {
			add(uint64(quota))
		}
	})},
	{"container_spec_cpu_shares", "Relative share of processor time.", gauge, nil, ofContainer(func(s *subject, add add) { add.known(uint64(max(0, s.resources.GetCpuShares()))) })},
	{"container_spec_memory_limit_bytes", "Memory limit; 0 is none.", gauge, nil, ofMemory(func(m cgroup.MemoryUsage, _ cgroup.MemoryDetail, add add) { add(limitOrZero(m.LimitBytes)) })},
	{"container_spec_memory_swap_limit_bytes", "Limit of swap alone; 0 is none, or no swap at all.", gauge, nil, ofGroup(func(f *figures, add add) {
		if swap := f.stats.Swap; swap != nil {
			add(limitOrZero(swap.LimitBytes))
		}
	})},
	{"container_spec_memory_reservation_limit_bytes", "Memory that is reclaimed last (memory.low); 0 is none.", gauge, nil, ofContainer(func(s *subject, add add) {
		low, _ := strconv.ParseUint(s.resources.GetUnified()["memory.low"], 10, 64)
		add(low)
	})},
}

// known adds a value that the kernel may not tell; it is never 0 when it does.
func (a add) known(value uint64) {
	if value > 0 {
		a(value)
	}
}

func seconds(d time.Duration) uint64 { return uint64(d / time.Second) }

func limitOrZero(limit uint64) uint64 {
	if limit == cgroup.NoLimit {
		return 0
	}
	return limit
}

// What a family's values are of, and when it has none.

func ofGroupAnd(values func(*subject, add)) func(*subject, add) {
	return func(s *subject, add add) {
		if s.figures != nil {
			values(s, add)
		}
	}
}

func ofGroup(values func(*figures, add)) func(*subject, add) {
	return ofGroupAnd(func(s *subject, add add) { values(s.figures, add) })
}

func ofContainer(values func(*subject, add)) func(*subject, add) {
	return ofGroupAnd(func(s *subject, add add) {
		if s.resources != nil {
			values(s, add)
		}
	})
}

// ofQuota: without a quota there are no periods.
func ofQuota(values func(cgroup.CPUTimes, add)) func(*subject, add) {
	return ofGroupAnd(func(s *subject, add add) {
		if times := s.figures.stats.CPUTimes; times.Periods > 0 || s.resources.GetCpuQuota() > 0 {
			values(times, add)
		}
	})
}

func ofMemory(values func(cgroup.MemoryUsage, cgroup.MemoryDetail, add)) func(*subject, add) {
	return ofGroup(func(f *figures, add add) { values(f.stats.Memory, f.stats.Detail, add) })
}

func cpuPressure(u cgroup.Usage) *cgroup.Pressure    { return u.CPU.Pressure }
func memoryPressure(u cgroup.Usage) *cgroup.Pressure { return u.Memory.Pressure }
func ioPressure(u cgroup.Usage) *cgroup.Pressure     { return u.IO }
func some(p *cgroup.Pressure) cgroup.Stall           { return p.Some }
func full(p *cgroup.Pressure) cgroup.Stall           { return p.Full }

func ofPressure(of func(cgroup.Usage) *cgroup.Pressure, stall func(*cgroup.Pressure) cgroup.Stall) func(*subject, add) {
	return ofGroup(func(f *figures, add add) {
		if p := of(f.stats.Usage); p != nil {
			add(seconds(stall(p).Total))
		}
	})
}

func ofDevices(value func(cgroup.DeviceIO) uint64) func(*subject, add) {
	return ofGroupAnd(func(s *subject, add add) {
		for _, d := range s.figures.stats.Devices {
			add(value(d), s.disk.name(d.Major, d.Minor))
		}
	})
}

func ofLayer(value func(*subject) uint64) func(*subject, add) {
	return func(s *subject, add add) {
		if s.layer != nil && s.disk.device != "" {
			add(value(s), s.disk.device)
		}
	}
}

// ofLinks leaves out a name that was told already: a container may give two interfaces names that are the same in UTF-8, and
// who collects metrics takes none of a family then.
func ofLinks(value func(namespace.Link) uint64) func(*subject, add) {
	return func(s *subject, add add) {
		told := map[string]bool{}
		for _, l := range s.links {
			if !told[l.Name] {
				add(value(l), l.Name)
			}
			told[l.Name] = true
		}
	}
}

func ofProcesses(values func(*procFigures, add)) func(*subject, add) {
	return ofGroup(func(f *figures, add add) {
		if f.proc != nil {
			values(f.proc, add)
		}
	})
}
