package node

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/kerneltest"
)

// joining asks for the PID namespace of another container, as kubectl debug --target does.
func joining(target string) func(*criv1.ContainerConfig) {
	return func(c *criv1.ContainerConfig) {
		was := security(c).NamespaceOptions
		security(c).NamespaceOptions = &criv1.NamespaceOption{
			Network: was.GetNetwork(), Ipc: was.GetIpc(), UsernsOptions: was.GetUsernsOptions(), Pid: criv1.NamespaceMode_TARGET, TargetId: target,
		}
	}
}

// targetPods are the pods whose containers have processes of their own to look at, and others that share more.
var targetPods = map[string][]func(*criv1.PodSandboxConfig){
	"the node's users": nil, "users of its own": {ownUser}, "processes shared in the pod": {podPID},
}

func TestTargetContainerIsSeenByWhoJoinsIt(t *testing.T) {
	n := onNode(t)
	for name, change := range targetPods {
		t.Run(name, func(t *testing.T) {
			p := n.pod(t, change...)
			target := p.start(func(c *criv1.ContainerConfig) {
				// Also in a pod that shares its processes.
				security(c).NamespaceOptions = &criv1.NamespaceOption{
					Network: p.config.Linux.SecurityContext.NamespaceOptions.GetNetwork(), Pid: criv1.NamespaceMode_CONTAINER,
					UsernsOptions: p.config.Linux.SecurityContext.NamespaceOptions.GetUsernsOptions(),
				}
			}, "sh", "-c", "touch /mine; sleep 1234 & exec sleep 1000")
			debugger := p.sleeper(joining(target.id))
			for command, want := range map[string]string{
				"tr '\\0' ' ' </proc/1/cmdline":                   "sleep 1000",
				"ps -o args | grep -c '^sleep 1234$'":             "1",
				"ls /proc/1/root/mine; ls /mine || echo not here": "/proc/1/root/mine not here",
				"readlink /proc/self/ns/pid":                      strings.TrimSpace(target.exec("readlink", "/proc/self/ns/pid")),
			} {
				got := strings.Join(strings.Fields(debugger.exec("sh", "-c", command+" 2>/dev/null")), " ")
				if got != want {
					t.Errorf("%s: got %q, want %q", command, got, want)
				}
			}
			third := p.output(joining(debugger.id), "cat", "/proc/1/cmdline")
			if !strings.HasPrefix(third, "sleep\x001000") {
				t.Errorf("by way of another that joined it, PID 1: got %q", third)
			}
			// Each ends alone: a signal to the debugger's group is none to the target.
			debugger.exec("sh", "-c", "sleep 5000 & true")
			debugger.stop(0)
			if got := target.exec("ps", "-o", "args"); strings.Contains(got, "sleep 5000") || !strings.Contains(got, "sleep 1234") {
				t.Errorf("after the debugger's end: got %q, want the target's processes and no other", got)
			}
			if s := target.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING {
				t.Errorf("target after the debugger's end: got %v", s)
			}
		})
	}
}

func TestTargetOfTheNodesProcessesIsTheNode(t *testing.T) {
	p := onNode(t).pod(t, hostPID)
	target := p.sleeper(nil)
	c := p.sleeper(joining(target.id))
	if got := strings.TrimSpace(c.exec("cat", fmt.Sprintf("/proc/%d/comm", target.info().PID))); got != "sleep" {
		t.Errorf("the target's pid on the node: got %q, want sleep", got)
	}
}

