package cgroup

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// v2Manager is the machine's own tree where that is v2, with its controllers.
func v2Manager(t *testing.T) *Manager {
	t.Helper()
	m := newManager(t)
	if m.version != 2 {
		t.Skip("this host has cgroup v1")
	}
	return m
}

// aDisk is the number of a whole disk, which is what the kernel limits.
func aDisk(t *testing.T) (major, minor int64, text string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/*/dev")
	if err != nil || len(files) == 0 {
		t.Skipf("no disk: %v", err)
	}
	raw, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	text = strings.TrimSpace(string(raw))
	a, b, ok := parseDevice(text)
	if !ok {
		t.Fatalf("%s says %q", files[0], raw)
	}
	return int64(a), int64(b), text
}

func TestControllersAreEnabledDownThePath(t *testing.T) {
	m := v2Manager(t)
	ctx, path := testContext(t), groupName(t, m)
	if err := m.Create(ctx, path+"/pod/container", nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range wantedV2 {
		if !m.has(c) {
			t.Errorf("this kernel has no controller %s", c)
		}
		for _, level := range []string{path, path + "/pod", path + "/pod/container"} {
			if have := strings.Fields(readFile(t, m, "cgroup", level, "cgroup.controllers")); !slices.Contains(have, c) {
				t.Errorf("%s has %v, want %s among them", level, have, c)
			}
		}
	}
}

func TestAllOfV2IsWrittenAndReadBack(t *testing.T) {
	m := v2Manager(t)
	ctx, path := testContext(t), groupName(t, m)
	major, minor, disk := aDisk(t)
	res := &specs.LinuxResources{
		CPU:     &specs.LinuxCPU{Shares: p[uint64](512), Quota: p[int64](50000), Period: p[uint64](100000), Burst: p[uint64](40000), Cpus: "0", Mems: "0"},
		Memory:  &specs.LinuxMemory{Limit: p[int64](64 << 20), Swap: p[int64](64 << 20), Reservation: p[int64](8 << 20)},
		Pids:    &specs.LinuxPids{Limit: p[int64](77)},
		BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: throttled(major, minor, 1<<20), ThrottleWriteIOPSDevice: throttled(major, minor, 10)},
		Unified: map[string]string{"memory.min": "4194304", "memory.high": "33554432", "memory.oom.group": "1", "cgroup.max.descendants": "3", "io.max": disk + " wbps=2097152"},
		Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "c", Major: p[int64](1), Minor: p[int64](3), Access: "rwm"}},
	}
	for _, size := range m.host(&specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{}}}).hugePages {
		res.HugepageLimits = append(res.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size})
	}
	if len(res.HugepageLimits) == 0 {
		t.Error("this kernel has no huge pages")
	}
	if err := m.Create(ctx, path, res); err != nil {
		t.Fatal(err)
	}
	readings, err := Check(m, path, res)
	if err != nil {
		t.Fatal(err)
	}
	read := map[string]string{}
	for _, r := range readings {
		read[r.Limit] = r.Enforced
		if r.Differs {
			t.Errorf("%+v", r)
		}
	}
	if want := disk + " rbps=1048576 wbps=2097152 riops=max wiops=10"; read["io.max"] != want || read["cpu.max.burst"] != "40000" || len(readings) < 16 {
		t.Errorf("got %v, want io.max %s", read, want)
	}
	// A smaller quota with a smaller burst: each order is refused by the kernel at one of the two steps.
	if err := m.Update(ctx, path, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p[int64](20000), Burst: p[uint64](10000)}}); err != nil {
		t.Error(err)
	}
	if err := m.Update(ctx, path, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p[int64](90000), Burst: p[uint64](80000)}}); err != nil {
		t.Error(err)
	}
	idle := path + "/idle"
	if err := m.Create(ctx, idle, &specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: p[int64](1)}}); err != nil || readFile(t, m, "cpu", idle, "cpu.idle") != "1" {
		t.Errorf("idle: %v", err)
	}
}

// A failed update puts back what a device had.
func TestUpdateRollsBackDeviceLimits(t *testing.T) {
	m := v2Manager(t)
	ctx, path := testContext(t), groupName(t, m)
	_, _, disk := aDisk(t)
	if err := m.Create(ctx, path, &specs.LinuxResources{Unified: map[string]string{"io.max": disk + " rbps=1048576"}}); err != nil {
		t.Fatal(err)
	}
	err := m.Update(ctx, path, &specs.LinuxResources{Unified: map[string]string{"io.max": disk + " rbps=2097152 wiops=5", "memory.high": "rubbish"}})
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "memory.high") {
		t.Errorf("got %v, want ErrInvalid of memory.high", err)
	}
	if got, want := readFile(t, m, "io", path, "io.max"), disk+" rbps=1048576 wbps=max riops=max wiops=max"; got != want {
		t.Errorf("io.max is %q, want %q", got, want)
	}
}

// A controller that nobody gets unasked is enabled for who names one of its files, and what the kernel says of the value
// is passed on.
func TestControllerOfAUnifiedFileIsEnabled(t *testing.T) {
	m := v2Manager(t)
	needControllers(t, m, "misc")
	ctx, path := testContext(t), groupName(t, m)
	var value *ValueError
	err := m.Create(ctx, path+"/c", &specs.LinuxResources{Unified: map[string]string{"misc.max": "no_such_resource 5"}})
	if !errors.As(err, &value) || value.File != "misc.max" {
		t.Errorf("got %v, want what the kernel says of the value of misc.max", err)
	}
	for file, want := range map[string]error{"memory.nosuch": ErrNotSupported, "memory.current": ErrInvalid, "cpu.stat": ErrInvalid, "nosuch.max": ErrNotSupported} {
		if err := m.Create(ctx, path+"/c", &specs.LinuxResources{Unified: map[string]string{file: "1"}}); !errors.Is(err, want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: got %v, want %v", file, err, want)
		}
	}
}

func TestDelegateGivesTheGroupAndNoLimit(t *testing.T) {
	m := v2Manager(t)
	ctx, path := testContext(t), groupName(t, m)
	if err := m.Create(ctx, path, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p[int64](5)}}); err != nil {
		t.Fatal(err)
	}
	if err := Delegate(m, path, 1234, 5678); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]uint32{".": 1234, "cgroup.procs": 1234, "cgroup.subtree_control": 1234, "cgroup.threads": 1234, "memory.max": 0, "pids.max": 0, "cgroup.max.descendants": 0, "cgroup.kill": 0} {
		info, err := os.Lstat(filepath.Join(m.root, path, file))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Sys().(*syscall.Stat_t).Uid; got != want {
			t.Errorf("%s belongs to %d, want %d", file, got, want)
		}
	}
}

// tryStart runs a process that is born into a group.
func tryStart(h *Handle) error {
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(h.Dir.Fd())}
	return cmd.Run()
}

func TestOpenOfFollowsAProcessBelowItsGroupOnly(t *testing.T) {
	m := v2Manager(t)
	ctx, path := testContext(t), groupName(t, m)
	if err := m.Create(ctx, path+"/c/main", nil); err != nil { // which enables controllers in path/c
		t.Fatal(err)
	}
	if h, err := m.Open(path + "/c"); err == nil {
		err := tryStart(h)
		h.Close()
		if !errors.Is(err, unix.EBUSY) {
			t.Errorf("a process born into a group that gave its controllers away: got %v, want EBUSY", err)
		}
	}
	cmd, out := join(t, m, path+"/c/main", "echo in; exec sleep 1000")
	needLine(t, out, "in")
	h, err := OpenOf(m, path+"/c", cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := tryStart(h); err != nil {
		t.Errorf("beside it: %v", err)
	}
	for _, group := range []string{path + "/c/main", path + "/c/mai", "/elsewhere"} {
		if h, err := OpenOf(m, group, cmd.Process.Pid); err == nil {
			h.Close()
			t.Errorf("it is not below %s", group)
		}
	}
	if h, err := OpenOf(m, path+"/c", 1<<22+5); err == nil {
		h.Close()
		t.Error("no such process")
	}
}

func TestFrozenAndNestedGroupsAreKilled(t *testing.T) {
	m := v2Manager(t)
	ctx, path := testContext(t), groupName(t, m)
	if err := m.Create(ctx, path+"/c/main", nil); err != nil {
		t.Fatal(err)
	}
	_, out := join(t, m, path+"/c/main", "sleep 1000 & echo in; wait")
	needLine(t, out, "in")
	if err := sys.WriteKernelFile(filepath.Join(m.root, path, "c/main/cgroup.freeze"), "1"); err != nil {
		t.Fatal(err)
	}
	if err := m.Kill(ctx, path+"/c"); err != nil {
		t.Error(err)
	}
	if pids, err := m.Pids(path); err != nil || len(pids) != 0 {
		t.Errorf("%v are left, %v", pids, err)
	}
}
