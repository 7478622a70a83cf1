package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// unifiedFiles are what statistics read of a v2 group that uses something.
func unifiedFiles() map[string]string {
	return map[string]string{
		"cpu.stat":       "usage_usec 3000\nuser_usec 1000\nsystem_usec 2000\nnr_periods 7\nnr_throttled 5\nthrottled_usec 4000\n",
		"cpu.pressure":   "some avg10=1.50 avg60=0.25 avg300=0.00 total=11\n",
		"io.pressure":    "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"io.stat":        "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n",
		"memory.stat":    "anon 100\nfile 90\nkernel 12\nfile_mapped 9\ninactive_file 300\nactive_file 60\npgfault 70\npgmajfault 7\n",
		"memory.current": "1000\n", "memory.max": "max\n", "memory.peak": "1500\n",
		"memory.pressure":     "some avg10=0.00 avg60=0.00 avg300=0.00 total=2\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
		"memory.swap.current": "40\n", "memory.swap.max": "50\n", "memory.events": "low 0\nmax 4\noom 2\noom_kill 1\n",
		"pids.current": "3\n", "pids.max": "9\n",
	}
}

// directory in the place of a file: it opens and can't be read, as cgroupfs can't be made to at will.
const directory = "a directory"

func writeGroup(t *testing.T, dir string, sets ...map[string]string) {
	t.Helper()
	files := map[string]string{}
	for _, set := range sets {
		for name, text := range set {
			files[name] = text
		}
	}
	err := os.MkdirAll(dir, 0o755)
	for name, text := range files {
		switch path := filepath.Join(dir, name); text {
		case "":
		case directory:
			err = errors.Join(err, os.Mkdir(path, 0o755))
		default:
			err = errors.Join(err, os.WriteFile(path, []byte(text), 0o644))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestUnifiedStatisticsTakeNoErrorForAZero(t *testing.T) {
	used := func() Stats {
		return Stats{
			Usage: Usage{
				CPU: CPUUsage{Time: 3 * time.Millisecond, Pressure: &Pressure{Some: Stall{Total: 11 * time.Microsecond, Avg10: 1.5, Avg60: 0.25}}},
				Memory: MemoryUsage{UsageBytes: 1000, LimitBytes: NoLimit, WorkingSetBytes: 700, RSSBytes: 100, PageFaults: 70, MajorPageFaults: 7,
					Pressure: &Pressure{Some: Stall{Total: 2 * time.Microsecond}, Full: Stall{Total: time.Microsecond}}},
				Swap: &SwapUsage{UsageBytes: 40, LimitBytes: 50}, IO: &Pressure{},
			},
			CPUTimes: CPUTimes{User: time.Millisecond, System: 2 * time.Millisecond, Periods: 7, ThrottledPeriods: 5, Throttled: 4 * time.Millisecond},
			Detail: MemoryDetail{PeakBytes: 1500, CacheBytes: 90, MappedFileBytes: 9, ActiveFileBytes: 60, InactiveFileBytes: 300, KernelBytes: 12,
				OwnPageFaults: 70, OwnMajorPageFaults: 7, LimitHits: 4, OOMKills: 1},
			Pids:    PidsStats{Current: 3, Limit: 9},
			Devices: []DeviceIO{{Major: 8, ReadBytes: 1, WriteBytes: 2, Reads: 3, Writes: 4}},
		}
	}
	cases := []struct {
		name        string
		files       map[string]string // in the place of unifiedFiles'; "" is absent
		controllers []string
		want        func(*Stats) // what differs from used
		err         error
	}{
		{name: "in use", want: func(*Stats) {}},
		{name: "zeros that are zeros", files: map[string]string{"memory.current": "0\n", "memory.max": "0\n", "pids.current": "0\n", "pids.max": "0\n"},
			want: func(s *Stats) {
				s.Memory.UsageBytes, s.Memory.LimitBytes, s.Memory.WorkingSetBytes, s.Pids = 0, 0, 0, PidsStats{}
			}},
		{name: "no limits", files: map[string]string{"pids.max": "max\n", "memory.swap.max": "max\n"},
			want: func(s *Stats) { s.Pids.Limit, s.Swap.LimitBytes = NoLimit, NoLimit }},
		{name: "a kernel without peaks, swap and pressure", want: func(s *Stats) {
			s.Detail.PeakBytes, s.Swap, s.IO, s.CPU.Pressure, s.Memory.Pressure = 0, nil, nil, nil, nil
		}, files: map[string]string{"memory.peak": "", "memory.swap.current": "", "io.pressure": "", "cpu.pressure": "", "memory.pressure": ""}},
		{name: "a host without the controllers", controllers: []string{"hugetlb"}, want: func(s *Stats) {
			s.Memory, s.Swap, s.Detail, s.Pids, s.Devices = MemoryUsage{LimitBytes: NoLimit}, nil, MemoryDetail{}, PidsStats{Limit: NoLimit}, nil
		}},
		{name: "no device used yet", files: map[string]string{"io.stat": "\n"}, want: func(s *Stats) { s.Devices = nil }},
		{name: "unreadable cpu.stat", err: unix.EISDIR, files: map[string]string{"cpu.stat": directory}},
		{name: "unreadable pressure", err: unix.EISDIR, files: map[string]string{"io.pressure": directory}},
		{name: "unreadable memory.stat", err: unix.EISDIR, files: map[string]string{"memory.stat": directory}},
		{name: "unreadable use", err: unix.EISDIR, files: map[string]string{"memory.current": directory}},
		{name: "unreadable limit", err: unix.EISDIR, files: map[string]string{"memory.max": directory}},
		{name: "unreadable swap", err: unix.EISDIR, files: map[string]string{"memory.swap.current": directory}},
		{name: "unreadable pids", err: unix.EISDIR, files: map[string]string{"pids.current": directory}},
		{name: "unreadable limit of pids", err: unix.EISDIR, files: map[string]string{"pids.max": directory}},
		{name: "a controller the group was not given", err: unix.ENOENT, files: map[string]string{
			"memory.stat": "", "memory.current": "", "memory.max": "", "memory.peak": "", "memory.pressure": "", "memory.swap.current": ""}},
	}
	for _, c := range cases {
		root := t.TempDir()
		writeGroup(t, filepath.Join(root, "g"), unifiedFiles(), c.files)
		controllers := c.controllers
		if controllers == nil {
			controllers = []string{"cpu", "io", "memory", "pids"}
		}
		m := &Manager{mountedTree: mountedTree{version: 2, root: root, controllers: controllers}}
		if err := m.openTops(); err != nil {
			t.Fatal(err)
		}
		got, err := m.Stats("/g")
		if c.err != nil {
			if !errors.Is(err, c.err) {
				t.Errorf("%s: got %+v, %v; want %v", c.name, got, err, c.err)
			}
		} else {
			want := used()
			c.want(&want)
			if err != nil || !reflect.DeepEqual(*got, want) {
				t.Errorf("%s:\ngot  %+v, %v\nwant %+v", c.name, got, err, want)
			}
			usage, err := m.Usage("/g")
			if err != nil || !reflect.DeepEqual(*usage, want.Usage) {
				t.Errorf("%s: use alone:\ngot  %+v, %v\nwant %+v", c.name, usage, err, want.Usage)
			}
		}
		if got, err := m.Stats("/gone"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a group that is gone: got %+v, %v; want ErrNotExist", c.name, got, err)
		}
	}
}

// legacyFiles are those of a v1 group, by controller.
func legacyFiles() map[string]map[string]string {
	return map[string]map[string]string{
		"cpuacct": {"cpuacct.usage": "3000000\n", "cpuacct.stat": "user 1\nsystem 2\n"},
		"cpu":     {"cpu.stat": "nr_periods 7\nnr_throttled 5\nthrottled_time 4000000\nnr_bursts 0\n"},
		"memory": {
			"memory.usage_in_bytes": "1000\n", "memory.limit_in_bytes": "2000\n", "memory.max_usage_in_bytes": "1500\n", "memory.failcnt": "4\n",
			"memory.memsw.limit_in_bytes": "2050\n", "memory.kmem.usage_in_bytes": "12\n", "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
			"memory.stat": "cache 1\nrss 2\npgfault 3\npgmajfault 1\ninactive_file 5\ntotal_cache 90\ntotal_rss 100\ntotal_mapped_file 9\ntotal_swap 40\n" +
				"total_pgfault 70\ntotal_pgmajfault 7\ntotal_inactive_file 300\ntotal_active_file 60\n" + limitsAbove,
		},
		"pids": {"pids.current": "3\n", "pids.max": "max\n"},
		"blkio": {
			"blkio.throttle.io_service_bytes_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Sync 3\n8:0 Total 3\nTotal 3\n",
			"blkio.throttle.io_serviced_recursive":      "8:0 Read 3\n8:0 Write 4\nTotal 7\n",
		},
	}
}

// limitsAbove are what memory.stat says of the group and those above it.
const limitsAbove = "hierarchical_memory_limit 1900\nhierarchical_memsw_limit 2000\n"

func TestLegacyStatistics(t *testing.T) {
	noLimit := "9223372036854771712\n"
	stat := strings.TrimSuffix(legacyFiles()["memory"]["memory.stat"], limitsAbove)
	cases := []struct {
		name             string
		controller, file string
		text             string
		gone             []string // files that are not there
		want             func(*Stats)
		err              error
	}{
		{name: "in use", want: func(*Stats) {}},
		{name: "no limit anywhere: the files of limits are not read", controller: "memory", file: "memory.stat",
			text: stat + "hierarchical_memory_limit " + noLimit + "hierarchical_memsw_limit " + noLimit, gone: []string{"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"},
			want: func(s *Stats) { s.Memory.LimitBytes, s.Swap.LimitBytes = NoLimit, NoLimit }},
		{name: "a limit of the memory alone", controller: "memory", file: "memory.stat", text: stat + "hierarchical_memory_limit 1900\nhierarchical_memsw_limit " + noLimit,
			gone: []string{"memory.memsw.limit_in_bytes"}, want: func(s *Stats) { s.Swap.LimitBytes = NoLimit }},
		{name: "limits above only", controller: "memory", file: "memory.limit_in_bytes", text: noLimit,
			want: func(s *Stats) { s.Memory.LimitBytes, s.Swap.LimitBytes = NoLimit, NoLimit }},
		{name: "no limit of swap", controller: "memory", file: "memory.memsw.limit_in_bytes", text: noLimit, want: func(s *Stats) { s.Swap.LimitBytes = NoLimit }},
		{name: "swap is not accounted for", controller: "memory", file: "memory.stat", text: stat + "hierarchical_memory_limit 1900\n",
			gone: []string{"memory.memsw.limit_in_bytes"}, want: func(s *Stats) { s.Swap = nil }},
		{name: "a kernel that does not tell of limits above", controller: "memory", file: "memory.stat", text: stat, want: func(s *Stats) { s.Swap = nil }},
		{name: "no throttling of devices", controller: "blkio", file: "blkio.throttle.io_service_bytes_recursive",
			want: func(s *Stats) { s.Devices = []DeviceIO{{Major: 8, Reads: 3, Writes: 4}} }},
		{name: "gone in one hierarchy", controller: "memory", file: "memory.usage_in_bytes", err: fs.ErrNotExist},
		{name: "unreadable", controller: "cpuacct", file: "cpuacct.usage", text: directory, err: unix.EISDIR},
		{name: "no number", controller: "pids", file: "pids.current", text: "three\n", err: errors.ErrUnsupported},
	}
	for _, c := range cases {
		root := t.TempDir()
		m := &Manager{mountedTree: mountedTree{version: 1}}
		for controller, files := range legacyFiles() {
			if controller == c.controller {
				files[c.file] = c.text
				for _, name := range c.gone {
					delete(files, name)
				}
			}
			writeGroup(t, filepath.Join(root, controller, "g"), files)
			m.hierarchies = append(m.hierarchies, Hierarchy{Controllers: []string{controller}, MountPoint: filepath.Join(root, controller)})
			m.controllers = append(m.controllers, controller)
		}
		if err := m.openTops(); err != nil {
			t.Fatal(err)
		}
		got, err := m.Stats("/g")
		if c.err != nil {
			if err == nil || c.err != errors.ErrUnsupported && !errors.Is(err, c.err) {
				t.Errorf("%s: got %+v, %v; want %v", c.name, got, err, c.err)
			}
			continue
		}
		want := Stats{
			Usage: Usage{
				CPU:    CPUUsage{Time: 3 * time.Millisecond},
				Memory: MemoryUsage{UsageBytes: 1000, LimitBytes: 2000, WorkingSetBytes: 700, RSSBytes: 100, PageFaults: 70, MajorPageFaults: 7},
				Swap:   &SwapUsage{UsageBytes: 40, LimitBytes: 50},
			},
			CPUTimes: CPUTimes{User: 10 * time.Millisecond, System: 20 * time.Millisecond, Periods: 7, ThrottledPeriods: 5, Throttled: 4 * time.Millisecond},
			Detail: MemoryDetail{PeakBytes: 1500, CacheBytes: 90, MappedFileBytes: 9, ActiveFileBytes: 60, InactiveFileBytes: 300, KernelBytes: 12,
				OwnPageFaults: 3, OwnMajorPageFaults: 1, LimitHits: 4, OOMKills: 1},
			Pids:    PidsStats{Current: 3, Limit: NoLimit},
			Devices: []DeviceIO{{Major: 8, ReadBytes: 1, WriteBytes: 2, Reads: 3, Writes: 4}},
		}
		c.want(&want)
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("%s:\ngot  %+v, %v\nwant %+v", c.name, got, err, want)
		}
		if usage, err := m.Usage("/g"); err != nil || !reflect.DeepEqual(*usage, want.Usage) {
			t.Errorf("%s: use alone:\ngot  %+v, %v\nwant %+v", c.name, usage, err, want.Usage)
		}
	}
}

func TestPressure(t *testing.T) {
	for text, want := range map[string]*Pressure{
		"": nil, "\n": nil, "none\n": nil,
		"some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n":                                                     {},
		"some avg10=23.09 avg60=17.01 avg300=8.43 total=313\nfull avg10=1.00 avg60=2.00 avg300=3.00 total=7\n": {Some: Stall{Total: 313 * time.Microsecond, Avg10: 23.09, Avg60: 17.01, Avg300: 8.43}, Full: Stall{Total: 7 * time.Microsecond, Avg10: 1, Avg60: 2, Avg300: 3}},
		"full avg10=NaN avg60=-1 avg300=x total=y more=1\n":                                                    {},
	} {
		if got := parsePressure(text); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, want %+v", text, got, want)
		}
	}
}

func TestDeviceIO(t *testing.T) {
	for text, want := range map[string][]DeviceIO{
		"": nil, "8:0 \n": nil, "8:0\n": nil, "x:0 rbytes=1\n": nil,
		"8:0 rbytes=1\n8:16 wbytes=2 rios=x\n8:0 wios=3\n":   {{Major: 8, ReadBytes: 1, Writes: 3}, {Major: 8, Minor: 16, WriteBytes: 2}},
		"259:1048575 rbytes=18446744073709551615 dbytes=1\n": {{Major: 259, Minor: 1048575, ReadBytes: 18446744073709551615}},
	} {
		if got := parseIOStat(text); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, want %+v", text, got, want)
		}
	}
}

// FuzzStatisticsFiles: how much is in these files, and of which device, is up to what runs in the group.
func FuzzStatisticsFiles(f *testing.F) {
	for _, text := range unifiedFiles() {
		f.Add(text)
	}
	for _, files := range legacyFiles() {
		for _, text := range files {
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		seen := map[string]bool{}
		for _, d := range append(parseIOStat(text), parseBlkio(text, text)...) {
			seen[fmt.Sprint(d.Major, ":", d.Minor)] = true
		}
		if len(seen) > strings.Count(text, ":") {
			t.Errorf("%d devices of %q", len(seen), text)
		}
		if p := parsePressure(text); p != nil && (p.Some.Avg10 < 0 || p.Full.Avg300 > 1000) {
			t.Errorf("%+v of %q", p, text)
		}
		number := uint64(0)
		pick(text, want{"anon", &number})
		limitOf(strings.TrimSpace(text))
	})
}
