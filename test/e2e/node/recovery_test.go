package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/kerneltest"
)

// One test per row of the recovery table in docs/architecture.md, as far as a client can bring it about.

// recordPath finds the newest generation of a record: kind is "sandboxes" or "containers".
func (n *node) recordPath(t *testing.T, kind, id string) string {
	t.Helper()
	list, err := filepath.Glob(n.path("state", "records", kind, id, "record.*.json"))
	if err != nil || len(list) == 0 {
		t.Fatalf("records of %s: %v, %v", id, list, err)
	}
	// Of two numbers of different length the longer one is larger.
	slices.SortFunc(list, func(a, b string) int { return len(a)*1000 - len(b)*1000 + strings.Compare(a, b) })
	return list[len(list)-1]
}

// editRecord changes a record while no daemon runs.
func (n *node) editRecord(t *testing.T, kind, id string, change func(map[string]any)) {
	t.Helper()
	path := n.recordPath(t, kind, id)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	record := map[string]any{}
	decoder := json.NewDecoder(strings.NewReader(string(raw)))
	decoder.UseNumber()
	if err := decoder.Decode(&record); err != nil {
		t.Fatal(err)
	}
	change(record)
	if raw, err = json.Marshal(record); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (n *node) restart(t *testing.T, signal os.Signal, between func()) {
	t.Helper()
	if err := n.halt(signal); err != nil {
		t.Fatal(err)
	}
	if between != nil {
		between()
	}
	if err := n.serve(); err != nil {
		t.Fatal(err)
	}
}

func (n *node) sandboxState(t *testing.T, id string) criv1.PodSandboxState {
	t.Helper()
	s, err := n.PodSandboxStatus(ctx(t), &criv1.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	return s.GetStatus().GetState()
}

const (
	sandboxReady    = criv1.PodSandboxState_SANDBOX_READY
	sandboxNotReady = criv1.PodSandboxState_SANDBOX_NOTREADY
)

// Creating, anything: torn down, and the kubelet's retry makes it anew (B5).
func TestInterruptedRunPodSandboxIsTornDown(t *testing.T) {
	n, cni := pluginNode(t)
	n.watch(t)
	config := n.podConfig(ownNetwork)
	cni.behave("ADD", "wait")
	answer := make(chan error, 1)
	go func() {
		_, err := n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: config})
		answer <- err
	}()
	cni.waitForCall("ADD")
	n.restart(t, unix.SIGKILL, func() { cni.behave("ADD", "") })
	if err := <-answer; err == nil {
		t.Error("RunPodSandbox of a daemon that was killed: got success")
	}
	list, err := n.ListPodSandbox(ctx(t), &criv1.ListPodSandboxRequest{})
	if err != nil || len(list.GetItems()) != 0 {
		t.Errorf("sandboxes after the restart: got %v, %v, want none", list, err)
	}
	add, del := cni.calls("ADD"), cni.calls("DEL")
	if len(del) == 0 || strings.Fields(del[0])[1] != strings.Fields(add[0])[1] {
		t.Errorf("CNI calls: got %q then %q, want a DEL for that ADD", add, del)
	}
	resp, err := n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("the retry: %v", err)
	}
	n.removePod(t, resp.GetPodSandboxId())
}

// A stop that comes while a sandbox is being made lets it be finished, and its caller gets the answer.
func TestGracefulStopFinishesWhatIsBeingMade(t *testing.T) {
	n, cni := pluginNode(t)
	n.watch(t)
	config := n.podConfig(ownNetwork)
	cni.behave("ADD", "pause")
	type answer struct {
		resp *criv1.RunPodSandboxResponse
		err  error
	}
	answers := make(chan answer, 1)
	conn := n.conn // halt closes it, and this call is to get its answer
	other, err := dial(n.socket())
	if err != nil {
		t.Fatal(err)
	}
	n.conn = other
	go func() {
		resp, err := criv1.NewRuntimeServiceClient(conn).RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: config})
		answers <- answer{resp, err}
	}()
	cni.waitForCall("ADD")
	n.restart(t, unix.SIGTERM, nil)
	got := <-answers
	conn.Close()
	if got.err != nil {
		t.Fatalf("RunPodSandbox of a daemon that was asked to stop: %v", got.err)
	}
	if state := n.sandboxState(t, got.resp.GetPodSandboxId()); state != sandboxReady {
		t.Errorf("after the restart: got %v, want ready", state)
	}
	n.removePod(t, got.resp.GetPodSandboxId())
}

