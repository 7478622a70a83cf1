package node

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hang stops the keeper until the returned function is called, or the test ends.
func (n *node) hang(t *testing.T) (resume func()) {
	t.Helper()
	keeper, _ := n.pair(t)
	if err := unix.Kill(keeper, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume = func() {
		if err := unix.Kill(keeper, unix.SIGCONT); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Error(err)
		}
	}
	t.Cleanup(resume) // before the node is looked at
	return resume
}

// notReady gives the message of a RuntimeReady that is false, "" where it is true.
func (n *node) notReady(t *testing.T) string {
	t.Helper()
	soon, cancel := contextWithTimeout(time.Second)
	defer cancel()
	s, err := n.Status(soon, &criv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.GetStatus().GetConditions() {
		if c.GetType() == criv1.RuntimeReady && !c.GetStatus() {
			return c.GetReason() + ": " + c.GetMessage()
		}
	}
	return ""
}

// A daemon that starts while the keeper hangs says so and what it knows, changes nothing, and goes on by itself once the
// keeper answers.
func TestDaemonStartsWhileTheKeeperHangs(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	p := n.pod(t)
	c, created, short := p.sleeper(nil), p.create(nil, "true"), p.sleeper(nil)
	pids := map[*container]int{c: c.info().PID, short: short.info().PID}
	resume := n.hang(t)
	n.restart(t, unix.SIGKILL, func() { n.kill(t, pids[short]) })
	if message := n.notReady(t); !strings.Contains(message, "KeeperUnreachable") || !strings.Contains(message, "has not answered") {
		t.Errorf("RuntimeReady: got %q, want it false with the keeper named", message)
	}
	n.checkReads(t, p, c, 3)
	n.checkRefusals(t, p, c, created)
	if out, err := n.podwright("ops"); err != nil {
		t.Errorf("podwright ops: %q, %v", out, err)
	}
	image, err := testImage()
	if err == nil {
		_, err = n.images.PullImage(ctx(t), &criv1.PullImageRequest{Image: &criv1.ImageSpec{Image: image}})
	}
	if err != nil {
		t.Errorf("a pull needs no keeper: got %v", err)
	}
	resume()
	eventually(t, 20*time.Second, "RuntimeReady", func() bool { return n.notReady(t) == "" })
	if s := short.wait(20 * time.Second); s.GetExitCode() != 137 {
		t.Errorf("it was killed meanwhile: got %v, want 137", s)
	}
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING || c.info().PID != pids[c] {
		t.Errorf("got %v with pid %d, want it running with pid %d", s.GetState(), c.info().PID, pids[c])
	}
	c.exec("true")
	if err := created.tryStart(); err != nil {
		t.Error(err)
	}
	created.wait(20 * time.Second)
	c.stop(0)
	n.pod(t).start(nil, "true").wait(20 * time.Second)
}

// The keeper that hangs is killed, alone or with its anchor: another one is found, and recovery is done with that.
func TestHangingKeeperIsReplacedAfterTheDaemonsStart(t *testing.T) {
	for name, anchorToo := range map[string]bool{"keeper": false, "keeper and anchor": true} {
		t.Run(name, func(t *testing.T) {
			n := ownNode(t, options{})
			n.watch(t)
			p := n.pod(t)
			c := p.start(nil, "sh", "-c", "while :; do sleep 0.1; done")
			pid := c.info().PID
			keeper, anchor := n.pair(t)
			n.hang(t)
			n.restart(t, unix.SIGKILL, nil)
			if n.notReady(t) == "" {
				t.Error("RuntimeReady is true while the keeper hangs")
			}
			if pids := []int{anchor, keeper}; anchorToo {
				n.kill(t, pids...)
			} else {
				n.kill(t, keeper)
			}
			eventually(t, 30*time.Second, "RuntimeReady", func() bool { return n.notReady(t) == "" })
			if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING || c.info().PID != pid {
				t.Errorf("got %v with pid %d, want it running with pid %d", s, c.info().PID, pid)
			}
			c.exec("true")
		})
	}
}

// A daemon can be asked to stop while it still waits for the keeper.
func TestDaemonStopsWhileTheKeeperHangs(t *testing.T) {
	n := ownNode(t, options{})
	c := n.pod(t).sleeper(nil)
	resume := n.hang(t)
	n.restart(t, unix.SIGKILL, nil)
	begin := time.Now()
	n.restart(t, unix.SIGTERM, resume)
	if took := time.Since(begin); took > patient(15*time.Second) {
		t.Errorf("stop and start took %s", took)
	}
	c.exec("true")
}

// A keeper that stops answering while the daemon runs is noticed too.
func TestKeeperThatStopsAnsweringIsNoticed(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	p := n.pod(t)
	c, created := p.sleeper(nil), p.create(nil, "true")
	resume := n.hang(t)
	eventually(t, 20*time.Second, "RuntimeReady false", func() bool { return n.notReady(t) != "" })
	n.checkReads(t, p, c, 2)
	wantError(t, created.tryStart(), codes.Unavailable, "keeper")
	resume()
	eventually(t, 10*time.Second, "RuntimeReady", func() bool { return n.notReady(t) == "" })
	c.exec("true")
}

// checkReads: what was recorded last is listed, each within a second.
func (n *node) checkReads(t *testing.T, p *pod, running *container, containers int) {
	t.Helper()
	soon := func() context.Context {
		ctx, cancel := contextWithTimeout(time.Second)
		t.Cleanup(cancel)
		return ctx
	}
	if list, err := n.ListPodSandbox(soon(), &criv1.ListPodSandboxRequest{}); err != nil || len(list.GetItems()) != 1 || list.GetItems()[0].GetState() != sandboxReady {
		t.Errorf("sandboxes: got %v, %v, want one that is ready", list, err)
	}
	if list, err := n.ListContainers(soon(), &criv1.ListContainersRequest{}); err != nil || len(list.GetContainers()) != containers {
		t.Errorf("containers: got %v, %v, want %d", list, err, containers)
	}
	if s, err := n.ContainerStatus(soon(), &criv1.ContainerStatusRequest{ContainerId: running.id}); err != nil || s.GetStatus().GetState() != criv1.ContainerState_CONTAINER_RUNNING {
		t.Errorf("container: got %v, %v, want it running", s, err)
	}
	if s, err := n.PodSandboxStatus(soon(), &criv1.PodSandboxStatusRequest{PodSandboxId: p.id}); err != nil || s.GetStatus().GetState() != sandboxReady {
		t.Errorf("sandbox: got %v, %v, want it ready", s, err)
	}
	if _, err := n.images.ListImages(soon(), &criv1.ListImagesRequest{}); err != nil {
		t.Errorf("images: %v", err)
	}
}

// Whoever asks a keeper that hangs is told so in time.
func TestStatusOfAKeeperThatHangsDoesNotHang(t *testing.T) {
	n := ownNode(t, options{})
	resume := n.hang(t)
	begin := time.Now()
	out, err := n.podwright("keeper", "status")
	if took := time.Since(begin); err == nil || !strings.Contains(out, "has not answered within 5s") || took > patient(10*time.Second) {
		t.Errorf("after %v: got %q, %v", took, out, err)
	}
	resume()
	if out, err := n.podwright("keeper", "status"); err != nil || !strings.Contains(out, "keeper ") {
		t.Errorf("of one that goes on: got %q, %v", out, err)
	}
}

// checkRefusals: every change is refused at once, and says why.
func (n *node) checkRefusals(t *testing.T, p *pod, running, created *container) {
	t.Helper()
	begin := time.Now()
	for verb, call := range map[string]func() error{
		"RunPodSandbox": func() error {
			_, err := n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: n.podConfig()})
			return err
		},
		"CreateContainer": func() error {
			_, err := p.tryCreate(p.containerConfig(nil, "true"))
			return err
		},
		"StartContainer": created.tryStart,
		"ExecSync": func() error {
			_, err := running.tryExec(5, "true")
			return err
		},
		"StopContainer": func() error {
			_, err := n.StopContainer(ctx(t), &criv1.StopContainerRequest{ContainerId: running.id})
			return err
		},
		"RemoveContainer": func() error {
			_, err := n.RemoveContainer(ctx(t), &criv1.RemoveContainerRequest{ContainerId: created.id})
			return err
		},
		"StopPodSandbox": func() error {
			_, err := n.StopPodSandbox(ctx(t), &criv1.StopPodSandboxRequest{PodSandboxId: p.id})
			return err
		},
		"RemovePodSandbox": func() error {
			_, err := n.RemovePodSandbox(ctx(t), &criv1.RemovePodSandboxRequest{PodSandboxId: p.id})
			return err
		},
		"Exec": func() error {
			_, err := n.Exec(ctx(t), &criv1.ExecRequest{ContainerId: running.id, Cmd: []string{"true"}, Stdout: true})
			return err
		},
	} {
		t.Run(verb, func(t *testing.T) { wantError(t, call(), codes.Unavailable, "keeper", "answered") })
	}
	if took := time.Since(begin); took > patient(5*time.Second) {
		t.Errorf("the refusals took %s", took)
	}
}
