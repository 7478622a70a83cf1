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
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/kerneltest"
)

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
