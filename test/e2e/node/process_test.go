package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/kerneltest"
)

// What a workload inherits is stated and nothing of the keeper's or init's.
func TestWorkloadInheritsNothingUnasked(t *testing.T) {
	p := onNode(t).pod(t, func(c *criv1.PodSandboxConfig) { ownNetwork(c); c.Hostname = "web" })
	env := func(c *criv1.ContainerConfig) {
		c.Envs = []*criv1.KeyValue{{Key: "GIVEN", Value: []byte("a b\tc")}, {Key: "HOSTNAME", Value: []byte("mine")}}
	}
	for name, run := range map[string]func(args ...string) string{
		"workload": func(args ...string) string { return p.output(env, args...) },
		"exec":     p.sleeper(env).exec,
	} {
		status := run("cat", "/proc/self/status")
		for _, line := range []string{"SigBlk", "SigIgn", "SigCgt"} {
			if got := statusLine(t, status, line); got != "0000000000000000" {
				t.Errorf("%s: %s: got %s, want no signal blocked, ignored or caught", name, line, got)
			}
		}
		if got := strings.TrimSpace(run("sh", "-c", "umask")); got != "0022" {
			t.Errorf("%s: umask: got %s, want 0022", name, got)
		}
		// ls itself opens one more, the directory.
		if got := strings.Fields(run("ls", "/proc/self/fd")); !slices.Equal(got, []string{"0", "1", "2", "3"}) {
			t.Errorf("%s: open files: got %v, want 0, 1, 2 and what ls opened", name, got)
		}
		got := strings.Split(strings.TrimSpace(run("env")), "\n")
		slices.Sort(got)
		want := []string{"GIVEN=a b\tc", "HOME=/root", "HOSTNAME=mine", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
		if !slices.Equal(got, want) {
			t.Errorf("%s: environment: got %q, want %q", name, got, want)
		}
		if got := statusLine(t, status, "Groups"); got != "0" && got != "" {
			t.Errorf("%s: groups: got %q, want root's own or none", name, got)
		}
		if got := strings.Fields(run("cat", "/proc/self/stat"))[5]; name == "workload" && got != "1" {
			t.Errorf("%s: session: got %s, want one it leads", name, got)
		}
	}
	if got := strings.TrimSpace(p.output(nil, "sh", "-c", "echo $HOSTNAME; hostname")); got != "web\nweb" {
		t.Errorf("hostname: got %q, want web in the environment and from the kernel", got)
	}
}

func TestRlimitsAreTheConfiguredOnes(t *testing.T) {
	p := onNode(t).pod(t)
	limits := p.output(nil, "cat", "/proc/self/limits")
	// The default configuration's 1048576, or podwright's own hard limit where that can't be raised.
	const configured = 1048576
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprint(configured)
	if raised := (unix.Rlimit{Cur: own.Cur, Max: configured}); own.Max < configured {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); errors.Is(err, unix.EPERM) {
			want = fmt.Sprint(own.Max)
		} else if err = errors.Join(err, unix.Setrlimit(unix.RLIMIT_NOFILE, &own)); err != nil {
			t.Fatal(err)
		}
	}
	if got := limit(t, limits, "Max open files"); got[0] != want || got[1] != want {
		t.Errorf("open files: got %v, want %s twice", got, want)
	}
}

func limit(t *testing.T, limits, name string) []string {
	t.Helper()
	for line := range strings.Lines(limits) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strings.Fields(rest)
		}
	}
	t.Fatalf("no %q in %q", name, limits)
	return nil
}

func TestSessionKeyringsAreNotShared(t *testing.T) {
	p := onNode(t).pod(t)
	probe := exec.Command(os.Getenv(workVariable)+"/probe", "keyring")
	host, err := probe.Output()
	if err != nil {
		t.Fatalf("the node's keyring: %v", err)
	}
	one, two := p.output(nil, "probe", "keyring"), p.output(nil, "probe", "keyring")
	serial := func(text string) string { return strings.Fields(text)[0] }
	if serial(one) == serial(two) || serial(one) == serial(string(host)) || serial(two) == serial(string(host)) {
		t.Errorf("session keyrings: got %q and %q, the node's is %q: want three", one, two, host)
	}
}

