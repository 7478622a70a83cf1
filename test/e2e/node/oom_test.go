package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func limited32MiB(c *criv1.ContainerConfig) {
	c.Linux.Resources = &criv1.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 32 << 20}
}

// wantOOM looks at an end; words are what its message has to say.
func wantOOM(t *testing.T, name string, s *criv1.ContainerStatus, code int32, words ...string) {
	t.Helper()
	if s.GetExitCode() != code || s.GetReason() != "OOMKilled" {
		t.Errorf("%s: got code %d reason %q message %q, want %d OOMKilled", name, s.GetExitCode(), s.GetReason(), s.GetMessage(), code)
	}
	for _, word := range append(words, fmt.Sprintf("container %q", s.GetMetadata().GetName())) {
		if !strings.Contains(s.GetMessage(), word) {
			t.Errorf("%s: message %q, want %q in it", name, s.GetMessage(), word)
		}
	}
}

func wantPlain(t *testing.T, name string, s *criv1.ContainerStatus, code int32, reason string) {
	t.Helper()
	if s.GetExitCode() != code || s.GetReason() != reason {
		t.Errorf("%s: got code %d reason %q message %q, want %d %s", name, s.GetExitCode(), s.GetReason(), s.GetMessage(), code, reason)
	}
}

func TestAllocatorOverItsLimitIsOOMKilledB19(t *testing.T) {
	p := onNode(t).pod(t)
	const limit = "the container's own limit of 33554432 bytes"
	s := p.start(limited32MiB, "probe", "alloc", "200").wait(60 * time.Second)
	wantOOM(t, "the first process", s, 137, "its first process was killed by the kernel", limit)
	s = p.start(limited32MiB, "sh", "-c", "probe alloc 200; exit $?").wait(60 * time.Second)
	wantOOM(t, "a child, whose end is the first process's", s, 137, "processes", limit)
	s = p.start(limited32MiB, "sh", "-c", "probe alloc 200 || exit 3").wait(60 * time.Second)
	wantOOM(t, "a child, without which the first process gives up", s, 3, limit)
	s = p.start(limited32MiB, "sh", "-c", "probe alloc 200; sleep 1; exit 0").wait(60 * time.Second)
	wantPlain(t, "a child that the first process does without", s, 0, "Completed")
	s = p.start(limited32MiB, "sh", "-c", "probe alloc 200; kill -ABRT $$").wait(60 * time.Second)
	if s.GetReason() == "OOMKilled" {
		t.Errorf("an end by another signal: got code %d reason %q", s.GetExitCode(), s.GetReason())
	}
	s = p.start(limited32MiB, "sh", "-c", "exit 3").wait(60 * time.Second)
	wantPlain(t, "no child at all", s, 3, "Error")
	within := p.output(func(c *criv1.ContainerConfig) {
		c.Linux.Resources = &criv1.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, MemorySwapLimitInBytes: 128 << 20}
	}, "probe", "alloc", "40")
	if within != "allocated 40 MiB\n" {
		t.Errorf("within the limit: got %q", within)
	}
}

// A command in the container that was killed for memory makes no later end of the container one for want of memory:
// neither a good one, nor one that was asked for, nor a failure of its own.
func TestOOMOfAnExecIsNotTheContainersB21(t *testing.T) {
	p := onNode(t).pod(t)
	// While they wait they take no memory: the kernel would be right to kill one that does.
	for name, test := range map[string]struct {
		script string
		code   int32
		reason string
	}{
		"0 after a stop":   {"trap 'exit 0' TERM; sleep 1000 & wait", 0, "Completed"},
		"143 after a stop": {"trap 'exit 143' TERM; sleep 1000 & wait", 143, "Error"},
		"1 after a stop":   {"trap 'exit 1' TERM; sleep 1000 & wait", 1, "Error"},
		"killed by a stop": {"trap '' TERM; sleep 1000 & wait", 137, "Error"},
		"0 by itself":      {"mkfifo /end; read x < /end; exit 0", 0, "Completed"},
		"3 by itself":      {"mkfifo /end; read x < /end; exit 3", 3, "Error"},
	} {
		t.Run(name, func(t *testing.T) {
			p.t = t
			c := p.start(limited32MiB, "sh", "-c", test.script)
			resp, err := c.tryExec(60, "probe", "alloc", "200")
			if err != nil || resp.GetExitCode() != 137 {
				t.Fatalf("exec over the limit: got %v, %v, want exit code 137", resp, err)
			}
			if strings.HasSuffix(name, "itself") {
				// The container's end may come before the command's own and end it too, so its result says nothing.
				c.tryExec(10, "sh", "-c", "echo > /end")
			} else {
				c.stop(1)
			}
			// v2 kills the whole group where memory.oom.group is set; nobody asked for that here.
			wantPlain(t, name, c.wait(20*time.Second), test.code, test.reason)
		})
	}
	p.t = t
	// After such a command the container's own want is still seen.
	c := p.start(limited32MiB, "sh", "-c", "mkfifo /end; read x < /end; exec probe alloc 200")
	if resp, err := c.tryExec(60, "probe", "alloc", "200"); err != nil || resp.GetExitCode() != 137 {
		t.Fatalf("exec over the limit: got %v, %v, want exit code 137", resp, err)
	}
	c.exec("sh", "-c", "echo > /end")
	wantOOM(t, "its own after a command's", c.wait(60*time.Second), 137)
}

