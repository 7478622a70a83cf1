package kubelet

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// identity is what must not change when a daemon does.
type identity struct {
	process
	RestartCount int
	StartedAt    time.Time
}

// steady are the pods that nothing happens to by itself.
var steady = []string{"order", "probes", "sharedpid", "hostnet", "hostport", "users", "lines", "input"}

func identities(t *testing.T) map[string]identity {
	t.Helper()
	all, err := pods()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]identity{}
	for name, pod := range all {
		if !slices.Contains(steady, name) {
			continue
		}
		for _, c := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
			// An init container that ends is nothing that stays; see TestKubeletWithEventsAndStreamedLists.
			if c.State.Running == nil || c.Name == "first" {
				continue
			}
			p, err := processOf(c)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Access(fmt.Sprintf("/proc/%d", p.PID), unix.F_OK); err != nil || p.PID == 0 {
				t.Errorf("%s of %s: process %d: %v", c.Name, name, p.PID, err)
			}
			found[name+"/"+c.Name] = identity{process: p, RestartCount: c.RestartCount, StartedAt: c.State.Running.StartedAt}
		}
	}
	return found
}

func TestKilledKubeletFindsEverythingAsItWas(t *testing.T) {
	mustRun(t, steady...)
	survives(t, func() {
		if err := lab.kubelet.end(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second) // some lines that no kubelet sees
		if err := lab.kubelet.start(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestKilledPodwrightIsNoticedByNobody(t *testing.T) {
	mustRun(t, steady...)
	survives(t, func() {
		if err := lab.podwright.end(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := lab.podwright.start(); err != nil {
			t.Fatal(err)
		}
	})
}

// survives compares all containers before and some time after, and their logs.
func survives(t *testing.T, what func()) {
	t.Helper()
	before := identities(t)
	if len(before) < len(steady) {
		t.Fatalf("got %d running containers of %v: %v", len(before), steady, before)
	}
	what()
	back := time.Now()
	wait(t, steady...)
	// The kubelet syncs each pod once a minute at the latest, and what it would do wrong it does at the first.
	time.Sleep(10 * time.Second)
	after := identities(t)
	for name, was := range before {
		if is := after[name]; is != was {
			t.Errorf("%s: got %+v, want %+v as before", name, is, was)
		}
	}
	if len(after) != len(before) {
		t.Errorf("got %d running containers, want %d as before", len(after), len(before))
	}
	var count int
	// Not while it is being rotated.
	mustEventually(t, 10*time.Second, "a log without a gap", func() (err error) {
		count, err = wholeLog("lines")
		return err
	})
	t.Logf("%d containers as before, %d lines without a gap; checked %s after the restart", len(after), count, time.Since(back).Round(time.Second))
}

// Gates with which a kubelet asks other calls: events beside lists, and lists as streams. Both are alpha, and with EventedPLEG
// kubelet 1.37 itself runs a pod's init containers again after its restart: it fills PodStatus.ActiveContainerStatuses without the
// gate only (pkg/kubelet/kuberuntime GetPodStatus).
func TestKubeletWithEventsAndStreamedLists(t *testing.T) {
	mustRun(t, steady...)
	const gates = dropIns + "/60-gates.conf"
	again := func() {
		if err := errors.Join(lab.kubelet.end(unix.SIGKILL), lab.kubelet.start()); err != nil {
			t.Fatal(err)
		}
	}
	survives(t, func() {
		text := "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfeatureGates:\n  EventedPLEG: true\n  CRIListStreaming: true\n"
		if err := os.WriteFile(gates, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		again()
	})
	t.Cleanup(func() {
		if err := os.Remove(gates); err != nil {
			t.Error(err)
		}
		again()
	})
	killOther(t)
	served, err := body(http.Get("http://" + metricsAddress + "/metrics"))
	if err != nil {
		t.Fatal(err)
	}
	for _, call := range []string{"GetContainerEvents", "StreamPodSandboxes", "StreamContainers"} {
		if !strings.Contains(served, call) {
			t.Errorf("the kubelet did not call %s", call)
		}
	}
}
