package node

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/kerneltest"
	"github.com/podwright/podwright/test/e2e/registry"
)

// operation is what podwright ops -o json promises.
type operation struct {
	Kind, Name, ID, Step    string
	AgeSeconds, StepSeconds float64
	WaitsFor                []struct {
		Kind, Name, Detail string
		PID                int
		Until              time.Time
	}
}

func (n *node) ops(t *testing.T) []operation {
	t.Helper()
	out, err := n.podwright("ops", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ Operations []operation }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("ops -o json: %v\n%s", err, out)
	}
	return list.Operations
}

// op waits until an operation of a kind is at a step and waits for something, and gives it.
func (n *node) op(t *testing.T, kind, step, waitsFor string) operation {
	t.Helper()
	var found operation
	eventually(t, 10*time.Second, kind+" at "+step+" that waits for "+waitsFor, func() bool {
		for _, op := range n.ops(t) {
			if op.Kind == kind && op.Step == step && len(op.WaitsFor) > 0 && op.WaitsFor[0].Kind == waitsFor {
				found = op
				return true
			}
		}
		return false
	})
	if found.AgeSeconds < found.StepSeconds || found.StepSeconds < 0 || found.AgeSeconds > 60 {
		t.Errorf("%s: age %f s, step %f s", kind, found.AgeSeconds, found.StepSeconds)
	}
	return found
}

// A plugin that does not go on, its pid and its state; and who waits because of it.
func TestOpsNameTheHangingPlugin(t *testing.T) {
	n, cni := pluginNode(t)
	n.watch(t)
	config := n.podConfig(ownNetwork)
	cni.behave("ADD", "hang")
	answer := make(chan error, 1)
	go func() {
		_, err := n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: config})
		answer <- err
	}()
	op := n.op(t, "run sandbox", "attach network", "CNI plugin")
	w := op.WaitsFor[0]
	if w.Name != "fake ADD" || w.PID == 0 || w.Until.Before(time.Now()) || op.Name != config.GetMetadata().GetNamespace()+"/"+config.GetMetadata().GetName() || len(op.ID) != 64 {
		t.Errorf("got %+v, want the pod, and the plugin with command, pid and deadline", op)
	}
	if err := unix.Kill(w.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the state of the plugin", func() bool {
		return strings.Contains(n.op(t, "run sandbox", "attach network", "CNI plugin").WaitsFor[0].Detail, "stopped by a signal")
	})
	table, err := n.podwright("ops")
	if err != nil || !strings.Contains(table, "CNI plugin fake ADD (pid ") || !strings.Contains(table, "stopped by a signal") {
		t.Errorf("the table: got %q, %v, want the plugin named", table, err)
	}
	if err := <-answer; err == nil {
		t.Error("the pod of the hanging plugin: got success")
	}
	cni.behave("ADD", "")
	p := n.pod(t, ownNetwork)
	cni.behave("DEL", "wait")
	go func() {
		_, err := n.StopPodSandbox(ctx(t), &criv1.StopPodSandboxRequest{PodSandboxId: p.id})
		answer <- err
	}()
	n.op(t, "stop sandbox", "release network and namespaces", "CNI plugin")
	go func() {
		_, err := n.RemovePodSandbox(ctx(t), &criv1.RemovePodSandboxRequest{PodSandboxId: p.id})
		answer <- err
	}()
	op = n.op(t, "remove sandbox", "wait for its turn", "operation")
	if want := "stop sandbox " + p.id + ": release network and namespaces"; op.WaitsFor[0].Name != want || op.ID != p.id {
		t.Errorf("got %+v, want it to wait for %q", op, want)
	}
	cni.behave("DEL", "")
	<-answer // a DEL that was waiting fails
	<-answer
	n.removePod(t, p.id)
	if left := n.ops(t); len(left) != 0 {
		t.Errorf("afterwards: got %+v, want none", left)
	}
}

// A path on a file system that does not answer.
func TestOpsNameTheHangingMountSource(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	dir := t.TempDir()
	release := hangingFileSystem(t, dir)
	defer release()
	path := filepath.Join(dir, "volume")
	config := p.containerConfig(func(c *criv1.ContainerConfig) { c.Mounts = []*criv1.Mount{bind(path, "/volume")} }, "true")
	short, cancel := contextWithTimeout(20 * time.Second)
	answer := make(chan error, 1)
	go func() {
		_, err := n.CreateContainer(short, &criv1.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		answer <- err
	}()
	op := n.op(t, "create container", "look at mounts and devices", "mount source")
	if op.WaitsFor[0].Name != path || !strings.HasSuffix(op.Name, "/"+config.GetMetadata().GetName()) {
		t.Errorf("got %+v, want container and path named", op)
	}
	cancel()
	if err := <-answer; err == nil {
		t.Error("the container of the hanging mount: got success")
	}
	release()
	eventually(t, 10*time.Second, "the create's end", func() bool { return len(n.ops(t)) == 0 })
}

// A registry that stops sending, and for how long it has.
func TestOpsNameTheHangingRegistry(t *testing.T) {
	n := onNode(t)
	name := pushUnique(t, "node/ops:1", strings.Repeat("slow", 1000))
	hub.server.Break(registry.HangAfter(registry.Blobs, 50))
	defer hub.server.Break()
	short, cancel := contextWithTimeout(20 * time.Second)
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		_, err := n.images.PullImage(short, &criv1.PullImageRequest{Image: image(name)})
		answer <- err
	}()
	op := n.op(t, "pull image", "resolving", "registry") // its configuration is a blob too
	host, _, _ := strings.Cut(name, "/")
	if op.Name != name || op.WaitsFor[0].Name != host || !strings.Contains(op.WaitsFor[0].Detail, " bytes") {
		t.Errorf("got %+v, want the reference, %s and the bytes", op, host)
	}
	eventually(t, 5*time.Second, "seconds without progress", func() bool {
		for _, op := range n.ops(t) {
			if op.Kind == "pull image" && strings.Contains(op.WaitsFor[0].Detail, "nothing for 1s") {
				return true
			}
		}
		return false
	})
	if err := <-answer; err == nil {
		t.Error("the pull: got success")
	}
}