func TestImageConfigAndRequestMakeTheCommand(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	image := n.pulled(t, "node/command:1", v1.Config{Entrypoint: []string{"echo", "entrypoint"}, Cmd: []string{"cmd"}, Env: []string{"A=image", "B=image"}, WorkingDir: "/data"})
	for _, test := range []struct {
		command, args []string
		want          string
	}{
		{nil, nil, "entrypoint cmd\n"}, {nil, []string{"args"}, "entrypoint args\n"}, {[]string{"echo", "command"}, nil, "command\n"},
		{[]string{"echo", "command"}, []string{"args"}, "command args\n"},
		{[]string{"sh", "-c", "echo $A $B; pwd"}, nil, "request image\n/data\n"},
	} {
		got := p.output(func(c *criv1.ContainerConfig) {
			c.Image.Image, c.Command, c.Args = image, test.command, test.args
			c.Envs = []*criv1.KeyValue{{Key: "A", Value: []byte("request")}}
		})
		if got != test.want {
			t.Errorf("command %q args %q: got %q, want %q", test.command, test.args, got, test.want)
		}
	}
	if got := p.output(func(c *criv1.ContainerConfig) { c.WorkingDir = "/not/there/yet" }, "pwd"); got != "/not/there/yet\n" {
		t.Errorf("working directory: got %q, want it made", got)
	}
}

func TestUsersAndGroups(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	user := func(uid int64) *criv1.Int64Value { return &criv1.Int64Value{Value: uid} }
	byName := n.pulled(t, "node/user-name:1", v1.Config{User: "worker"})
	byID := n.pulled(t, "node/user-id:1", v1.Config{User: "1234:5678"})
	for name, test := range map[string]struct {
		change func(*criv1.ContainerConfig)
		want   string
	}{
		"nothing":         {nil, "uid 0 euid 0 gid 0 egid 0 groups [0]"},
		"uid of an entry": {func(c *criv1.ContainerConfig) { security(c).RunAsUser = user(1000) }, "uid 1000 euid 1000 gid 1000 egid 1000 groups [1000 2000]"},
		"uid of nobody":   {func(c *criv1.ContainerConfig) { security(c).RunAsUser = user(4000) }, "uid 4000 euid 4000 gid 0 egid 0 groups [0]"},
		"uid and gid":     {func(c *criv1.ContainerConfig) { security(c).RunAsUser, security(c).RunAsGroup = user(4000), user(4001) }, "uid 4000 euid 4000 gid 4001 egid 4001 groups [4001]"},
		"name":            {func(c *criv1.ContainerConfig) { security(c).RunAsUsername = "worker" }, "uid 1000 euid 1000 gid 1000 egid 1000 groups [1000 2000]"},
		"image's name":    {func(c *criv1.ContainerConfig) { c.Image.Image = byName }, "uid 1000 euid 1000 gid 1000 egid 1000 groups [1000 2000]"},
		"image's ids":     {func(c *criv1.ContainerConfig) { c.Image.Image = byID }, "uid 1234 euid 1234 gid 5678 egid 5678 groups [5678]"},
		"groups, merged": {func(c *criv1.ContainerConfig) {
			security(c).RunAsUser, security(c).SupplementalGroups = user(1000), []int64{3000}
		}, "uid 1000 euid 1000 gid 1000 egid 1000 groups [1000 2000 3000]"},
		"groups, strictly": {func(c *criv1.ContainerConfig) {
			security(c).RunAsUser, security(c).SupplementalGroups = user(1000), []int64{3000}
			security(c).SupplementalGroupsPolicy = criv1.SupplementalGroupsPolicy_Strict
		}, "uid 1000 euid 1000 gid 1000 egid 1000 groups [1000 3000]"},
	} {
		c := p.start(test.change, "probe", "id")
		s := c.wait(20 * time.Second)
		got := strings.TrimSpace(c.stream("stdout"))
		if got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
		u := s.GetUser().GetLinux()
		if want := fmt.Sprintf("uid %d euid %d gid %d egid %d groups %v", u.GetUid(), u.GetUid(), u.GetGid(), u.GetGid(), u.GetSupplementalGroups()); want != test.want {
			t.Errorf("%s: status says %q, want %q", name, want, test.want)
		}
	}
}

