package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/kerneltest"
)

// writers are pods that write numbered lines, each its own, and do nothing else.
type writers struct {
	t    *testing.T
	n    *node
	dir  string // a file in it ends the writer of that name with code 7
	list []*container
	was  []kerneltest.Process
}

// leaver is the one that exits while nobody of podwright can see it.
const leaver = 7

func startWriters(t *testing.T, n *node, count int) *writers {
	t.Helper()
	w := &writers{t: t, n: n, dir: t.TempDir()}
	for i := range count {
		c := n.pod(t).start(func(c *criv1.ContainerConfig) { c.Mounts = []*criv1.Mount{bind(w.dir, "/ctl")} },
			"probe", "lines", "50ms", fmt.Sprintf("/ctl/%d", i))
		process, err := kerneltest.ReadProcess(c.info().PID)
		if err != nil {
			t.Fatal(err)
		}
		w.list, w.was = append(w.list, c), append(w.was, process)
	}
	w.waitForLines(5)
	return w
}

func (w *writers) alive(i int) bool {
	now, err := kerneltest.ReadProcess(w.was[i].PID)
	return err == nil && now.Start == w.was[i].Start && now.State != 'Z'
}

// leave makes one writer exit with code 7, and returns once it did.
func (w *writers) leave() {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, fmt.Sprint(leaver)), nil, 0o644); err != nil {
		w.t.Fatal(err)
	}
	eventually(w.t, 20*time.Second, "exit of a writer", func() bool { return !w.alive(leaver) })
}

// waitForLines waits until every writer that runs has written so many more.
func (w *writers) waitForLines(more int) {
	w.t.Helper()
	begin := make([]int, len(w.list))
	for i, c := range w.list {
		begin[i] = len(c.logLines())
	}
	for i, c := range w.list {
		if w.alive(i) {
			eventually(w.t, 20*time.Second, fmt.Sprintf("%d more lines of writer %d", more, i), func() bool { return len(c.logLines()) >= begin[i]+more })
		}
	}
}

// check holds what a user sees after the crash: the same containers and processes, the true exit code, execs and stops
// that work, every line once. A keeper that is killed may lose the batch it had read and not written.
func (w *writers) check(batchLost bool) {
	w.t.Helper()
	list, err := w.n.ListContainers(ctx(w.t), &criv1.ListContainersRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	if len(list.GetContainers()) != len(w.list) {
		w.t.Errorf("containers: got %d, want %d", len(list.GetContainers()), len(w.list))
	}
	gone := w.list[leaver].wait(20 * time.Second)
	if gone.GetExitCode() != 7 || gone.GetReason() != "Error" {
		w.t.Errorf("the writer that exited meanwhile: got code %d reason %q, want 7 Error", gone.GetExitCode(), gone.GetReason())
	}
	for i, c := range w.list {
		if i == leaver {
			continue
		}
		if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING || c.info().PID != w.was[i].PID || !w.alive(i) {
			w.t.Errorf("writer %d: got %v with pid %d, want it running with pid %d", i, s.GetState(), c.info().PID, w.was[i].PID)
		}
		if got := c.exec("cat", "/proc/1/cmdline"); !strings.HasPrefix(got, "probe\x00lines") {
			w.t.Errorf("exec in writer %d: got %q", i, got)
		}
	}
	w.waitForLines(5)
	lost := 0
	for i, c := range w.list {
		if i != leaver {
			c.stop(10)
			if s := c.status(); s.GetExitCode() != 0 || s.GetReason() != "Completed" {
				w.t.Errorf("stopped writer %d: got code %d reason %q, want 0 Completed", i, s.GetExitCode(), s.GetReason())
			}
		}
		lost += w.lines(c, batchLost)
	}
	w.t.Logf("lines lost: %d", lost)
}

// lines checks one log and counts what is missing in it.
func (w *writers) lines(c *container, batchLost bool) (lost int) {
	w.t.Helper()
	want, gaps := 0, 0
	for _, line := range c.logLines() {
		var number int
		if n, err := fmt.Sscanf(line.text, "line %d", &number); n != 1 || err != nil || line.tag != "F" {
			if !batchLost {
				w.t.Errorf("%s: got %q, tag %s", c.logPath(), line.text, line.tag)
			}
			continue
		}
		if number > want {
			gaps++
			lost += number - want
		}
		if number < want {
			w.t.Errorf("%s: line %d after line %d: want each once and in order", c.logPath(), number, want-1)
		}
		want = number + 1
	}
	if gaps > 1 || gaps > 0 && !batchLost {
		w.t.Errorf("%s: %d gaps, %d lines missing", c.logPath(), gaps, lost)
	}
	return lost
}

func TestContainersOutliveTheDaemon(t *testing.T) {
	for name, signal := range map[string]os.Signal{"kill -9": unix.SIGKILL, "graceful stop": unix.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			n := ownNode(t, options{})
			n.watch(t)
			w := startWriters(t, n, 20)
			n.restart(t, signal, w.leave)
			w.check(false)
		})
	}
}

// The keeper replaces itself in place: the same process, with the same children.
func TestContainersOutliveAnUpgradeOfTheKeeper(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	w := startWriters(t, n, 20)
	keeper, anchor := n.pair(t)
	if _, err := n.podwright("keeper", "upgrade"); err != nil {
		t.Fatal(err)
	}
	w.leave()
	eventually(t, 20*time.Second, "RuntimeReady", func() bool { return n.ready(t) })
	if k, a := n.pair(t); k != keeper || a != anchor {
		t.Errorf("keeper and anchor: got %d and %d, want %d and %d as before", k, a, keeper, anchor)
	}
	w.check(false)
}

