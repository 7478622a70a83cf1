package cgroup

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Reading is one limit of a group as the kernel gives it back.
type Reading struct {
	Limit    string // the file; "devices" for the rules
	Asked    string
	Enforced string
	// Differs: what is enforced is not what was asked.
	Differs bool
}

// Check reads back from a group what Create and Update wrote for these resources. A file that is missing is a reading
// with an empty value.
func Check(m *Manager, path string, res *specs.LinuxResources) ([]Reading, error) {
	g, err := m.group(path)
	if err != nil {
		return nil, err
	}
	p, err := compile(res, m.host(res), freshGroup())
	if err != nil {
		return nil, err
	}
	var out []Reading
	for _, w := range lastWrites(p.writes) {
		r, err := g.readBack(w, m.host(res).pageSize)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	if len(p.devices) == 0 {
		return out, nil
	}
	r, err := g.readBackDevices(p.devices)
	if err != nil {
		return nil, fmt.Errorf("devices of %s: %w", path, err)
	}
	return append(out, r), nil
}

// lastWrites keeps the write that counts of each file, and of each line of those that have one for each device.
func lastWrites(writes []write) []write {
	key := func(w write) string {
		at, rest, _ := strings.Cut(w.Value, " ")
		if w.File == "cpu.max" || rest == "" {
			return w.File
		}
		setting, _, _ := strings.Cut(rest, "=")
		return w.File + " " + at + " " + setting
	}
	var out []write
	for i, w := range writes {
		again := func(later write) bool { return key(later) == key(w) }
		if !slices.ContainsFunc(writes[i+1:], again) {
			out = append(out, w)
		}
	}
	return out
}

func (g group) readBack(w write, pageSize int64) (Reading, error) {
	r := Reading{Limit: w.File, Asked: w.Value}
	dir, ok := g.dir(w.Controller)
	if !ok {
		r.Differs = true
		return r, nil
	}
	text, err := readTrimmed(filepath.Join(dir, w.File))
	if errors.Is(err, unix.ENOENT) {
		r.Differs = !w.Optional
		return r, nil
	}
	if err != nil {
		return r, err
	}
	r.Enforced, r.Differs = text, !sameLimit(w, text, pageSize)
	return r, nil
}

// sameLimit compares as the kernel writes: it rounds bytes down to pages, merges lists, and shows "none" as a number.
func sameLimit(w write, got string, pageSize int64) bool {
	if got == w.Value {
		return true
	}
	switch w.File {
	case "cpuset.cpus", "cpuset.mems":
		want, err := parseList(w.Value)
		have, haveErr := parseList(got)
		return err == nil && haveErr == nil && want.within(have) && have.within(want)
	case "cpu.max":
		return len(strings.Fields(w.Value)) == 1 && strings.HasPrefix(got, w.Value+" ") // the period unchanged
	case "memory.oom_control":
		return strings.HasPrefix(got, "oom_kill_disable "+w.Value+"\n")
	case "io.weight":
		if !strings.Contains(w.Value, " ") {
			return sameLine("default "+w.Value, got)
		}
	}
	if strings.Contains(w.Value, " ") {
		return sameLine(w.Value, got)
	}
	want, wantOK := boundOf(w.Value)
	have, haveOK := boundOf(got)
	switch {
	case !wantOK || !haveOK:
		return false
	case want == have:
		return true
	case w.Controller == "hugetlb": // whole pages of its size
		return have < want
	}
	return w.Controller == "memory" && w.File != "memory.swappiness" && have < want && want-have < pageSize
}

// sameLine compares what was written for one key, "8:0 rbps=1", with the line that a file of many keys has for it. One
// without limits has no line.
func sameLine(asked, got string) bool {
	want := strings.Fields(asked)
	for line := range strings.Lines(got) {
		has := strings.Fields(line)
		if len(has) > 0 && has[0] == want[0] {
			return containsAll(has[1:], want[1:])
		}
	}
	return !slices.ContainsFunc(want[1:], func(setting string) bool { return !strings.HasSuffix(setting, "max") && setting != "default" })
}

// boundOf reads a number or the word for none; v1 has -1 and shows a number near 1<<63.
func boundOf(text string) (int64, bool) {
	n, err := strconv.ParseInt(text, 10, 64)
	switch {
	case text == "max" || err == nil && (n < 0 || n >= 1<<62):
		return math.MaxInt64, true
	}
	return n, err == nil
}

// readBackDevices compares the list of v1. A program of v2 can't be read as rules: that exactly one is attached, with
// the instructions that the rules give, is all there is.
func (g group) readBackDevices(devices []specs.LinuxDeviceCgroup) (Reading, error) {
	r := Reading{Limit: "devices", Asked: strconv.Itoa(len(devices)) + " rules"}
	rules, err := deviceRules(devices)
	if err != nil {
		return r, err
	}
	dir, ok := g.dir("devices")
	if !ok {
		r.Differs = true
		return r, nil
	}
	if g.version == 2 {
		return r, r.readProgram(dir, rules)
	}
	text, err := readTrimmed(filepath.Join(dir, "devices.list"))
	if err != nil {
		return r, err
	}
	have, err := parseDevicesList(text)
	if err != nil {
		return r, err
	}
	want, known := deviceSetOf(rules)
	if !known {
		r.Enforced = "as the group above has it"
		return r, nil
	}
	r.Enforced = r.Asked
	if diff := deviceDiffV1(have, want); len(diff) > 0 {
		r.Differs, r.Enforced = true, "others, for example "+strings.TrimPrefix(diff[0].File, "devices.")+" "+diff[0].Value+" is missing"
	}
	return r, nil
}

func (r *Reading) readProgram(dir string, rules []deviceRule) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	attached, err := link.QueryPrograms(link.QueryOptions{Target: int(f.Fd()), Attach: ebpf.AttachCGroupDevice})
	if err != nil {
		return err
	}
	r.Enforced = strconv.Itoa(len(attached.Programs)) + " programs"
	r.Differs = len(attached.Programs) != 1
	if r.Differs {
		return nil
	}
	loaded, err := ebpf.NewProgramFromID(attached.Programs[0].ID)
	if err != nil {
		return err
	}
	defer loaded.Close()
	info, err := loaded.Info()
	if err != nil {
		return err
	}
	wanted, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupDevice, Instructions: deviceProgram(rules), License: "Apache"})
	if err != nil {
		return err
	}
	defer wanted.Close()
	want, err := wanted.Info()
	if err != nil {
		return err
	}
	r.Asked, r.Enforced, r.Differs = "program "+want.Tag, "program "+info.Tag, info.Tag != want.Tag
	return nil
}