// The kernel ends everything in a PID namespace whose first process ended.
func TestEndOfTargetEndsWhoJoinedIt(t *testing.T) {
	n := onNode(t)
	for name, change := range map[string][]func(*criv1.PodSandboxConfig){"the node's users": nil, "users of its own": {ownUser}} {
		t.Run(name, func(t *testing.T) {
			p := n.pod(t, change...)
			for how, end := range map[string]struct {
				do   func(*container)
				code int32
			}{
				"by itself":             {func(*container) {}, 3},
				"stopped":               {func(c *container) { c.stop(20) }, 9},
				"killed":                {func(c *container) { c.stop(0) }, 137},
				"removed while it runs": {func(c *container) { c.remove() }, -1},
			} {
				script := "trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done"
				if how == "by itself" {
					script = "sleep 1; exit 3"
				}
				target := p.start(nil, "sh", "-c", script)
				// Ignoring signals does not help, and neither do processes that are nobody's children.
				debugger := p.start(joining(target.id), "sh", "-c", "trap '' TERM; (sleep 1000 &); echo ready; while :; do sleep 0.02; done")
				eventually(t, 10*time.Second, "both to be ready", func() bool {
					return debugger.stream("stdout") != "" && (how == "by itself" || target.stream("stdout") != "")
				})
				begin := time.Now()
				end.do(target)
				s := debugger.wait(20 * time.Second)
				if took := time.Since(begin); took > patient(5*time.Second) {
					t.Errorf("%s: the debugger ended after %s", how, took)
				}
				if s.GetExitCode() != 137 || s.GetReason() != "Error" || !strings.Contains(s.GetMessage(), target.id) {
					t.Errorf("%s: the debugger: got %v, want 137 Error and the target's id", how, s)
				}
				if end.code >= 0 {
					if s := target.wait(20 * time.Second); s.GetExitCode() != end.code || s.GetMessage() != "" {
						t.Errorf("%s: the target: got %v, want code %d", how, s, end.code)
					}
				}
				debugger.remove()
			}
		})
	}
}

