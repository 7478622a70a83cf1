package node

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/kerneltest"
)

// A pod with a user namespace is the keeper's like any other, whoever dies.
func TestUserNamespaceOutlivesKeeperAndAnchor(t *testing.T) {
	for name, victims := range map[string]func(keeper, anchor int) []int{
		"keeper": func(keeper, _ int) []int { return []int{keeper} }, "anchor": func(_, anchor int) []int { return []int{anchor} },
		"both": func(keeper, anchor int) []int { return []int{anchor, keeper} },
	} {
		t.Run(name, func(t *testing.T) {
			n := ownNode(t, options{})
			n.watch(t)
			var list []*container
			for _, change := range userPods {
				list = append(list, n.pod(t, change...).start(func(c *criv1.ContainerConfig) { security(c).RunAsUser = &criv1.Int64Value{Value: 1000} },
					"sh", "-c", "trap 'echo told' USR1; trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done"))
			}
			for _, c := range list {
				eventually(t, 10*time.Second, "ready", func() bool { return c.stream("stdout") == "ready\n" })
			}
			keeper, anchor := n.pair(t)
			n.kill(t, victims(keeper, anchor)...)
			eventually(t, 20*time.Second, "another keeper", func() bool {
				k, _, err := n.keeperPIDs()
				return err == nil && k != keeper && n.ready(t)
			})
			for i, c := range list {
				pid := c.info().PID
				if got := strings.Fields(c.exec("cat", "/proc/self/uid_map")); len(got) != 3 || got[1] != "200000" {
					t.Errorf("pod %d: uid_map of a command: got %q", i, got)
				}
				if err := unix.Kill(pid, unix.SIGUSR1); err != nil {
					t.Fatal(err)
				}
				eventually(t, 10*time.Second, "output afterwards", func() bool { return c.stream("stdout") == "ready\ntold\n" })
				if got := strings.TrimSpace(c.p.output(nil, "id", "-u")); got != "0" {
					t.Errorf("pod %d: a new container's user: got %q", i, got)
				}
				c.stop(20)
				if s := c.status(); s.GetExitCode() != 3 && (name != "both" || s.GetReason() != "ExitCodeLost") {
					t.Errorf("pod %d: after its stop: got %v, want code 3", i, s)
				}
			}
		})
	}
}

func TestUserNamespaceStopsAndEnds(t *testing.T) {
	n := onNode(t)
	for name, change := range userPods {
		t.Run(name, func(t *testing.T) {
			p := n.pod(t, change...)
			asked := p.start(nil, "sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done")
			deaf := p.start(nil, "sh", "-c", "trap '' TERM; (sleep 1000 &); echo ready; while :; do sleep 0.02; done")
			for _, c := range []*container{asked, deaf} {
				eventually(t, 10*time.Second, "ready", func() bool { return c.stream("stdout") == "ready\n" })
			}
			asked.stop(20)
			wantPlain(t, "one that ends when it is asked", asked.status(), 5, "Error")
			pid := deaf.info().PID
			deaf.stop(1)
			wantPlain(t, "one that doesn't", deaf.status(), 137, "Error")
			if _, err := kerneltest.ReadProcess(pid); err == nil {
				t.Errorf("process %d is still there", pid)
			}
			s := p.start(limited32MiB, "probe", "alloc", "200").wait(60 * time.Second)
			wantOOM(t, "one that takes too much", s, 137, "its first process was killed", "33554432")
			c := p.start(limited32MiB, "sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait")
			if resp, err := c.tryExec(60, "probe", "alloc", "200"); err != nil || resp.GetExitCode() != 137 {
				t.Errorf("a command that takes too much: got %v, %v, want exit code 137", resp, err)
			}
			c.stop(10)
			wantPlain(t, "its container", c.status(), 0, "Completed")
			if _, err := c.p.sleeper(nil).tryExec(1, "sleep", "1000"); err == nil || !strings.Contains(err.Error(), "timed out") {
				t.Errorf("a command with a deadline: got %v", err)
			}
		})
	}
}