// Where the container has no limit of its own, the message names the pod's.
func TestPodsMemoryLimitIsNamed(t *testing.T) {
	n := onNode(t)
	parent := n.group + "/pod-with-limit"
	var made []string
	for _, top := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, err := filepath.Glob(top + n.group)
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range dirs {
			path := filepath.Join(dir, "pod-with-limit")
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			made = append(made, path)
		}
	}
	t.Cleanup(func() {
		for _, path := range made {
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
	})
	set := 0
	for _, file := range []string{"memory.max", "memory.swap.max", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"} {
		value := "50331648"
		if file == "memory.swap.max" {
			value = "0"
		}
		for _, path := range made {
			if os.WriteFile(filepath.Join(path, file), []byte(value), 0) == nil {
				set++
			}
		}
	}
	if set == 0 {
		t.Fatalf("no memory controller in %v", made)
	}
	t.Run("pod", func(t *testing.T) {
		p := n.pod(t, func(c *criv1.PodSandboxConfig) { c.Linux.CgroupParent = parent })
		wantOOM(t, "no own limit", p.start(nil, "probe", "alloc", "200").wait(60*time.Second), 137, "its pod's limit of 50331648 bytes", parent)
		wantOOM(t, "a smaller limit", p.start(limited32MiB, "probe", "alloc", "200").wait(60*time.Second), 137, "the container's own limit of 33554432 bytes")
	})
}

// What the kernel did while no daemon ran is found in the group, which stays until the end is recorded.
func TestOOMWhileTheDaemonIsAwayIsKnownB19(t *testing.T) {
	n := ownNode(t, options{})
	p := n.pod(t)
	first := p.start(limited32MiB, "sh", "-c", "sleep 1.5; exec probe alloc 200")
	child := p.start(limited32MiB, "sh", "-c", "sleep 1.5; probe alloc 200 || exit 4")
	command := p.start(limited32MiB, "sh", "-c", "sleep 3; exit 5")
	if resp, err := command.tryExec(60, "probe", "alloc", "200"); err != nil || resp.GetExitCode() != 137 {
		t.Fatalf("exec over the limit: got %v, %v, want exit code 137", resp, err)
	}
	groups := []string{first.info().CgroupPath, child.info().CgroupPath, command.info().CgroupPath}
	n.restart(t, unix.SIGKILL, func() {
		for _, group := range groups {
			eventually(t, 30*time.Second, "end of "+group, func() bool {
				for _, file := range []string{"/sys/fs/cgroup/memory" + group + "/cgroup.procs", "/sys/fs/cgroup" + group + "/cgroup.procs"} {
					if text, err := os.ReadFile(file); err == nil {
						return len(text) == 0
					}
				}
				t.Fatalf("group %s is gone before its end is recorded", group)
				return false
			})
		}
	})
	wantOOM(t, "the first process", first.wait(20*time.Second), 137, "its first process was", "own limit of 33554432 bytes")
	wantOOM(t, "a child", child.wait(20*time.Second), 4, "own limit of 33554432 bytes")
	wantPlain(t, "a command before", command.wait(20*time.Second), 5, "Error")
}

// That a container was told to end outlives the daemon: it is not told again, and what it then makes of a child that was
// killed before is not an end for want of memory.
func TestStopIsRememberedAcrossARestartB23(t *testing.T) {
	n := ownNode(t, options{})
	p := n.pod(t)
	c := p.start(limited32MiB, "sh", "-c", "trap 'echo told; n=$((n+1))' TERM; probe alloc 200; echo ready; while [ ! -e /end ]; do sleep 0.1; done; exit $n")
	output := func(want string) {
		t.Helper()
		eventually(t, 30*time.Second, want, func() bool { return strings.Contains(c.stream("stdout"), want) })
	}
	output("ready\n")
	answer := make(chan error, 1)
	go func() {
		_, err := n.StopContainer(ctx(t), &criv1.StopContainerRequest{ContainerId: c.id, Timeout: 60})
		answer <- err
	}()
	output("told\n")
	n.restart(t, unix.SIGKILL, nil)
	if err := <-answer; err == nil {
		t.Error("the stop of a daemon that was killed: got success")
	}
	go func() {
		_, err := n.StopContainer(ctx(t), &criv1.StopContainerRequest{ContainerId: c.id, Timeout: 60})
		answer <- err
	}()
	n.op(t, "stop container", "wait for its end", "end")
	time.Sleep(300 * time.Millisecond) // a signal would be seen by then
	c.exec("touch", "/end")
	if err := <-answer; err != nil {
		t.Error(err)
	}
	wantPlain(t, "stopped before and after a restart", c.wait(20*time.Second), 1, "Error")
	if got := c.stream("stdout"); strings.Count(got, "told") != 1 {
		t.Errorf("output: got %q, want it told once", got)
	}
}
