package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// groupRoot is where the hierarchy that accounts processor time is mounted.
func groupRoot() (root string, v2 bool) {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return "/sys/fs/cgroup", true
	}
	return "/sys/fs/cgroup/cpuacct", false
}

// cpu is the processor time that a runtime's group has used so far; below is "", "/runtime"
// or "/pods". Both versions count what is in groups below and what has ended.
func (r *candidate) cpu(below string) (time.Duration, error) {
	root, v2 := groupRoot()
	if v2 {
		text, err := os.ReadFile(filepath.Join(root, r.cgroup+below, "cpu.stat"))
		if err != nil {
			return 0, err
		}
		return parseCPUStat(string(text))
	}
	text, err := os.ReadFile(filepath.Join(root, r.cgroup+below, "cpuacct.usage"))
	if err != nil {
		return 0, err
	}
	nanos, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return time.Duration(nanos), err
}

// parseCPUStat reads cgroup v2's cpu.stat.
func parseCPUStat(text string) (time.Duration, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "usage_usec "); ok {
			micros, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return time.Duration(micros) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("cpu.stat has no usage_usec: %q", text)
}

// pss is the memory of a runtime's processes in KB, shared pages divided among those who
// share them: all of its own group, and in its pods' groups all but the workload, which is
// known by its command. So pause containers and reapers count.
func (r *candidate) pss(workload []string) (int64, error) {
	root, _ := groupRoot()
	total := int64(0)
	err := filepath.WalkDir(filepath.Join(root, r.cgroup), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Name() != "cgroup.procs" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for pid := range strings.FieldsSeq(string(text)) {
			kb, err := processPSS(pid, workload)
			// It ended since.
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
				continue
			}
			if err != nil {
				return err
			}
			total += kb
		}
		return nil
	})
	if err == nil && total == 0 {
		err = fmt.Errorf("no process in the group %s", r.cgroup)
	}
	return total, err
}

func processPSS(pid string, workload []string) (int64, error) {
	command, err := os.ReadFile("/proc/" + pid + "/cmdline")
	if err != nil || string(command) == strings.Join(workload, "\x00")+"\x00" {
		return 0, err
	}
	text, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
	if err != nil {
		return 0, err
	}
	return parsePSS(text)
}

// parsePSS reads smaps_rollup (proc(5)).
func parsePSS(text []byte) (int64, error) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
			return strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
		}
	}
	return 0, fmt.Errorf("smaps_rollup has no Pss: %q", text)
}

// meter turns a runtime's processor time into samples. An operation is charged with all that
// the runtime uses from its begin to the begin of the runtime's next one, so what is done
// after the answer counts.
type meter struct {
	b          *bench
	r          *candidate
	section    string
	operations int                      // that happen between two marks
	last       map[string]time.Duration // by name of the sample; nil before the first mark
	err        error
}

type meters map[*candidate]*meter

func (b *bench) meters(section string, operations int) meters {
	all := meters{}
	for _, r := range b.candidates {
		all[r] = &meter{b: b, r: r, section: section, operations: operations}
	}
	return all
}

// mark ends the operation before and begins one. Errors wait for finish.
func (m *meter) mark() {
	if m.r.cgroup == "" {
		return
	}
	now, err := m.r.clocks()
	if err != nil {
		m.err = errors.Join(m.err, err)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(m.last)) {
		m.b.samples.add(m.section, name, "ms", m.r.name, milliseconds(now[name]-m.last[name])/float64(m.operations))
	}
	m.last = now
}

// clocks reads processor time: of all, which contains the work that an init does once it has
// joined its container's group and the workload's own; of the runtime's group; and of the
// groups that this is divided into, if it is.
func (r *candidate) clocks() (map[string]time.Duration, error) {
	groups := map[string]string{cpuOfAll: "", cpuOfRuntime: "/runtime"}
	root, _ := groupRoot()
	parts, err := os.ReadDir(filepath.Join(root, r.cgroup, "runtime"))
	if err != nil {
		return nil, err
	}
	for _, part := range parts {
		if part.IsDir() {
			groups[cpuOfRuntime+"/"+part.Name()] = "/runtime/" + part.Name()
		}
	}
	times := map[string]time.Duration{}
	for name, below := range groups {
		if times[name], err = r.cpu(below); err != nil {
			return nil, err
		}
	}
	return times, nil
}

// finish ends the last operation of each runtime, once what it left to do has been done.
func (all meters) finish(ctx context.Context) error {
	if err := sleep(ctx, time.Second); err != nil {
		return err
	}
	var errs []error
	for _, m := range all {
		m.mark()
		errs = append(errs, m.err)
	}
	return errors.Join(errs...)
}