// Sandbox Ready of the same boot, container Created: as they were. The container starts afterwards.
func TestReadyAndCreatedSurviveARestart(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	p := n.pod(t, ownNetwork, podPID)
	c := p.create(nil, "sh", "-c", "echo $$; exit 4")
	before, err := n.PodSandboxStatus(ctx(t), &criv1.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	n.restart(t, unix.SIGKILL, nil)
	after, err := n.PodSandboxStatus(ctx(t), &criv1.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil || after.GetStatus().String() != before.GetStatus().String() {
		t.Errorf("sandbox: got %v, %v, want %v", after.GetStatus(), err, before.GetStatus())
	}
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_CREATED {
		t.Errorf("container: got %v, want it created", s.GetState())
	}
	if id, err := p.tryCreate(c.config); err != nil || id != c.id {
		t.Errorf("the same create again: got %q, %v, want %q (B4)", id, err, c.id)
	}
	if err := c.tryStart(); err != nil {
		t.Fatal(err)
	}
	if s := c.wait(20 * time.Second); s.GetExitCode() != 4 {
		t.Errorf("got %v", s)
	}
}

// Container Created and the keeper has it: the daemon was killed in the middle of Start (B13).
func TestStartThatWasNotRecordedIsRunning(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	c := n.pod(t).sleeper(nil)
	pid := c.info().PID
	n.restart(t, unix.SIGKILL, func() {
		n.editRecord(t, "containers", c.id, func(r map[string]any) {
			r["phase"] = "created"
			delete(r, "pid")
			delete(r, "startTime")
			delete(r, "started")
		})
	})
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING || c.info().PID != pid || s.GetStartedAt() == 0 {
		t.Errorf("got %v with pid %d, want it running with pid %d", s, c.info().PID, pid)
	}
	c.exec("true")
}

// An exit file exists: the code is there though nobody of podwright's daemon saw it.
func TestExitsWhileTheDaemonIsAwayAreKnown(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	dir := t.TempDir()
	c := n.pod(t).start(func(c *criv1.ContainerConfig) { c.Mounts = []*criv1.Mount{bind(dir, "/ctl")} }, "probe", "lines", "20ms", "/ctl/end")
	pid := c.info().PID
	n.restart(t, unix.SIGKILL, func() {
		if err := os.WriteFile(filepath.Join(dir, "end"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "exit", func() bool {
			p, err := kerneltest.ReadProcess(pid)
			return errors.Is(err, os.ErrNotExist) || err == nil && p.State == 'Z'
		})
	})
	if s := c.wait(10 * time.Second); s.GetExitCode() != 7 || s.GetReason() != "Error" {
		t.Errorf("got code %d reason %q, want 7 Error", s.GetExitCode(), s.GetReason())
	}
}

// The records of another boot: nothing runs, what the kubelet must know is there, and DEL is owed without a namespace
// (B10, B12).
func TestAfterAReboot(t *testing.T) {
	n, cni := pluginNode(t)
	p := n.pod(t, ownNetwork)
	running, created, exited := p.sleeper(nil), p.create(nil, "true"), p.start(nil, "sh", "-c", "exit 9")
	exited.wait(20 * time.Second)
	n.restart(t, unix.SIGTERM, func() {
		n.loseBoot(t)
		n.editRecord(t, "sandboxes", p.id, func(r map[string]any) { r["bootID"] = "another" })
		for _, c := range []*container{running, created, exited} {
			n.editRecord(t, "containers", c.id, func(r map[string]any) { r["bootID"] = "another" })
		}
	})
	if got := n.sandboxState(t, p.id); got != sandboxNotReady {
		t.Errorf("sandbox: got %v, want not ready", got)
	}
	if s := running.status(); s.GetState() != criv1.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 255 || s.GetReason() != "Unknown" || s.GetFinishedAt() < s.GetStartedAt() || s.GetFinishedAt() == 0 {
		t.Errorf("it ran: got %v, want EXITED 255 Unknown with a time", s)
	}
	if s := exited.status(); s.GetExitCode() != 9 || s.GetReason() != "Error" {
		t.Errorf("it had exited: got %v, want 9 as before", s)
	}
	wantError(t, created.tryStart(), codes.FailedPrecondition, p.id)
	if _, err := n.StopPodSandbox(ctx(t), &criv1.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	if del := cni.calls("DEL"); len(del) == 0 || !strings.Contains(del[len(del)-1], p.id) || !strings.Contains(del[len(del)-1], "netns=none") {
		t.Errorf("CNI DEL after the reboot: got %q, want one with the sandbox's id and no namespace", del)
	}
}

// loseBoot makes the node what it is after a reboot: no processes, no mounts, an empty run directory, no cgroups.
func (n *node) loseBoot(t *testing.T) {
	t.Helper()
	keeper, anchor := n.pair(t)
	n.kill(t, anchor, keeper)
	all, err := kerneltest.Descendants(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID)); err == nil && strings.Contains(string(group), n.group+"/pods") {
			n.kill(t, p.PID)
		}
	}
	eventually(t, 10*time.Second, "empty cgroups", func() bool { return n.removeGroups(n.group+"/pods") == nil })
	n.unmountBelow(t, n.path("run"), n.path("netns"))
	for _, dir := range []string{"run", "netns"} {
		if err := os.RemoveAll(n.path(dir)); err != nil {
			t.Fatal(err)
		}
	}
}

// unmountBelow unmounts everything in the directories.
func (n *node) unmountBelow(t *testing.T, dirs ...string) {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		point := strings.Fields(lines[i])[4]
		for _, dir := range dirs {
			if point == dir || strings.HasPrefix(point, dir+"/") {
				// EINVAL: it was there twice in a shared tree, and went with the other.
				if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
					t.Fatalf("unmount %s: %v", point, err)
				}
			}
		}
	}
}