// kill ends processes at once: none sees another's end.
func (n *node) kill(t *testing.T, pids ...int) {
	t.Helper()
	for _, signal := range []unix.Signal{unix.SIGSTOP, unix.SIGKILL} {
		for _, pid := range pids {
			if err := unix.Kill(pid, signal); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// pair gives keeper and anchor.
func (n *node) pair(t *testing.T) (keeper, anchor int) {
	t.Helper()
	keeper, anchor, err := n.keeperPIDs()
	if err != nil {
		t.Fatal(err)
	}
	return keeper, anchor
}

// ready says whether the daemon can start things.
func (n *node) ready(t *testing.T) bool {
	t.Helper()
	s, err := n.Status(ctx(t), &criv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.GetStatus().GetConditions() {
		if c.GetType() == criv1.RuntimeReady {
			return c.GetStatus()
		}
	}
	return false
}

func TestContainersOutliveTheKeeper(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	w := startWriters(t, n, 20)
	keeper, anchor := n.pair(t)
	n.kill(t, keeper)
	w.leave()
	eventually(t, 20*time.Second, "another keeper", func() bool {
		now, _, err := n.keeperPIDs()
		return err == nil && now != keeper && n.ready(t)
	})
	if _, now := n.pair(t); now != anchor {
		t.Errorf("anchor: got %d, want %d as before", now, anchor)
	}
	w.check(true)
}

// A keeper whose anchor dies becomes one, and starts another keeper.
func TestContainersOutliveTheAnchor(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	w := startWriters(t, n, 20)
	keeper, anchor := n.pair(t)
	n.kill(t, anchor)
	w.leave()
	eventually(t, 20*time.Second, "another pair", func() bool {
		k, a, err := n.keeperPIDs()
		return err == nil && k != keeper && a != anchor && n.ready(t)
	})
	w.check(true)
}

// Without anchor and keeper nobody reads the FIFOs for a moment: containers that write then get SIGPIPE. All others are
// adopted again, and what they write later is logged.
func TestContainersAreAdoptedAgainWithoutKeeperAndAnchor(t *testing.T) {
	for name, daemonToo := range map[string]bool{"daemon lives": false, "daemon killed too": true} {
		t.Run(name, func(t *testing.T) {
			n := ownNode(t, options{})
			n.watch(t)
			var list []*container
			for i := range 5 {
				var change []func(*criv1.PodSandboxConfig)
				if i == 4 {
					change = append(change, podPID) // with a PID 1 that is podwright's
				}
				list = append(list, n.pod(t, change...).start(nil, "sh", "-c", "trap 'echo told' USR1; trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done"))
			}
			short := n.pod(t).sleeper(nil)
			pids := map[*container]int{}
			for _, c := range append(list, short) {
				pids[c] = c.info().PID
			}
			for _, c := range list {
				eventually(t, 10*time.Second, "ready", func() bool { return c.stream("stdout") == "ready\n" })
			}
			keeper, anchor := n.pair(t)
			if daemonToo {
				if err := n.halt(unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			n.kill(t, anchor, keeper, pids[short])
			if daemonToo {
				if err := n.serve(); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, 20*time.Second, "another pair", func() bool {
				k, a, err := n.keeperPIDs()
				return err == nil && k != keeper && a != anchor && n.ready(t)
			})
			if s := short.wait(20 * time.Second); s.GetExitCode() != 137 && (s.GetExitCode() != 255 || s.GetReason() != "ExitCodeLost") {
				t.Errorf("ended while nobody looked: got code %d reason %q, want 137, or 255 ExitCodeLost", s.GetExitCode(), s.GetReason())
			}
			for i, c := range list {
				if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING || c.info().PID != pids[c] {
					t.Errorf("container %d: got %v with pid %d, want it running with pid %d", i, s, c.info().PID, pids[c])
					continue
				}
				c.exec("true")
				if err := unix.Kill(pids[c], unix.SIGUSR1); err != nil {
					t.Fatal(err)
				}
				eventually(t, 10*time.Second, "output after the adoption", func() bool { return c.stream("stdout") == "ready\ntold\n" })
				c.stop(10)
				if s := c.status(); s.GetExitCode() != 3 && (s.GetExitCode() != 255 || s.GetReason() != "ExitCodeLost") {
					t.Errorf("container %d after its stop: got code %d reason %q, want 3, or 255 ExitCodeLost", i, s.GetExitCode(), s.GetReason())
				}
			}
		})
	}
}

// The command looks at a keeper and starts none, even while one is dying: that one would be in no cgroup of its own, and
// the daemon would not know that its children are lost.
func TestKeeperStatusStartsNoKeeper(t *testing.T) {
	n := ownNode(t, options{})
	for range 4 {
		keeper, anchor := n.pair(t)
		if err := n.halt(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		var wait sync.WaitGroup
		for range 3 {
			wait.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						n.podwright("keeper", "status") // its answer depends on the moment
					}
				}
			})
		}
		time.Sleep(50 * time.Millisecond)
		n.kill(t, anchor, keeper)
		time.Sleep(150 * time.Millisecond)
		close(stop)
		wait.Wait()
		if out, err := n.podwright("keeper", "status"); err == nil {
			t.Errorf("after keeper and anchor were killed: got %q, want no keeper", out)
		}
		if err := n.serve(); err != nil {
			t.Fatal(err)
		}
	}
}
