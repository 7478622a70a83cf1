package node

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// 200 pods of every kind live and go, ten at a time; the node is then as it was, and so is the machine once it ends.
func TestNothingIsLeftOfTwoHundredPods(t *testing.T) {
	const pods, atATime = 200, 10
	n := onNode(t)
	image, err := testImage()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	numbers, errs := make(chan int), make(chan error, pods)
	var wait sync.WaitGroup
	for range atATime {
		wait.Go(func() {
			for i := range numbers {
				if err := n.onePod(t, i, image); err != nil {
					errs <- fmt.Errorf("pod %d: %w", i, err)
				}
			}
		})
	}
	for i := range pods {
		numbers <- i
	}
	close(numbers)
	wait.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	t.Logf("%d pods in %s", pods, time.Since(begin).Round(time.Millisecond))
	sandboxes, err := n.ListPodSandbox(ctx(t), &criv1.ListPodSandboxRequest{})
	if err != nil || len(sandboxes.GetItems()) != 0 {
		t.Errorf("sandboxes: got %v, %v, want none", sandboxes, err)
	}
	containers, err := n.ListContainers(ctx(t), &criv1.ListContainersRequest{})
	if err != nil || len(containers.GetContainers()) != 0 {
		t.Errorf("containers: got %v, %v, want none", containers, err)
	}
}

// onePod is one pod's whole life. Every fifth is left running to RemovePodSandbox, every seventh has a container that
// can't start.
func (n *node) onePod(t *testing.T, i int, image string) error {
	calls, cancel := contextWithTimeout(2 * time.Minute)
	defer cancel()
	var change []func(*criv1.PodSandboxConfig)
	if i%2 == 1 {
		change = append(change, ownNetwork)
	}
	if i%3 == 1 {
		change = append(change, podPID)
	}
	config := n.podConfig(change...)
	sandbox, err := n.RunPodSandbox(calls, &criv1.RunPodSandboxRequest{Config: config})
	if err != nil {
		return err
	}
	command := []string{"sh", "-c", "echo started; sleep 1000"}
	if i%7 == 3 {
		command = []string{"/no/such/program"}
	}
	container, err := n.CreateContainer(calls, &criv1.CreateContainerRequest{PodSandboxId: sandbox.GetPodSandboxId(), SandboxConfig: config, Config: &criv1.ContainerConfig{
		Metadata: &criv1.ContainerMetadata{Name: "main"}, Image: &criv1.ImageSpec{Image: image}, Command: command, LogPath: "main.log",
		Linux: &criv1.LinuxContainerConfig{
			Resources:       &criv1.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 10},
			SecurityContext: &criv1.LinuxContainerSecurityContext{Seccomp: &criv1.SecurityProfile{}, NamespaceOptions: config.GetLinux().GetSecurityContext().GetNamespaceOptions()},
		},
	}})
	if err != nil {
		return err
	}
	_, err = n.StartContainer(calls, &criv1.StartContainerRequest{ContainerId: container.GetContainerId()})
	switch {
	case i%7 == 3:
		if status.Code(err) != codes.InvalidArgument {
			return fmt.Errorf("start of no program: got %w", err)
		}
	case err != nil:
		return err
	default:
		resp, err := n.ExecSync(calls, &criv1.ExecSyncRequest{ContainerId: container.GetContainerId(), Cmd: []string{"echo", fmt.Sprint(i)}, Timeout: 60})
		if err != nil || string(resp.GetStdout()) != fmt.Sprintln(i) {
			return fmt.Errorf("exec: got %v, %w", resp, err)
		}
	}
	if i%5 != 0 {
		if _, err := n.StopContainer(calls, &criv1.StopContainerRequest{ContainerId: container.GetContainerId()}); err != nil {
			return err
		}
		if _, err := n.RemoveContainer(calls, &criv1.RemoveContainerRequest{ContainerId: container.GetContainerId()}); err != nil {
			return err
		}
		if _, err := n.StopPodSandbox(calls, &criv1.StopPodSandboxRequest{PodSandboxId: sandbox.GetPodSandboxId()}); err != nil {
			return err
		}
	}
	_, err = n.RemovePodSandbox(calls, &criv1.RemovePodSandboxRequest{PodSandboxId: sandbox.GetPodSandboxId()})
	return err
}

// A client that goes away in the middle of a call leaves either the finished object or nothing (B5).
func TestVanishedCallersLeaveNothingHalfMadeB5(t *testing.T) {
	n := onNode(t)
	for i := range 12 {
		config := n.podConfig(ownNetwork)
		short, cancel := contextWithTimeout(time.Duration(i*5) * time.Millisecond)
		n.RunPodSandbox(short, &criv1.RunPodSandboxRequest{Config: config}) // the answer may come or not
		cancel()
		resp, err := n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: config})
		if err != nil {
			t.Errorf("the retry %d: %v", i, err)
			continue
		}
		p := &pod{t: t, n: n, id: resp.GetPodSandboxId(), config: config}
		container := p.containerConfig(nil, "sleep", "1000")
		short, cancel = contextWithTimeout(time.Duration(i) * time.Millisecond)
		n.CreateContainer(short, &criv1.CreateContainerRequest{PodSandboxId: p.id, Config: container, SandboxConfig: config})
		cancel()
		id, err := p.tryCreate(container)
		if err != nil {
			t.Errorf("the retried create %d: %v", i, err)
		}
		short, cancel = contextWithTimeout(time.Duration(i) * time.Millisecond)
		n.StartContainer(short, &criv1.StartContainerRequest{ContainerId: id})
		cancel()
		n.removePod(t, p.id)
	}
}

// Start and Remove at once: exactly one wins, and nothing stays (B17).
func TestConcurrentStartAndRemoveB17(t *testing.T) {
	p := onNode(t).pod(t)
	for range 20 {
		c := p.create(nil, "sleep", "1000")
		var startErr, removeErr error
		var wait sync.WaitGroup
		wait.Go(func() { startErr = c.tryStart() })
		wait.Go(func() {
			_, removeErr = p.n.RemoveContainer(ctx(t), &criv1.RemoveContainerRequest{ContainerId: c.id})
		})
		wait.Wait()
		if removeErr != nil {
			t.Errorf("remove: %v", removeErr)
		}
		if code := status.Code(startErr); code != codes.OK && code != codes.NotFound && code != codes.FailedPrecondition {
			t.Errorf("start: got %v, want success, or that it is gone", startErr)
		}
	}
	list, err := p.n.ListContainers(ctx(t), &criv1.ListContainersRequest{})
	if err != nil || len(list.GetContainers()) != 0 {
		t.Errorf("containers: got %v, %v, want none", list, err)
	}
}
