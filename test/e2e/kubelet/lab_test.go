package kubelet

import (
	"context"
	"errors"
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

// lab is podwright with a kubelet; all tests share it and its pods, each looks at some.
var lab struct {
	once      sync.Once
	err       error
	podwright *daemon
	kubelet   *daemon
	before    kerneltest.Snapshot
}

// inLab starts the lab with all pods, once.
func inLab(t *testing.T) {
	t.Helper()
	kerneltest.Root(t)
	if binDir() == "" {
		t.Skip("a build of podwright is missing: make build, or PODWRIGHT_BIN")
	}
	lab.once.Do(func() { lab.err = startLab() })
	if lab.err != nil {
		t.Fatal(lab.err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(lab.podwright.logTail())
			t.Log(lab.kubelet.logTail())
		}
	})
}

func startLab() error {
	lab.podwright, lab.kubelet = podwright(), newKubelet()
	if err := errors.Join(serveImages(), lab.podwright.start()); err != nil {
		return err
	}
	begin := time.Now()
	if err := lab.kubelet.start(); err != nil {
		return err
	}
	fmt.Printf("kubelet: answers after %s\n", time.Since(begin).Round(time.Millisecond))
	if err := warm(); err != nil {
		return fmt.Errorf("%w\n%s", err, lab.podwright.logTail())
	}
	var err error
	if lab.before, err = scope().Take(); err != nil {
		return err
	}
	files, err := filepath.Glob("pods/*.yaml")
	if err != nil || len(files) == 0 {
		return fmt.Errorf("found pods %v: %w", files, err)
	}
	for _, file := range files {
		if err := place(filepath.Base(file)); err != nil {
			return err
		}
	}
	return nil
}

// warm runs a sandbox of each class of pods. What the first one makes for good (the bridge, firewall chains, parent groups)
// is the node's.
func warm() error {
	client, done, err := runtimeClient()
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, parent := range []string{"/kubepods/besteffort", "/kubepods/burstable"} {
		resp, err := client.RunPodSandbox(ctx, &criv1.RunPodSandboxRequest{Config: &criv1.PodSandboxConfig{
			Metadata: &criv1.PodSandboxMetadata{Name: "warm", Namespace: "lab", Uid: parent}, PortMappings: []*criv1.PortMapping{{ContainerPort: 80, HostPort: 18000}},
			Linux: &criv1.LinuxPodSandboxConfig{CgroupParent: parent},
		}})
		if err == nil {
			_, err = client.StopPodSandbox(ctx, &criv1.StopPodSandboxRequest{PodSandboxId: resp.GetPodSandboxId()})
		}
		if err == nil {
			_, err = client.RemovePodSandbox(ctx, &criv1.RemovePodSandboxRequest{PodSandboxId: resp.GetPodSandboxId()})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// place gives the kubelet a static pod. It may read a file that is half written, so the file comes whole.
func place(file string) error {
	text, err := os.ReadFile(filepath.Join("pods", file))
	if err != nil {
		return err
	}
	whole := filepath.Join("/etc/kubernetes", file)
	if err := os.WriteFile(whole, text, 0o644); err != nil {
		return err
	}
	return os.Rename(whole, filepath.Join(staticPods, file))
}

// takeAway removes static pods and waits until nothing of them is left on the node.
func takeAway(files []string) error {
	for _, file := range files {
		if err := os.Remove(filepath.Join(staticPods, file)); err != nil {
			return err
		}
	}
	// The kubelet removes sandboxes of pods that are gone once a minute.
	return eventually(3*time.Minute, fmt.Sprintf("end of %v", files), func() error {
		return podsGone(files)
	})
}

func podsGone(files []string) error {
	names, err := sandboxNames()
	for _, file := range files {
		if name := strings.TrimSuffix(file, ".yaml") + "-lab"; err == nil && names[name] != "" {
			err = fmt.Errorf("sandbox of %s: %s", name, names[name])
		}
	}
	return err
}

// scope is what the leak oracle looks at: all of the lab's namespaces.
func scope() kerneltest.Scope {
	return kerneltest.Scope{
		Cgroup: "/", Dirs: []string{"/var/lib/podwright", "/run/podwright", "/run/netns", "/var/lib/cni", "/var/log/pods", "/var/lib/kubelet/pods"},
		// What images are made of is collected some time after it is of no use.
		SkipFile: func(path string) bool { return path == "/var/lib/podwright/images" },
		Ancestor: 1,
	}
}

// endLab takes all pods away, looks what is left of them, and stops everything.
func endLab() error {
	if lab.before == nil {
		return lab.err
	}
	entries, err := os.ReadDir(staticPods)
	if err != nil {
		return err
	}
	var files []string
	for _, entry := range entries {
		files = append(files, entry.Name())
	}
	err = takeAway(files)
	if err == nil {
		err = eventually(time.Minute, "the node as it was", func() error {
			after, err := scope().Take()
			if diff := lab.before.Diff(after); len(diff) > 0 {
				return errors.New("the node is not as it was:\n" + strings.Join(diff[:min(len(diff), 40)], "\n"))
			}
			return err
		})
	}
	if err != nil {
		err = fmt.Errorf("%w\n%s\n%s", err, lab.podwright.logTail(), lab.kubelet.logTail())
	}
	return errors.Join(err, lab.kubelet.end(unix.SIGTERM), lab.podwright.end(unix.SIGTERM), run(filepath.Join(binDir(), "podwright"), "keeper", "stop"))
}

// eventually asks until there is no error, and gives the last one.
func eventually(patience time.Duration, what string, ask func() error) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		err := ask()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s, after %s: %w", what, patience, err)
		}
	}
}

func mustEventually(t *testing.T, patience time.Duration, what string, ask func() error) {
	t.Helper()
	if err := eventually(patience, what, ask); err != nil {
		t.Fatal(err)
	}
}