// The groups of ping_group_range are the pod's own, as the container reads them, though podwright writes them.
func TestUserNamespaceHasItsSysctls(t *testing.T) {
	n := onNode(t)
	as := func(gid int64) func(*criv1.ContainerConfig) {
		return func(c *criv1.ContainerConfig) {
			// Nobody of the image's, who would have groups there.
			security(c).RunAsUser, security(c).RunAsGroup = &criv1.Int64Value{Value: 4000}, &criv1.Int64Value{Value: gid}
			security(c).Capabilities.DropCapabilities = []string{"ALL"}
		}
	}
	sysctl := func(values map[string]string) func(*criv1.PodSandboxConfig) {
		return func(c *criv1.PodSandboxConfig) { c.Linux.Sysctls = values }
	}
	for value, want := range map[string]struct {
		shown         string
		first, second bool // groups 2000 and 3000 may
	}{
		"0 65535": {"0\t65535", true, true}, "0 2147483647": {"0\t65535", true, true}, "2000 2000": {"2000\t2000", true, false},
		"1 0": {"65534\t65534", false, false}, "2500\t4000": {"2500\t4000", false, true},
	} {
		p := n.pod(t, ownUser, sysctl(map[string]string{"net.ipv4.ping_group_range": value}))
		if got := strings.TrimSpace(p.output(nil, "cat", "/proc/sys/net/ipv4/ping_group_range")); got != want.shown {
			t.Errorf("%q: read in the pod: got %q, want %q", value, got, want.shown)
		}
		for gid, may := range map[int64]bool{2000: want.first, 3000: want.second} {
			if got := p.output(as(gid), "probe", "ping"); strings.HasPrefix(got, "answered") != may {
				t.Errorf("%q: ping as group %d: got %q, want an answer: %t", value, gid, got, may)
			}
		}
	}
	_, err := n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: n.podConfig(ownUser, sysctl(map[string]string{"net.ipv4.ping_group_range": "70000 80000"}))})
	wantError(t, err, codes.InvalidArgument, "net.ipv4.ping_group_range", "70000")
	listen := []string{"sh", "-c", "timeout 1 nc -l -p 80 >/dev/null 2>/tmp/said; grep -qi denied /tmp/said && echo refused || echo listened"}
	for start, want := range map[string]string{"80": "listened\n", "81": "refused\n", "0": "listened\n"} {
		p := n.pod(t, ownUser, sysctl(map[string]string{"net.ipv4.ip_unprivileged_port_start": start}))
		if got := p.output(as(2000), listen...); got != want {
			t.Errorf("ip_unprivileged_port_start %s: port 80 as a user: got %q, want %q", start, got, want)
		}
	}
	// The network is the pod's, so its root needs no setting.
	if got := n.pod(t, ownUser).output(nil, listen...); got != "listened\n" {
		t.Errorf("port 80 as the pod's root: got %q", got)
	}
}

// Power over the pod's namespaces is none over the node.
func TestUserNamespaceGivesNoPowerOverTheNode(t *testing.T) {
	c := onNode(t).pod(t, ownUser, privilegedPod).sleeper(func(c *criv1.ContainerConfig) { security(c).Privileged = true })
	// Where the kernel has no modules the call is not there.
	if calls := c.exec("probe", "syscalls"); !strings.Contains(calls, "init_module EPERM") && !strings.Contains(calls, "init_module ENOSYS") {
		t.Errorf("system calls of a privileged container: got %s, want init_module refused", calls)
	}
	for script, want := range map[string]string{
		"echo 5 >/proc/sys/vm/swappiness": "denied", "echo x >/proc/sys/kernel/core_pattern": "denied", "date -s @1": "permitted",
		"mkdir -p /m && mount -t ext4 /dev/null /m": "denied|permitted", "mknod /tmp/n b 7 0": "permitted", "chroot /proc/1/root true": "",
		"hostname changed && hostname": "changed", "ip link set lo down": "", "nsenter -t 1 -n true": "",
	} {
		resp, err := c.tryExec(20, "sh", "-c", "("+script+") 2>&1")
		if err != nil {
			t.Fatal(err)
		}
		got := string(resp.GetStdout())
		matches := want == "" && resp.GetExitCode() == 0
		for _, word := range strings.Split(want, "|") {
			matches = matches || word != "" && strings.Contains(got, word)
		}
		if !matches {
			t.Errorf("%s: got %q, exit code %d, want %q", script, got, resp.GetExitCode(), want)
		}
	}
}