// A container that takes its time to stop, and a keeper that does not answer.
func TestOpsNameStopTimeoutAndKeeper(t *testing.T) {
	n := onNode(t)
	c := n.pod(t).start(nil, "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done")
	stopped := make(chan error, 1)
	go func() {
		_, err := n.StopContainer(ctx(t), &criv1.StopContainerRequest{ContainerId: c.id, Timeout: 8})
		stopped <- err
	}()
	op := n.op(t, "stop container", "wait for its end", "end")
	w := op.WaitsFor[0]
	if remaining := time.Until(w.Until); w.PID == 0 || w.Name != "sh" || remaining <= 0 || remaining > 8*time.Second {
		t.Errorf("got %+v, want the process and how long it still has", op)
	}
	keeper, _, err := n.keeperPIDs()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(keeper, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := c.tryExec(10, "true")
		ended <- err
	}()
	n.op(t, "exec", "start process", "start")
	if err := unix.Kill(keeper, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the exec, once the keeper goes on: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// What each step of a start took is there for whoever asks, also after the daemon was restarted.
func TestInspectTellsTheStepsOfAStart(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	p := n.pod(t, ownNetwork)
	c := p.sleeper(nil)
	type step struct {
		Step   string
		Micros int64
	}
	check := func(when string) {
		t.Helper()
		s, err := n.PodSandboxStatus(ctx(t), &criv1.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		status, err := n.ContainerStatus(ctx(t), &criv1.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		var sandbox struct{ RunSteps []step }
		var container struct{ CreateSteps, StartSteps []step }
		if err := json.Unmarshal([]byte(s.GetInfo()["info"]), &sandbox); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(status.GetInfo()["info"]), &container); err != nil {
			t.Fatal(err)
		}
		for what, test := range map[string]struct {
			got  []step
			want string
		}{
			"run":    {sandbox.RunSteps, "record, make namespaces, write files, attach network"},
			"create": {container.CreateSteps, "record, hold images, look at mounts and devices, derive spec, make writable layer"},
			"start":  {container.StartSteps, "compile plan, open layers and streams, make cgroup, open mounts, start process"},
		} {
			var names []string
			var sum int64
			for _, s := range test.got {
				names = append(names, s.Step)
				sum += s.Micros
			}
			if got := strings.Join(names, ", "); got != test.want || sum <= 0 {
				t.Errorf("%s, steps of %s: got %q in %d µs, want %q", when, what, got, sum, test.want)
			}
		}
	}
	check("at first")
	n.restart(t, unix.SIGKILL, nil)
	check("after a restart")
}

// Many operations at once end with none listed.
func TestOpsForgetWhatEnded(t *testing.T) {
	n := onNode(t)
	c := n.pod(t).sleeper(nil)
	before, err := kerneltest.Descendants(1)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 20)
	for range cap(done) {
		go func() {
			_, err := c.tryExec(1, "sleep", "5")
			done <- err
		}()
	}
	for range cap(done) {
		if err := <-done; err == nil {
			t.Error("an exec beyond its timeout: got success")
		}
	}
	eventually(t, 10*time.Second, "no operation", func() bool { return len(n.ops(t)) == 0 })
	eventually(t, 10*time.Second, "no process more than before", func() bool {
		now, err := kerneltest.Descendants(1)
		return err == nil && len(now) <= len(before)
	})
}

// A start whose init hangs in the kernel: which process, and where it sleeps.
func TestOpsNameWhereInitHangs(t *testing.T) {
	n := onNode(t)
	dir := t.TempDir()
	release := hangingFileSystem(t, dir)
	defer release()
	c := n.pod(t).create(func(c *criv1.ContainerConfig) {
		c.Mounts = []*criv1.Mount{bind(dir, "/volume")}
		c.WorkingDir = "/volume/below"
	}, "true")
	answer := make(chan error, 1)
	go func() { answer <- c.tryStart() }()
	op := n.op(t, "start container", "start process", "start")
	eventually(t, 10*time.Second, "the place where init sleeps", func() bool {
		op = n.op(t, "start container", "start process", "start")
		return op.WaitsFor[0].PID != 0 && strings.Contains(op.WaitsFor[0].Detail, " in ")
	})
	if op.ID != c.id || op.WaitsFor[0].Name != "init" {
		t.Errorf("got %+v, want the container's start and init", op)
	}
	release()
	if err := <-answer; err == nil {
		t.Error("the start: got success")
	}
}