// Sandbox Ready, its namespace gone: not ready, and Stop and Remove still take everything away.
func TestSandboxWithoutItsNamespaceIsNotReady(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	lost, whole := n.pod(t, ownNetwork), n.pod(t, ownNetwork)
	c := lost.sleeper(nil)
	n.restart(t, unix.SIGTERM, func() { n.unmountBelow(t, n.path("netns", lost.id)) })
	if got := n.sandboxState(t, lost.id); got != sandboxNotReady {
		t.Errorf("got %v, want not ready", got)
	}
	if got := n.sandboxState(t, whole.id); got != sandboxReady {
		t.Errorf("the other sandbox: got %v, want ready", got)
	}
	_, err := lost.tryCreate(lost.containerConfig(nil, "true"))
	wantError(t, err, codes.FailedPrecondition, lost.id)
	c.stop(0)
}

// The end of a shared PID namespace's PID 1 ends its sandbox and what runs in it (B11).
func TestSandboxEndsWithItsReaperB11(t *testing.T) {
	n := onNode(t)
	p := n.pod(t, podPID)
	c := p.sleeper(nil)
	s, err := n.PodSandboxStatus(ctx(t), &criv1.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var i info
	if err := json.Unmarshal([]byte(s.GetInfo()["info"]), &i); err != nil || i.PID == 0 {
		t.Fatalf("the reaper's pid: got %d, %v", i.PID, err)
	}
	n.kill(t, i.PID)
	if s := c.wait(20 * time.Second); s.GetExitCode() != 137 {
		t.Errorf("container: got %v, want 137", s)
	}
	eventually(t, 10*time.Second, "not ready", func() bool { return n.sandboxState(t, p.id) == sandboxNotReady })
	_, err = p.tryCreate(p.containerConfig(nil, "true"))
	wantError(t, err, codes.FailedPrecondition, p.id)
}

// Container Running, unknown to the keeper: what the record names is another process by now, and others of the container
// still run; or nothing of it does.
func TestContainersOfALostKeeperEnd(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	p := n.pod(t)
	orphan, gone := p.start(nil, "sh", "-c", "sleep 4321 & wait"), p.sleeper(nil)
	n.restart(t, unix.SIGTERM, func() {
		keeper, anchor := n.pair(t)
		pid := recordedPID(t, n, gone)
		n.kill(t, anchor, keeper, pid)
		n.editRecord(t, "containers", orphan.id, func(r map[string]any) { r["startTime"] = json.Number("1") })
	})
	if s := orphan.status(); s.GetState() != criv1.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 255 || s.GetReason() != "Orphaned" {
		t.Errorf("another process under its pid: got %v, want EXITED 255 Orphaned", s)
	}
	if s := gone.status(); s.GetState() != criv1.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 255 || s.GetReason() != "ExitCodeLost" {
		t.Errorf("nothing of it left: got %v, want EXITED 255 ExitCodeLost", s)
	}
	all, err := kerneltest.Descendants(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range all {
		if process.Command() == "sleep 4321" {
			t.Errorf("process %d of the orphan still runs", process.PID)
		}
	}
}

// recordedPID reads a container's pid from its record: no daemon runs.
func recordedPID(t *testing.T, n *node, c *container) (pid int) {
	t.Helper()
	n.editRecord(t, "containers", c.id, func(r map[string]any) {
		number, err := r["pid"].(json.Number).Int64()
		if err != nil {
			t.Fatal(err)
		}
		pid = int(number)
	})
	return pid
}

// No record, the keeper has it: killed and forgotten.
func TestProcessWithoutARecordIsEnded(t *testing.T) {
	n := ownNode(t, options{})
	p := n.pod(t)
	c := p.sleeper(nil)
	pid := c.info().PID
	n.restart(t, unix.SIGTERM, func() {
		if err := os.RemoveAll(n.path("state", "records", "containers", c.id)); err != nil {
			t.Fatal(err)
		}
	})
	eventually(t, 10*time.Second, "end of the process", func() bool {
		_, err := kerneltest.ReadProcess(pid)
		return errors.Is(err, os.ErrNotExist)
	})
	out, err := n.podwright("keeper", "status")
	if err != nil || !strings.Contains(out, "0 processes") {
		t.Errorf("keeper: got %q, %v, want no process", out, err)
	}
	// What else it had has no name any more; it goes with the directories.
	n.removeGroups(n.group + "/pods/" + c.id)
}

// Unreadable: listed by its id, everything else goes on, and Remove takes away what it stood for (B14).
func TestUnreadableRecordsAreListedAndRemovable(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	bad, good := n.pod(t, ownNetwork), n.pod(t, ownNetwork)
	other := good.sleeper(nil)
	badContainer := good.sleeper(nil)
	pid := badContainer.info().PID
	n.restart(t, unix.SIGKILL, func() {
		for kind, id := range map[string]string{"sandboxes": bad.id, "containers": badContainer.id} {
			paths, err := filepath.Glob(n.path("state", "records", kind, id, "record.*.json"))
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range paths {
				if err := os.WriteFile(path, []byte(`{ "version": 1, "id": "`), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	states := map[string]criv1.PodSandboxState{}
	list, err := n.ListPodSandbox(ctx(t), &criv1.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list.GetItems() {
		states[s.GetId()] = s.GetState()
	}
	if state, listed := states[bad.id]; !listed || state != sandboxNotReady || states[good.id] != sandboxReady || len(states) != 2 {
		t.Errorf("sandboxes: got %v, want %s not ready and %s ready", states, bad.id, good.id)
	}
	containers, err := n.ListContainers(ctx(t), &criv1.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers.GetContainers() {
		if c.GetId() == badContainer.id && c.GetState() != criv1.ContainerState_CONTAINER_UNKNOWN {
			t.Errorf("the container: got %v, want it unknown", c)
		}
	}
	if len(containers.GetContainers()) != 2 {
		t.Errorf("containers: got %v, want both", containers)
	}
	if s := other.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING {
		t.Errorf("another container: got %v, want it running", s)
	}
	if _, err := kerneltest.ReadProcess(pid); err != nil {
		t.Errorf("the container's process before it was removed: %v", err)
	}
	badContainer.remove()
	if p, err := kerneltest.ReadProcess(pid); err == nil {
		t.Errorf("the container's process after it was removed: %+v", p)
	}
}

// Any record, keeper unreachable: reads are answered, writes refused, and all is well when it is back.
func TestWithoutKeeperReadsAreAnsweredAndWritesRefused(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	p := n.pod(t)
	c, created := p.sleeper(nil), p.create(nil, "true")
	keeper, anchor := n.pair(t)
	// A stopped anchor starts no other keeper.
	if err := unix.Kill(anchor, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	n.kill(t, keeper)
	eventually(t, 20*time.Second, "RuntimeReady false", func() bool { return !n.ready(t) })
	begin := time.Now()
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING {
		t.Errorf("status: got %v", s)
	}
	if list, err := n.ListContainers(ctx(t), &criv1.ListContainersRequest{}); err != nil || len(list.GetContainers()) != 2 {
		t.Errorf("list: got %v, %v", list, err)
	}
	_, err := n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: n.podConfig()})
	wantError(t, err, codes.Unavailable, "keeper")
	_, err = p.tryCreate(p.containerConfig(nil, "true"))
	wantError(t, err, codes.Unavailable, "keeper")
	wantError(t, created.tryStart(), codes.Unavailable, "keeper")
	_, err = c.tryExec(5, "true")
	wantError(t, err, codes.Unavailable, "keeper")
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("answers and refusals took %s", took)
	}
	if err := unix.Kill(anchor, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "RuntimeReady", func() bool { return n.ready(t) })
	c.exec("true")
	if err := created.tryStart(); err != nil {
		t.Errorf("start afterwards: %v", err)
	}
	created.wait(20 * time.Second)
}

func TestOneDaemonPerRunDirectory(t *testing.T) {
	n := onNode(t)
	out, err := n.podwright("serve")
	if err == nil || !strings.Contains(out, "another podwright runs") || !strings.Contains(out, n.path("run")) {
		t.Errorf("a second daemon: got %q, %v, want a refusal that names the directory", out, err)
	}
	info, err := os.Stat(n.socket())
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket: got %v, %v, want mode 0660", info, err)
	}
	if _, err := n.Version(ctx(t), &criv1.VersionRequest{}); err != nil {
		t.Errorf("the first daemon afterwards: %v", err)
	}
}
