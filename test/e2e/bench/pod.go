package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type network string

const (
	hostNetwork network = "hostNetwork"
	bridge      network = "bridge"
)

// logName is a container's log inside its pod's log directory.
const logName = "main/0.log"

// podKind is what a pod is like, apart from its name.
type podKind struct {
	network network
	pid     criv1.NamespaceMode
	command []string
}

// The kubelet asks for a PID namespace per container unless the pod shares one.
const ownPID = criv1.NamespaceMode_CONTAINER

// pod is a sandbox with one container.
type pod struct {
	r         *candidate
	sandbox   *criv1.PodSandboxConfig
	container *criv1.ContainerConfig
	sandboxID string
	id        string // of the container
}

// newPod prepares a pod as the kubelet does: its log directory and its configuration.
func (b *bench) newPod(r *candidate, kind podKind) (*pod, error) {
	b.pods++
	name := fmt.Sprintf("pod-%d", b.pods)
	dir := filepath.Join(b.logDir, r.name+"-"+name)
	if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(logName)), 0o755); err != nil {
		return nil, err
	}
	p := &pod{r: r, sandbox: sandboxConfig(kind, name, b.id, dir), container: containerConfig(kind, r.image)}
	if r.cgroup != "" {
		p.sandbox.Linux.CgroupParent = r.cgroup + "/pods"
	}
	return p, nil
}

func (p *pod) logPath() string { return filepath.Join(p.sandbox.LogDirectory, logName) }

// step is one call of a pod's life.
type step struct {
	name string
	call func(ctx context.Context) error
}

func (p *pod) startSteps() []step {
	return []step{
		{"RunPodSandbox", func(ctx context.Context) error {
			resp, err := p.r.cri.RunPodSandbox(ctx, &criv1.RunPodSandboxRequest{Config: p.sandbox})
			p.sandboxID = resp.GetPodSandboxId()
			return err
		}},
		{"CreateContainer", func(ctx context.Context) error {
			resp, err := p.r.cri.CreateContainer(ctx, &criv1.CreateContainerRequest{PodSandboxId: p.sandboxID, Config: p.container, SandboxConfig: p.sandbox})
			p.id = resp.GetContainerId()
			return err
		}},
		{"StartContainer", func(ctx context.Context) error {
			_, err := p.r.cri.StartContainer(ctx, &criv1.StartContainerRequest{ContainerId: p.id})
			return err
		}},
	}
}

// stopSteps ends the container by its stop signal: the grace period is never used up.
func (p *pod) stopSteps() []step {
	return []step{
		{"StopContainer", func(ctx context.Context) error {
			_, err := p.r.cri.StopContainer(ctx, &criv1.StopContainerRequest{ContainerId: p.id, Timeout: 30})
			return err
		}},
		{"RemoveContainer", func(ctx context.Context) error {
			_, err := p.r.cri.RemoveContainer(ctx, &criv1.RemoveContainerRequest{ContainerId: p.id})
			return err
		}},
		{"StopPodSandbox", func(ctx context.Context) error {
			_, err := p.r.cri.StopPodSandbox(ctx, &criv1.StopPodSandboxRequest{PodSandboxId: p.sandboxID})
			return err
		}},
		{"RemovePodSandbox", func(ctx context.Context) error {
			_, err := p.r.cri.RemovePodSandbox(ctx, &criv1.RemovePodSandboxRequest{PodSandboxId: p.sandboxID})
			return err
		}},
	}
}

// do runs steps and hands each one's duration to took, which may be nil.
func do(ctx context.Context, steps []step, took func(name string, d time.Duration)) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for _, s := range steps {
		begin := time.Now()
		if err := s.call(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if took != nil {
			took(s.name, time.Since(begin))
		}
	}
	return nil
}

// startAll starts count pods of a kind, a few at a time.
func (b *bench) startAll(ctx context.Context, r *candidate, kind podKind, count int) ([]*pod, error) {
	pods := make([]*pod, count)
	for i := range pods {
		var err error
		if pods[i], err = b.newPod(r, kind); err != nil {
			return nil, err
		}
	}
	return pods, inParallel(pods, b.parallel, func(p *pod) error { return do(ctx, p.startSteps(), nil) })
}

// inParallel calls do for every pod, at most width at a time, and returns the first error
// once all calls have ended.
func inParallel(pods []*pod, width int, do func(*pod) error) error {
	var wg sync.WaitGroup
	slots := make(chan struct{}, width)
	errs := make(chan error, len(pods))
	for _, p := range pods {
		slots <- struct{}{}
		// Owned by this call, which waits for it; ends with do.
		wg.Go(func() {
			errs <- do(p)
			<-slots
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