// Containers of a pod that share their processes may trace each other as users of one machine may, and nobody may trace
// what is podwright's: neither the PID 1 nor what is on its way to become a container or a command.
func TestContainersOfAPodTraceEachOtherAndNothingElse(t *testing.T) {
	n := onNode(t)
	for name, change := range map[string][]func(*criv1.PodSandboxConfig){"the node's users": {podPID}, "users of its own": {ownUser, podPID}} {
		t.Run(name, func(t *testing.T) {
			p := n.pod(t, change...)
			user := func(uid int64) func(*criv1.ContainerConfig) {
				return func(c *criv1.ContainerConfig) { security(c).RunAsUser = &criv1.Int64Value{Value: uid} }
			}
			tracer := func(c *criv1.ContainerConfig) { security(c).Capabilities.AddCapabilities = []string{"SYS_PTRACE"} }
			root, worker := p.sleeper(nil), p.sleeper(user(1000))
			pidOf := func(c *container) string { return innerPID(t, c.info().PID) }
			for _, try := range []struct {
				who   string
				by    func(*criv1.ContainerConfig)
				whom  string
				wants string
			}{
				{"a user, the same user's", user(1000), pidOf(worker), "traced"}, {"a user, root's", user(1000), pidOf(root), "refused"},
				{"root, root's", nil, pidOf(root), "traced"}, {"root with CAP_SYS_PTRACE, a user's", tracer, pidOf(worker), "traced"},
				{"a user, PID 1", user(1000), "1", "refused"}, {"root, PID 1", nil, "1", "refused"},
			} {
				if got := p.output(try.by, "probe", "trace", try.whom); !strings.HasPrefix(got, try.wants) {
					t.Errorf("%s: got %q, want %q", try.who, got, try.wants)
				}
			}
			for _, hunt := range []struct {
				by    func(*criv1.ContainerConfig)
				never []string
			}{
				{nil, []string{"podwright"}},
				// In the kernel's rules (ptrace(2)) the capability reaches all users of the pod, PID 1 among them, but no program that
				// belongs to another user namespace and cannot be read, as init's.
				{tracer, []string{"memfd:podwright"}},
			} {
				if name == "the node's users" && hunt.by != nil {
					continue // it reaches everybody, and what it finds has nothing to give, see initproc's tests
				}
				had := huntWhileCommandsStart(t, p, hunt.by)
				for _, never := range hunt.never {
					if strings.Contains(had, never) {
						t.Errorf("taken over: got %q, want nothing of %s", had, never)
					}
				}
				if !strings.Contains(had, "sleep") {
					t.Errorf("taken over: got %q, want the containers' own processes", had)
				}
			}
		})
	}
}

// huntWhileCommandsStart has one container of the pod take over what it can, while commands and containers start in the
// others, and gives the names of what it had.
func huntWhileCommandsStart(t *testing.T, p *pod, by func(*criv1.ContainerConfig)) string {
	t.Helper()
	target := p.sleeper(nil)
	hunter := p.start(by, "probe", "hunt", "3s")
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() {
			for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
				target.tryExec(10, "true") // it may be killed with its tracer
			}
		})
	}
	for range 3 {
		c := p.start(nil, "sleep", "1000")
		c.stop(0)
	}
	wait.Wait()
	if s := hunter.wait(30 * time.Second); s.GetExitCode() != 0 {
		t.Fatalf("the hunter: got %v, %q", s, hunter.stream("stderr"))
	}
	got := hunter.stream("stdout")
	var tried int
	if _, err := fmt.Sscanf(got, "tried %d had", &tried); err != nil || tried < 20 {
		t.Errorf("the hunter: got %q, want many tried", got)
	}
	t.Logf("the hunter: %s", got)
	return got
}

// innerPID is what a process is called in its own PID namespace.
func innerPID(t *testing.T, pid int) string {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			fields := strings.Fields(rest)
			return fields[len(fields)-1]
		}
	}
	t.Fatalf("process %d has no NSpid", pid)
	return ""
}
