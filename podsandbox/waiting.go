package podsandbox

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/podwright/podwright/cni"
	"github.com/podwright/podwright/runtime/cgroup"
)

// What an operation can wait for.
const (
	WaitOperation = "operation" // another one on the same object
	WaitPlugin    = "CNI plugin"
	WaitMount     = "mount source" // a host path, which may be on a dead server
	WaitDevice    = "device"       // a host path too
	WaitStart     = "start"        // of a process: the keeper's answer, and so init's steps
	WaitEnd       = "end"          // of a process
	WaitVolume    = "volume"       // whose files are being labelled
	WaitKernel    = "kernel"       // to take a limit: it may have to reclaim memory first
)

// Wait is what an operation waits for at this moment.
type Wait struct {
	For    string
	Name   string    // the operation, plugin, path, or program
	PID    int       // of the process that is waited for, where it is known
	Detail string    // what that process is at: its state, and where in the kernel it sleeps
	Until  time.Time // when the waiting is over at the latest, where that is known

	lock    *opLock     // WaitOperation: whose turn it is
	group   string      // WaitStart, WaitEnd: the cgroup of the processes
	relabel *relabelJob // WaitVolume
}

// Waits says what op waits for, looked at now: processes are looked up in /proc, which waits for nobody.
func (m *Manager) Waits(op *Operation) []Wait {
	op.mu.Lock()
	w, id := op.wait, op.id
	op.mu.Unlock()
	switch w.For {
	case "":
		return nil
	case WaitOperation:
		holder := w.lock.holder.Load()
		if holder == nil {
			return nil
		}
		w.Name = fmt.Sprintf("%s %s: %s", holder.Kind, holder.ID(), holder.Step())
		return []Wait{w}
	case WaitVolume:
		w.Detail = progressText(w.relabel.walk.Progress())
		return []Wait{w}
	case WaitPlugin:
		return runningPlugins(m.cfg.Network.Running(id), w)
	case WaitStart, WaitEnd:
		return processes(m.cfg.Cgroups, w)
	}
	return []Wait{w}
}

func runningPlugins(plugins []cni.Running, w Wait) []Wait {
	var list []Wait
	for _, p := range plugins {
		next := w
		next.Name, next.PID = p.Plugin+" "+p.Command, p.PID
		next.Detail, _ = processState(p.PID)
		next.Until = p.Deadline
		list = append(list, next)
	}
	return list
}

// maxShown bounds how many processes of a group are shown.
const maxShown = 4

// processes names those of a cgroup: the one that is known, or the first few. A shared group may have others' too.
func processes(groups *cgroup.Manager, w Wait) []Wait {
	if w.PID != 0 || w.group == "" {
		w.Detail, w.Name = processState(w.PID)
		return []Wait{w}
	}
	pids, err := groups.Pids(w.group)
	if err != nil || len(pids) == 0 {
		return []Wait{w} // not there yet, or gone
	}
	var list []Wait
	for _, pid := range pids[:min(len(pids), maxShown)] {
		next := w
		next.PID = pid
		next.Detail, next.Name = processState(pid)
		list = append(list, next)
	}
	return list
}

// processStates are those of proc_pid_stat(5) in which a process does not go on by itself.
var processStates = map[string]string{
	"D": "in uninterruptible sleep", "R": "running", "S": "sleeping", "T": "stopped by a signal", "t": "stopped by a tracer", "Z": "ended, not reaped", "I": "idle",
}

// initName is how the kernel calls init while it walks its plan: as the memfd that it is executed from, cut off.
const initName = "memfd:podwright"

// processState says what a process is at and what it runs, as far as /proc tells. Its name is the workload's choice.
func processState(pid int) (detail, name string) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	begin, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if err != nil || begin < 0 || end < begin {
		return "gone", ""
	}
	name = strings.ToValidUTF8(string(stat[begin+1:end]), "?")
	if strings.HasPrefix(name, initName) {
		name = "init"
	}
	if fields := strings.Fields(string(stat[end+1:])); len(fields) > 0 {
		if detail = processStates[fields[0]]; detail == "" {
			detail = "in state " + fields[0]
		}
	}
	// Where it sleeps in the kernel; "0" where it does not, or where we may not know.
	if raw, err := os.ReadFile(filepath.Join(dir, "wchan")); err == nil && len(raw) > 1 {
		detail += " in " + string(raw)
	}
	return detail, name
}

// containerName is how operators call a container: kubeNamespace/pod/container.
func containerName(m *core, c *container) string {
	s, err := m.sandboxes.find("sandbox", c.record().SandboxID)
	if err != nil {
		return c.config.GetMetadata().GetName()
	}
	return podName(s.config) + "/" + c.config.GetMetadata().GetName()
}
