package isolation

import (
	"errors"
	"math"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// sleeper starts a process that waits, in namespaces of its own as flags say, and gives the input that names it.
func sleeper(t *testing.T, flags uintptr, script string) Input {
	t.Helper()
	cmd := exec.Command("sh", "-c", script+"\necho ready; exec sleep 1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags & syscall.CLONE_NEWPID, Unshareflags: flags &^ syscall.CLONE_NEWPID}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	ready := make([]byte, 6)
	if _, err := out.Read(ready); err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return Input{PID: cmd.Process.Pid, StartTime: startTime(t, cmd.Process.Pid), Spec: plainSpec(t), Cgroup: "/"}
}

func startTime(t *testing.T, pid int) uint64 {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	start, err := strconv.ParseUint(strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')'):]))[20], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return start
}

// plainSpec asks for what any process of this machine has.
func plainSpec(t *testing.T) *specs.Spec {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	var caps []string
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "CapBnd:\t"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range strings.Fields(names(mask)) {
				caps = append(caps, "CAP_"+strings.TrimPrefix(name, "CAP_"))
			}
		}
	}
	return &specs.Spec{
		Root:    &specs.Root{},
		Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}},
		Linux:   &specs.Linux{},
	}
}

func report(t *testing.T, in Input) *Report {
	t.Helper()
	r, err := Read(in)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func differing(r *Report) (list []string) {
	for _, f := range r.Findings {
		if f.Differs {
			list = append(list, f.Aspect)
		}
	}
	return list
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// TestEveryShortfallIsNamed asks, one at a time, for what a process that nobody confined can't have.
func TestEveryShortfallIsNamed(t *testing.T) {
	needRoot(t)
	in := sleeper(t, 0, "true")
	if got := differing(report(t, in)); len(got) != 0 {
		t.Fatalf("%v differ of a process of which nothing was asked", got)
	}
	score := 1000
	namespace := func(kind specs.LinuxNamespaceType, path string) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Linux.Namespaces = []specs.LinuxNamespace{{Type: kind, Path: path}} }
	}
	for _, c := range []struct {
		name string
		ask  func(s *specs.Spec)
		want []string
	}{
		{"mount namespace", namespace(specs.MountNamespace, ""), []string{"mount namespace"}},
		{"pid namespace", namespace(specs.PIDNamespace, ""), []string{"pid namespace"}},
		{"network namespace", namespace(specs.NetworkNamespace, ""), []string{"network namespace"}},
		{"another's network namespace", namespace(specs.NetworkNamespace, "/dev/null"), []string{"network namespace"}},
		{"ipc namespace", namespace(specs.IPCNamespace, ""), []string{"ipc namespace"}},
		{"uts namespace", namespace(specs.UTSNamespace, ""), []string{"uts namespace"}},
		{"cgroup namespace", namespace(specs.CgroupNamespace, ""), []string{"cgroup namespace"}},
		{"user namespace", namespace(specs.UserNamespace, ""), []string{"user namespace"}},
		{"id mappings", func(s *specs.Spec) {
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
		}, []string{"uid map", "gid map"}},
		{"user", func(s *specs.Spec) { s.Process.User.UID, s.Process.User.GID = 1000, 1000 }, []string{"user", "group"}},
		{"capability", func(s *specs.Spec) {
			c := s.Process.Capabilities
			c.Bounding, c.Permitted, c.Effective = c.Bounding[1:], c.Permitted[1:], c.Effective[1:]
		}, []string{"bounding capabilities", "permitted capabilities", "effective capabilities"}},
		{"no_new_privs", func(s *specs.Spec) { s.Process.NoNewPrivileges = true }, []string{"no_new_privs"}},
		{"seccomp", func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{} }, []string{"seccomp"}},
		{"label", func(s *specs.Spec) { s.Process.SelinuxLabel = "system_u:system_r:container_t:s0:c1,c2" }, []string{"security label"}},
		{"limit", func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1}} }, []string{"RLIMIT_NOFILE"}},
		{"oom score", func(s *specs.Spec) { s.Process.OOMScoreAdj = &score }, []string{"oom_score_adj"}},
		{"read-only root", func(s *specs.Spec) { s.Root.Readonly = true }, []string{"root file system"}},
		{"mount", func(s *specs.Spec) { s.Mounts = []specs.Mount{{Destination: "/usr"}} }, []string{"mount /usr"}},
		{"mount flags", func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/proc", Options: []string{"ro", "nosuid"}}}
		}, []string{"mount /proc"}},
		{"masked path", func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"/proc/version", "/proc/none"} }, []string{"masked path /proc/version"}},
		{"read-only path", func(s *specs.Spec) { s.Linux.ReadonlyPaths = []string{"/proc/sys", "/proc/none"} }, []string{"read-only path /proc/sys"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked := in
			asked.Spec = plainSpec(t)
			c.ask(asked.Spec)
			if got := differing(report(t, asked)); !slices.Equal(got, c.want) {
				t.Errorf("%v differ, want %v", got, c.want)
			}
		})
	}
	in.Cgroup = "/no/such/group"
	in.Limits = []Finding{{Aspect: "pids.max", Asked: "5", Enforced: "max", Differs: true}}
	if got := differing(report(t, in)); !slices.Equal(got, []string{"cgroup", "pids.max"}) {
		t.Errorf("%v differ, want the group and its limit", got)
	}
}

