package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// unifiedFiles are what statistics read of a v2 group that uses something.
func unifiedFiles() map[string]string {
	return map[string]string{
		"cpu.stat":       "usage_usec 3000\nuser_usec 1000\nsystem_usec 2000\nnr_periods 7\nnr_throttled 5\nthrottled_usec 4000\n",
		"memory.stat":    "anon 100\nfile 90\ninactive_file 300\nactive_file 60\n",
		"memory.current": "1000\n", "memory.max": "max\n", "memory.peak": "1500\n",
		"pids.current": "3\n", "pids.max": "9\n",
	}
}

// TestUnifiedStatisticsTakeNoErrorForAZero: files on a disk can be made to fail as
// cgroupfs can't at will. A directory in the place of one is a file that opens and
// can't be read.
func TestUnifiedStatisticsTakeNoErrorForAZero(t *testing.T) {
	used := Stats{
		CPU:    CPUStats{Usage: 3 * time.Millisecond, Periods: 7, ThrottledPeriods: 5, Throttled: 4 * time.Millisecond},
		Memory: MemoryStats{UsageBytes: 1000, PeakBytes: 1500, LimitBytes: NoLimit, WorkingSetBytes: 700},
		Pids:   PidsStats{Current: 3, Limit: 9},
	}
	zero, unlimited, old, coreOnly := used, used, used, used
	zero.Memory = MemoryStats{PeakBytes: 1500}
	zero.Pids = PidsStats{}
	unlimited.Pids.Limit = NoLimit
	old.Memory.PeakBytes = 0
	coreOnly.Memory, coreOnly.Pids = MemoryStats{LimitBytes: NoLimit}, PidsStats{Limit: NoLimit}
	const directory = "a directory"
	cases := []struct {
		name        string
		files       map[string]string // in the place of unifiedFiles'; "" is absent
		controllers []string
		want        Stats
		err         error
	}{
		{name: "in use", want: used},
		{name: "zeros that are zeros", want: zero,
			files: map[string]string{"memory.current": "0\n", "memory.max": "0\n", "pids.current": "0\n", "pids.max": "0\n"}},
		{name: "no limit of pids", want: unlimited, files: map[string]string{"pids.max": "max\n"}},
		{name: "a kernel without peaks", want: old, files: map[string]string{"memory.peak": ""}},
		{name: "a host without the controllers", want: coreOnly, controllers: []string{"hugetlb"}},
		{name: "unreadable cpu.stat", err: unix.EISDIR, files: map[string]string{"cpu.stat": directory}},
		{name: "unreadable memory.stat", err: unix.EISDIR, files: map[string]string{"memory.stat": directory}},
		{name: "unreadable use", err: unix.EISDIR, files: map[string]string{"memory.current": directory}},
		{name: "unreadable limit", err: unix.EISDIR, files: map[string]string{"memory.max": directory}},
		{name: "unreadable pids", err: unix.EISDIR, files: map[string]string{"pids.current": directory}},
		{name: "unreadable limit of pids", err: unix.EISDIR, files: map[string]string{"pids.max": directory}},
		{name: "a controller the group was not given", err: unix.ENOENT, files: map[string]string{
			"memory.stat": "", "memory.current": "", "memory.max": "", "memory.peak": ""}},
	}
	for _, c := range cases {
		root := t.TempDir()
		files := unifiedFiles()
		for name, text := range c.files {
			files[name] = text
		}
		write := func(name, text string) error {
			switch path := filepath.Join(root, "g", name); text {
			case "":
				return nil
			case directory:
				return os.Mkdir(path, 0o755)
			default:
				return os.WriteFile(path, []byte(text), 0o644)
			}
		}
		err := os.Mkdir(filepath.Join(root, "g"), 0o755)
		for name, text := range files {
			err = errors.Join(err, write(name, text))
		}
		if err != nil {
			t.Fatal(err)
		}
		controllers := c.controllers
		if controllers == nil {
			controllers = []string{"cpu", "memory", "pids"}
		}
		m := &Manager{mountedTree: mountedTree{version: 2, root: root, controllers: controllers}}
		got, err := m.Stats("/g")
		switch {
		case c.err != nil && !errors.Is(err, c.err):
			t.Errorf("%s: got %+v, %v; want %v", c.name, got, err, c.err)
		case c.err == nil && (err != nil || *got != c.want):
			t.Errorf("%s:\ngot  %+v, %v\nwant %+v", c.name, got, err, c.want)
		}
		if got, err := m.Stats("/gone"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a group that is gone: got %+v, %v; want ErrNotExist", c.name, got, err)
		}
	}
}