// Whenever a target ends, who is on the way into it ends too or is refused for the reason.
func TestTargetThatEndsWhileItIsJoined(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	refused, killed := 0, 0
	for round := range 12 {
		target := p.sleeper(nil)
		debuggers := make([]*container, 4)
		for i := range debuggers {
			debuggers[i] = p.create(joining(target.id), "sleep", "1000")
		}
		errs := make([]error, len(debuggers))
		var wait sync.WaitGroup
		for i, c := range debuggers {
			wait.Go(func() { errs[i] = c.tryStart() })
		}
		time.Sleep(time.Duration(round) * 4 * time.Millisecond)
		if err := syscall.Kill(target.info().PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		wait.Wait()
		for i, c := range debuggers {
			s := c.wait(20 * time.Second)
			switch {
			case errs[i] != nil:
				refused++
				wantError(t, errs[i], codes.FailedPrecondition, target.id)
				if s.GetReason() != "StartError" || s.GetExitCode() != 128 {
					t.Errorf("refused: got %v, want StartError 128", s)
				}
			default:
				killed++
				if s.GetExitCode() != 137 || !strings.Contains(s.GetMessage(), target.id) {
					t.Errorf("started: got %v, want 137 and the target's id", s)
				}
			}
			c.remove()
		}
		target.wait(20 * time.Second)
		target.remove()
	}
	t.Logf("%d refused, %d killed", refused, killed)
}

// What the kernel says of them is what was asked for.
func TestExplainKnowsTargetsAndImageMounts(t *testing.T) {
	n := onNode(t)
	for name, change := range map[string][]func(*criv1.PodSandboxConfig){"the node's users": nil, "users of its own": {ownUser}} {
		p := n.pod(t, change...)
		target := p.sleeper(nil)
		c := p.sleeper(func(c *criv1.ContainerConfig) {
			joining(target.id)(c)
			c.Mounts = []*criv1.Mount{imageMount(mustTestImage(t), "/tools", "bin"), imageMount(mustTestImage(t), "/all", "")}
			c.Mounts[0].MountOptions = []string{"noexec"}
		})
		report, _ := c.explained()
		for _, f := range report.Findings {
			if f.Differs && (strings.Contains(f.Aspect, "pid") || strings.Contains(f.Aspect, "/tools") || strings.Contains(f.Aspect, "/all")) {
				t.Errorf("%s: %+v", name, f)
			}
		}
	}
}

func TestTargetThatCannotBeJoinedIsRefused(t *testing.T) {
	n := onNode(t)
	p, other := n.pod(t), n.pod(t)
	elsewhere, ended, waiting := other.sleeper(nil), p.start(nil, "true"), p.create(nil, "true")
	ended.wait(20 * time.Second)
	eventually(t, 10*time.Second, "end of its pipes", func() bool {
		_, err := os.Stat(n.path("run", "containers", ended.id))
		return os.IsNotExist(err)
	})
	for name, test := range map[string]struct {
		id    string
		code  codes.Code
		words []string
	}{
		"of another sandbox": {elsewhere.id, codes.InvalidArgument, []string{elsewhere.id, "not of this sandbox"}},
		"ended":              {ended.id, codes.FailedPrecondition, []string{ended.id, "exited"}},
		"not started":        {waiting.id, codes.FailedPrecondition, []string{waiting.id, "created"}},
		"unknown":            {strings.Repeat("0", 64), codes.NotFound, []string{"not found"}},
		"a sandbox":          {p.id, codes.NotFound, []string{p.id}},
	} {
		before := p.files()
		_, err := p.tryCreate(p.containerConfig(joining(test.id), "true"))
		wantError(t, err, test.code, append(test.words, "namespace_options.target_id")...)
		if after := p.files(); len(after) != len(before) {
			t.Errorf("%s: files of containers: got %v, before %v", name, after, before)
		}
	}
	// Created while the target ran, started when it does no more.
	target := p.sleeper(nil)
	late, removed := p.create(joining(target.id), "true"), p.create(joining(target.id), "true")
	target.stop(0)
	wantError(t, late.tryStart(), codes.FailedPrecondition, "target_id", target.id, "exited")
	if s := late.status(); s.GetState() != criv1.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 128 || s.GetReason() != "StartError" {
		t.Errorf("after the failed start: got %v, want EXITED 128 StartError", s)
	}
	target.remove()
	wantError(t, removed.tryStart(), codes.NotFound, "target_id", target.id)
}

// Whoever dies and comes back, a debugger goes on, and its end and its target's are seen.
func TestTargetOutlivesDaemonAndKeeper(t *testing.T) {
	for name, crash := range map[string]func(*testing.T, *node){
		"the daemon is killed": func(t *testing.T, n *node) { n.restart(t, syscall.SIGKILL, func() {}) },
		"the keeper is killed": func(t *testing.T, n *node) {
			keeper, _ := n.pair(t)
			n.kill(t, keeper)
			eventually(t, 20*time.Second, "RuntimeReady", func() bool {
				now, _, err := n.keeperPIDs()
				return err == nil && now != keeper && n.ready(t)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := ownNode(t, options{})
			n.watch(t)
			p := n.pod(t)
			target := p.sleeper(nil)
			stopped, killed, created := p.sleeper(joining(target.id)), p.sleeper(joining(target.id)), p.create(joining(target.id), "cat", "/proc/1/comm")
			crash(t, n)
			if got := stopped.exec("cat", "/proc/1/comm"); got != "sleep\n" {
				t.Errorf("PID 1: got %q, want the target", got)
			}
			if err := created.tryStart(); err != nil {
				t.Error(err)
			} else if s := created.wait(20 * time.Second); s.GetExitCode() != 0 || created.stream("stdout") != "sleep\n" {
				t.Errorf("created before: got %v and %q", s, created.stream("stdout"))
			}
			stopped.stop(0)
			if s := stopped.status(); s.GetExitCode() != 137 || s.GetMessage() != "" {
				t.Errorf("a stopped one: got %v, want 137 and no talk of its target", s)
			}
			pid := killed.info().PID
			target.stop(0)
			if s := killed.wait(20 * time.Second); s.GetExitCode() != 137 || !strings.Contains(s.GetMessage(), target.id) {
				t.Errorf("after the target's end: got %v, want 137 and the target's id", s)
			}
			if _, err := kerneltest.ReadProcess(pid); err == nil {
				t.Errorf("process %d is still there", pid)
			}
		})
	}
}