// TestWhatIsConfinedIsConfirmed asks for what the process has.
func TestWhatIsConfinedIsConfirmed(t *testing.T) {
	needRoot(t)
	in := sleeper(t, unix.CLONE_NEWNS|unix.CLONE_NEWNET|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS|unix.CLONE_NEWCGROUP, `set -e
busybox mount --make-rprivate /
busybox mount -t tmpfs -o ro tmpfs /proc/sys
busybox mount --bind /dev/null /proc/version
busybox mount --bind /sys /sys; busybox mount -o remount,bind,ro,nosuid,noexec /sys
ulimit -n 10`)
	in.Spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
		{Type: specs.NetworkNamespace, Path: "/proc/" + strconv.Itoa(in.PID) + "/ns/net"}}
	in.Spec.Linux.MaskedPaths = []string{"/proc/sys", "/proc/version", "/proc/none"}
	in.Spec.Linux.ReadonlyPaths = []string{"/sys/kernel", "/sys"}
	in.Spec.Mounts = []specs.Mount{{Destination: "/sys", Options: []string{"ro", "nosuid"}}}
	in.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 10}}
	r := report(t, in)
	if got := differing(r); len(got) != 0 || r.Differences() != 0 {
		t.Errorf("%v differ of what the process has", got)
	}
	at := slices.IndexFunc(r.Findings, func(f Finding) bool { return f.Aspect == "network namespace" })
	if want := (Finding{Aspect: "network namespace", Asked: joined, Enforced: joined}); at < 0 || r.Findings[at] != want {
		t.Errorf("got %+v, want %+v", r.Findings[at], want)
	}
}

func TestAnotherOrNoProcessIsGone(t *testing.T) {
	in := sleeper(t, 0, "true")
	in.StartTime++
	if _, err := Read(in); !errors.Is(err, ErrGone) {
		t.Errorf("another process with the number: %v", err)
	}
	in.PID = math.MaxInt32
	if _, err := Read(in); !errors.Is(err, ErrGone) {
		t.Errorf("no process: %v", err)
	}
}

// What a running process doesn't tell is an error: as its end it would pass for nothing wrong.
func TestWhatCannotBeReadIsNotTheProcessesEnd(t *testing.T) {
	in := sleeper(t, 0, "true")
	p, err := openProcess(in.PID, in.StartTime)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	for _, cause := range []error{unix.EINVAL, unix.ENOENT, unix.ESRCH, unix.EACCES} {
		if err := p.explain("x", cause); errors.Is(err, ErrGone) || !errors.Is(err, cause) {
			t.Errorf("%v became %v", cause, err)
		}
	}
	if err := unix.Kill(in.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.explain("x", unix.EINVAL); !errors.Is(err, ErrGone) {
		t.Errorf("of a process that ends: %v", err)
	}
}

// What a process has lost on its way out was not missing while it ran. The first one of a PID namespace waits for all others
// there without mounts, and still counts as running.
func TestProcessThatEndsIsNotConfinedLess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes PID namespaces")
	}
	for i := range 30 {
		in := sleeper(t, syscall.CLONE_NEWPID, "sleep 1000 >/dev/null & sleep 1000 >/dev/null &")
		in.Spec.Linux.MaskedPaths = slices.Repeat([]string{"/proc/absent"}, 100)
		time.AfterFunc(time.Duration(i)*20*time.Microsecond, func() { _ = unix.Kill(in.PID, unix.SIGKILL) })
		for {
			r, err := Read(in)
			if errors.Is(err, ErrGone) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range r.Findings {
				if f.Differs && f.Aspect == "masked path /proc/absent" {
					t.Fatalf("round %d: got %+v", i, f)
				}
			}
		}
	}
}