// A workload's own program that can't be started is an exit with a reason, and the client is told why.
func TestFailedStartIsAnExit(t *testing.T) {
	p := onNode(t).pod(t)
	for name, args := range map[string][]string{"no such program": {"/no/such/program"}, "no program": {"/etc/passwd"}, "not in PATH": {"no-such-program"}} {
		c := p.create(nil, args...)
		err := c.tryStart()
		wantError(t, err, codes.InvalidArgument, args[0], "exec")
		if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 128 || s.GetReason() != "StartError" || !strings.Contains(s.GetMessage(), args[0]) {
			t.Errorf("%s: got %v, want EXITED 128 StartError and the program's name", name, s)
		}
		wantError(t, c.tryStart(), codes.FailedPrecondition, c.id)
	}
}

func TestStartOfWhatIsNotCreatedChangesNothingB16(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.sleeper(nil)
	before := c.info().PID
	wantError(t, c.tryStart(), codes.FailedPrecondition, c.id, "running")
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING || c.info().PID != before {
		t.Errorf("after the second start: got %v with pid %d, want it running with pid %d", s, c.info().PID, before)
	}
	c.stop(0)
	wantError(t, c.tryStart(), codes.FailedPrecondition, c.id, "exited")
}

func TestNothingStartsInAStoppedSandboxB15(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.create(nil, "true")
	if _, err := p.n.StopPodSandbox(ctx(t), &criv1.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	wantError(t, c.tryStart(), codes.FailedPrecondition, p.id, "not ready")
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_CREATED {
		t.Errorf("after the refused start: got %v, want it created", s.GetState())
	}
	_, err := p.tryCreate(p.containerConfig(nil, "true"))
	wantError(t, err, codes.FailedPrecondition, p.id)
}

func TestStopSignalsB23(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	image := n.pulled(t, "node/stop:1", v1.Config{StopSignal: "SIGUSR1"})
	const script = "for s in TERM USR1 USR2; do trap \"echo got $s\" $s; done; echo ready; while :; do sleep 0.02; done"
	ready := func(c *container) {
		eventually(t, 10*time.Second, "ready", func() bool { return strings.Contains(c.stream("stdout"), "ready") })
	}
	for name, test := range map[string]struct {
		change func(*criv1.ContainerConfig)
		want   string
	}{
		"SIGTERM":                  {nil, "got TERM\n"},
		"the image's":              {func(c *criv1.ContainerConfig) { c.Image.Image = image }, "got USR1\n"},
		"the request's, before it": {func(c *criv1.ContainerConfig) { c.Image.Image, c.StopSignal = image, criv1.Signal_SIGNAL_SIGUSR2 }, "got USR2\n"},
	} {
		c := p.start(test.change, "sh", "-c", script)
		ready(c)
		begin := time.Now()
		c.stop(1)
		if took := time.Since(begin); took < time.Second || took > patient(10*time.Second) {
			t.Errorf("%s: stop of a container that ignores it took %s, want the timeout of 1 s", name, took)
		}
		if got := strings.TrimPrefix(c.stream("stdout"), "ready\n"); got != test.want || c.status().GetExitCode() != 137 {
			t.Errorf("%s: got %q and exit code %d, want %q once and 137", name, got, c.status().GetExitCode(), test.want)
		}
	}
	// A second stop with timeout 0 does not wait for the first's.
	c := p.start(nil, "sh", "-c", script)
	ready(c)
	first := make(chan error, 1)
	go func() {
		_, err := n.StopContainer(ctx(t), &criv1.StopContainerRequest{ContainerId: c.id, Timeout: 50})
		first <- err
	}()
	eventually(t, 10*time.Second, "the signal", func() bool { return strings.Contains(c.stream("stdout"), "got TERM") })
	begin := time.Now()
	c.stop(0)
	if took := time.Since(begin); took > patient(10*time.Second) {
		t.Errorf("a stop with timeout 0 beside one with 50 s took %s", took)
	}
	if err := <-first; err != nil {
		t.Errorf("the first stop: %v", err)
	}
	if got := c.stream("stdout"); got != "ready\ngot TERM\n" {
		t.Errorf("output: got %q, want the signal once", got)
	}
}

func TestStopGoesOnWhenItsCallerVanishesB24(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.start(nil, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.02; done")
	eventually(t, 10*time.Second, "ready", func() bool { return c.stream("stdout") != "" })
	short, cancel := contextWithTimeout(300 * time.Millisecond)
	defer cancel()
	if _, err := p.n.StopContainer(short, &criv1.StopContainerRequest{ContainerId: c.id, Timeout: 1}); err == nil {
		t.Error("stop with a vanished caller: got success")
	}
	if s := c.wait(20 * time.Second); s.GetExitCode() != 137 {
		t.Errorf("got exit code %d, want 137", s.GetExitCode())
	}
}

// PID 1 of a shared PID namespace is podwright's reaper: it is no container's process and leaves no zombie.
func TestSharedPIDNamespaceHasAReaper(t *testing.T) {
	n := onNode(t)
	p := n.pod(t, podPID)
	one := p.start(nil, "sh", "-c", "sleep 1000 & sleep 1000")
	two := p.sleeper(nil)
	if got := two.exec("cat", "/proc/1/comm"); strings.Contains(got, "sleep") || strings.Contains(got, "sh") {
		t.Errorf("PID 1: got %q, want podwright's reaper", got)
	}
	processes := two.exec("ps", "-o", "pid,comm")
	if strings.Count(processes, "sleep") < 3 {
		t.Errorf("processes seen by the second container: got %q, want both containers'", processes)
	}
	// Orphans with no parent in the container end up with the reaper.
	two.exec("sh", "-c", "(sleep 0.1 &) ; (true &)")
	eventually(t, 10*time.Second, "reaped orphans", func() bool {
		return !strings.Contains(two.exec("ps", "-o", "stat,comm"), "Z")
	})
	if got := strings.Fields(two.exec("sh", "-c", "grep -h ^Cap /proc/1/status | sort -u | sed 's/.*\t//' | sort -u")); !slices.Equal(got, []string{"0000000000000000"}) {
		t.Errorf("the reaper's capabilities: got %v, want none", got)
	}
	if got := strings.TrimSpace(two.exec("sh", "-c", "grep -h -E '^(Seccomp|NoNewPrivs):' /proc/1/status | cut -f2 | tr '\\n' ' '")); got != "1 2" {
		t.Errorf("the reaper's no_new_privs and seccomp mode: got %q, want 1 and 2", got)
	}
	// The end of a container ends all its processes, though its PID namespace goes on (B22).
	one.stop(0)
	if got := two.exec("ps", "-o", "args"); strings.Count(got, "sleep 1000") != 1 {
		t.Errorf("after the first container's end: got %q, want the second's sleep alone", got)
	}
}

func TestHostPIDContainerSeesTheNode(t *testing.T) {
	p := onNode(t).pod(t, hostPID)
	c := p.sleeper(nil)
	pid := c.info().PID
	if got := strings.TrimSpace(c.exec("cat", fmt.Sprintf("/proc/%d/comm", pid))); got != "sleep" {
		t.Errorf("the container's own pid %d on the node: got %q, want sleep", pid, got)
	}
	c.stop(0)
	if _, err := kerneltest.ReadProcess(pid); err == nil {
		t.Errorf("process %d still there after stop", pid)
	}
}
