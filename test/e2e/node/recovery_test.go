package node

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/kerneltest"
)

// One test per row of the recovery table in docs/architecture.md, as far as a client can bring it about.

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
	if took := time.Since(begin); took > patient(5*time.Second) {
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
