package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// Update changes the limits that res sets and leaves the others alone (B57). If
// the kernel refuses one, those already written get their old values back (B58).
func (m *Manager) Update(ctx context.Context, path string, res *specs.LinuxResources) error {
	g, err := m.group(path)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("update cgroup %s: %w", path, err)
	}
	for _, dir := range m.dirs(path) {
		if err := unix.Access(dir, unix.F_OK); err != nil {
			return fmt.Errorf("update cgroup: %w", &fs.PathError{Op: "access", Path: dir, Err: err})
		}
	}
	p, err := compile(res, m.host(res), g.present())
	if err == nil {
		err = g.checkUsage(p)
	}
	if err == nil {
		err = g.apply(p, false)
	}
	if err != nil {
		return fmt.Errorf("update cgroup %s: %w", path, err)
	}
	return nil
}

// checkUsage does for v2 what v1 does by itself: a limit under what is in use is
// refused if reclaiming does not make room. v2 would kill processes until it fits.
func (g group) checkUsage(p plan) error {
	want := p.wantMemoryBytes
	if g.version != 2 || want <= 0 {
		return nil
	}
	dir := g.unified()
	usage, err := readUint(filepath.Join(dir, "memory.current"))
	if err != nil || usage <= uint64(want) {
		return err
	}
	// memory.reclaim is of 5.19; it answers EAGAIN if it could not get all of it.
	_ = sys.WriteKernelFile(filepath.Join(dir, "memory.reclaim"), strconv.FormatUint(usage-uint64(want), 10))
	if usage, err = readUint(filepath.Join(dir, "memory.current")); err != nil {
		return err
	}
	if usage > uint64(want) {
		return fmt.Errorf("set memory.max to %d with %d in use: %w", want, usage, ErrBelowUsage)
	}
	return nil
}

type oldValue struct {
	write write
	path  string
	text  string
}

// apply writes a plan. Devices come last, so that only plain values have to be
// put back if they fail. A fresh group is thrown away whole and needs no way back.
func (g group) apply(p plan, fresh bool) error {
	var done []oldValue
	for _, w := range p.writes {
		dir, ok := g.dir(w.Controller)
		if !ok {
			return fmt.Errorf("%s: controller %s: %w", w.File, w.Controller, ErrNotSupported)
		}
		old := oldValue{write: w, path: filepath.Join(dir, w.File)}
		if !fresh {
			// What can't be read back can't be restored; the write says what is wrong.
			old.text, _ = sys.ReadKernelFile(old.path, smallFile)
		}
		err := sys.WriteKernelFile(old.path, w.Value)
		if errors.Is(err, unix.ENOENT) && w.Optional {
			continue
		}
		if errors.Is(err, unix.ENOENT) && g.version == 2 && g.awaitController(w.Controller) == nil {
			err = sys.WriteKernelFile(old.path, w.Value)
		}
		if err != nil {
			err = writeError(w, err)
			if !fresh {
				err = errors.Join(err, restore(done))
			}
			return err
		}
		done = append(done, old)
	}
	if err := g.setDevices(p.devices, fresh); err != nil {
		if !fresh {
			err = errors.Join(err, restore(done))
		}
		return err
	}
	return nil
}

// awaitController waits until the files of a v2 controller that the parent gives are there: a sibling's Create may be
// enabling it, and the group's own list names it before the kernel has made the files. Enabling it once more changes
// nothing, and takes the lock that the first enabling holds.
func (g group) awaitController(controller string) error {
	file := filepath.Join(filepath.Dir(g.unified()), "cgroup.subtree_control")
	return sys.WriteKernelFile(file, "+"+controller)
}

func (g group) setDevices(devices []specs.LinuxDeviceCgroup, fresh bool) error {
	if devices == nil {
		return nil
	}
	rules, err := deviceRules(devices)
	if err != nil {
		return err
	}
	dir, ok := g.dir("devices")
	if !ok {
		return fmt.Errorf("devices: %w", ErrNotSupported)
	}
	if g.version == 2 {
		return setDevicesV2(dir, rules)
	}
	return setDevicesV1(dir, rules, fresh)
}

// restore writes old values back, last written first: the order in which they
// went in was valid at each step, so its reverse is too.
func restore(done []oldValue) error {
	var errs []error
	for _, old := range slices.Backward(done) {
		for _, text := range restoreWrites(old) {
			if err := sys.WriteKernelFile(old.path, text); err != nil {
				errs = append(errs, fmt.Errorf("restore %s: %w", old.write.File, err))
			}
		}
	}
	return errors.Join(errs...)
}

// restoreWrites are the writes that bring a file's old text back.
func restoreWrites(old oldValue) []string {
	text := strings.TrimRight(old.text, "\n")
	switch {
	case old.write.File == "memory.oom_control": // "oom_kill_disable 0\nunder_oom ..."
		if f := strings.Fields(text); len(f) > 1 {
			return f[1:2]
		}
		return nil
	case old.write.File == "io.max" || old.write.File == "io.weight" && strings.ContainsRune(old.write.Value, ':'):
		// A device without a line has no limits and the default weight; that has to be said to the kernel.
		device, _, _ := strings.Cut(old.write.Value, " ")
		none := " rbps=max wbps=max riops=max wiops=max"
		if old.write.File == "io.weight" {
			none = " default"
		}
		lines := []string{device + none}
		for _, line := range strings.Split(text, "\n") {
			if strings.HasPrefix(line, device+" ") {
				lines = append(lines, line)
			}
		}
		return lines
	case old.write.File == "io.weight": // of no device: the first line is the default, those of devices are as they were
		first, _, _ := strings.Cut(text, "\n")
		return []string{first}
	case text == "":
		return []string{"\n"} // cpuset.cpus of a v2 group without any of its own
	}
	return strings.Split(text, "\n")
}

// host reads what the compiler must know; the lists only if they are asked about.
func (t *mountedTree) host(res *specs.LinuxResources) host {
	h := host{version: t.version, controllers: t.controllers, pageSize: int64(os.Getpagesize())}
	if res == nil {
		return h
	}
	if dir, ok := t.controllerDir("memory", "/"); ok && t.version == 1 {
		h.memsw = unix.Access(filepath.Join(dir, "memory.memsw.limit_in_bytes"), unix.F_OK) == nil
	}
	if dir, ok := t.controllerDir("cpuset", "/"); ok {
		suffix := ""
		if t.version == 2 {
			suffix = ".effective"
		}
		if res.CPU != nil && res.CPU.Cpus != "" || res.Unified["cpuset.cpus"] != "" {
			h.cpus, _ = readTrimmed(filepath.Join(dir, "cpuset.cpus"+suffix))
		}
		if res.CPU != nil && res.CPU.Mems != "" || res.Unified["cpuset.mems"] != "" {
			h.mems, _ = readTrimmed(filepath.Join(dir, "cpuset.mems"+suffix))
		}
	}
	if len(res.HugepageLimits) > 0 && t.has("hugetlb") {
		entries, _ := os.ReadDir("/sys/kernel/mm/hugepages")
		for _, e := range entries {
			if size, ok := hugePageName(e.Name()); ok {
				h.hugePages = append(h.hugePages, size)
			}
		}
	}
	return h
}

// hugePageName turns "hugepages-2048kB" into "2MB", as hugetlb files spell it.
func hugePageName(dir string) (string, bool) {
	text, ok := strings.CutPrefix(strings.TrimSuffix(dir, "kB"), "hugepages-")
	kib, err := strconv.ParseUint(text, 10, 64)
	if !ok || err != nil {
		return "", false
	}
	switch {
	case kib >= 1<<20:
		return strconv.FormatUint(kib>>20, 10) + "GB", true
	case kib >= 1<<10:
		return strconv.FormatUint(kib>>10, 10) + "MB", true
	}
	return strconv.FormatUint(kib, 10) + "KB", true
}

// present reads the group's values that others depend on. One that can't be read
// counts as the kernel's default; the write then finds out.
func (g group) present() present {
	now := freshGroup()
	read := func(controller, file string) string {
		dir, ok := g.dir(controller)
		if !ok {
			return ""
		}
		text, _ := readTrimmed(filepath.Join(dir, file))
		return text
	}
	if g.version == 2 {
		now.memoryBytes = parseLimit(read("memory", "memory.max"))
		quota, period, _ := strings.Cut(read("cpu", "cpu.max"), " ")
		if n, err := strconv.ParseInt(quota, 10, 64); err == nil {
			now.quotaMicros = n
		}
		if n, err := strconv.ParseUint(period, 10, 64); err == nil {
			now.periodMicros = n
		}
		now.burstMicros, _ = strconv.ParseUint(read("cpu", "cpu.max.burst"), 10, 64)
		return now
	}
	now.memoryBytes = parseLimit(read("memory", "memory.limit_in_bytes"))
	now.memswBytes = parseLimit(read("memory", "memory.memsw.limit_in_bytes"))
	if n, err := strconv.ParseInt(read("cpu", "cpu.cfs_quota_us"), 10, 64); err == nil {
		now.quotaMicros = n
	}
	if n, err := strconv.ParseUint(read("cpu", "cpu.cfs_period_us"), 10, 64); err == nil {
		now.periodMicros = n
	}
	return now
}

// noLimitV1: v1 shows no limit as a number near 1<<63.
const noLimitV1 = 1 << 62

// parseLimit reads a byte limit; v2 shows none as max.
func parseLimit(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n >= noLimitV1 {
		return math.MaxInt64
	}
	return n
}
