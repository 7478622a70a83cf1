package node

import (
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const unknownID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestPodLivesFromRunToRemove(t *testing.T) {
	n := onNode(t)
	p := n.pod(t, ownNetwork, func(c *criv1.PodSandboxConfig) {
		c.Hostname, c.Labels, c.Annotations = "web", map[string]string{"app": "web"}, map[string]string{"note": " as given \n"}
	})
	s, err := n.PodSandboxStatus(ctx(t), &criv1.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.GetStatus(); got.GetState() != criv1.PodSandboxState_SANDBOX_READY || got.GetNetwork().GetIp() == "" || got.GetCreatedAt() == 0 ||
		got.GetAnnotations()["note"] != " as given \n" || !proto.Equal(got.GetMetadata(), p.config.GetMetadata()) {
		t.Errorf("sandbox status: got %v", got)
	}
	c := p.create(func(c *criv1.ContainerConfig) { c.Labels = map[string]string{"tier": "front"} },
		"sh", "-c", "echo out; echo err >&2; trap 'exit 3' TERM; while :; do sleep 0.05; done")
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_CREATED || s.GetStartedAt() != 0 || s.GetImageRef() == "" || s.GetImageId() == "" {
		t.Errorf("created: got %v", s)
	}
	if err := c.tryStart(); err != nil {
		t.Fatal(err)
	}
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING || s.GetStartedAt() < s.GetCreatedAt() || s.GetLogPath() != c.logPath() {
		t.Errorf("running: got %v", s)
	}
	eventually(t, 10*time.Second, "output", func() bool { return c.stream("stdout") == "out\n" && c.stream("stderr") == "err\n" })
	c.stop(10)
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 3 || s.GetReason() != "Error" || s.GetFinishedAt() < s.GetStartedAt() {
		t.Errorf("exited: got %v", s)
	}
	c.remove()
	_, err = n.ContainerStatus(ctx(t), &criv1.ContainerStatusRequest{ContainerId: c.id})
	wantError(t, err, codes.NotFound, c.id)
	if got := c.stream("stdout"); got != "out\n" {
		t.Errorf("the log after removal: got %q", got)
	}
}

func TestExitCodesAndReasonsB18B20(t *testing.T) {
	p := onNode(t).pod(t)
	for _, test := range []struct {
		script, reason string
		code           int32
	}{{"exit 0", "Completed", 0}, {"exit 42", "Error", 42}, {"sh -c 'kill -USR1 $$' ; exit $?", "Error", 138}} {
		s := p.start(nil, "sh", "-c", test.script).wait(20 * time.Second)
		if s.GetExitCode() != test.code || s.GetReason() != test.reason {
			t.Errorf("%q: got code %d reason %q, want %d %q", test.script, s.GetExitCode(), s.GetReason(), test.code, test.reason)
		}
	}
	c := p.sleeper(nil)
	c.stop(0)
	if s := c.status(); s.GetExitCode() != 137 || s.GetReason() != "Error" {
		t.Errorf("killed: got code %d reason %q, want 137 Error", s.GetExitCode(), s.GetReason())
	}
}

func TestStopAndRemoveOfUnknownIDsSucceedB1(t *testing.T) {
	n := onNode(t)
	for _, id := range []string{unknownID, "no-hex", "deadbeef"} {
		for name, call := range map[string]func() error{
			"StopPodSandbox": func() error {
				_, err := n.StopPodSandbox(ctx(t), &criv1.StopPodSandboxRequest{PodSandboxId: id})
				return err
			},
			"RemovePodSandbox": func() error {
				_, err := n.RemovePodSandbox(ctx(t), &criv1.RemovePodSandboxRequest{PodSandboxId: id})
				return err
			},
			"StopContainer": func() error {
				_, err := n.StopContainer(ctx(t), &criv1.StopContainerRequest{ContainerId: id})
				return err
			},
			"RemoveContainer": func() error {
				_, err := n.RemoveContainer(ctx(t), &criv1.RemoveContainerRequest{ContainerId: id})
				return err
			},
			"RemoveImage": func() error {
				_, err := n.images.RemoveImage(ctx(t), &criv1.RemoveImageRequest{Image: &criv1.ImageSpec{Image: id}})
				return err
			},
		} {
			if err := call(); err != nil {
				t.Errorf("%s(%q): got %v, want success", name, id, err)
			}
		}
	}
}

func TestStatusAndExecOfUnknownIDsAreNotFoundB2(t *testing.T) {
	n := onNode(t)
	for _, id := range []string{unknownID, "deadbeef", ""} {
		_, err := n.PodSandboxStatus(ctx(t), &criv1.PodSandboxStatusRequest{PodSandboxId: id})
		wantError(t, err, codes.NotFound, id)
		_, err = n.ContainerStatus(ctx(t), &criv1.ContainerStatusRequest{ContainerId: id})
		wantError(t, err, codes.NotFound, id)
		_, err = n.ExecSync(ctx(t), &criv1.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
		wantError(t, err, codes.NotFound, id)
		_, err = n.StartContainer(ctx(t), &criv1.StartContainerRequest{ContainerId: id})
		wantError(t, err, codes.NotFound, id)
		_, err = n.CreateContainer(ctx(t), &criv1.CreateContainerRequest{PodSandboxId: id, Config: &criv1.ContainerConfig{
			Metadata: &criv1.ContainerMetadata{Name: "x"}, Image: &criv1.ImageSpec{Image: "x"}}})
		wantError(t, err, codes.NotFound, id)
	}
	resp, err := n.images.ImageStatus(ctx(t), &criv1.ImageStatusRequest{Image: &criv1.ImageSpec{Image: "127.0.0.1:1/none:1"}})
	if err != nil || resp.GetImage() != nil {
		t.Errorf("ImageStatus of an absent image: got %v, %v, want nothing and success", resp, err)
	}
}

func TestRetriedRunJoinsB3(t *testing.T) {
	n := onNode(t)
	config := n.podConfig(ownNetwork)
	ids, errs := make([]string, 8), make([]error, 8)
	var wait sync.WaitGroup
	for i := range ids {
		wait.Go(func() {
			resp, err := n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: config})
			ids[i], errs[i] = resp.GetPodSandboxId(), err
		})
	}
	wait.Wait()
	defer n.removePod(t, ids[0])
	for i := range ids {
		if errs[i] != nil || ids[i] != ids[0] || ids[i] == "" {
			t.Errorf("caller %d: got %q, %v, want the id %q of the first", i, ids[i], errs[i], ids[0])
		}
	}
	list, err := n.ListPodSandbox(ctx(t), &criv1.ListPodSandboxRequest{})
	if err != nil || len(list.GetItems()) != 1 {
		t.Errorf("sandboxes: got %v, %v, want one", list, err)
	}
	other := proto.Clone(config).(*criv1.PodSandboxConfig)
	other.Hostname = "other"
	_, err = n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: other})
	wantError(t, err, codes.AlreadyExists, config.GetMetadata().GetName(), ids[0])
}

func TestRetriedCreateJoinsB4(t *testing.T) {
	p := onNode(t).pod(t)
	config := p.containerConfig(nil, "sleep", "1000")
	ids, errs := make([]string, 8), make([]error, 8)
	var wait sync.WaitGroup
	for i := range ids {
		wait.Go(func() { ids[i], errs[i] = p.tryCreate(config) })
	}
	wait.Wait()
	for i := range ids {
		if errs[i] != nil || ids[i] != ids[0] || ids[i] == "" {
			t.Errorf("caller %d: got %q, %v, want the id %q of the first", i, ids[i], errs[i], ids[0])
		}
	}
	other := proto.Clone(config).(*criv1.ContainerConfig)
	other.Args = []string{"2000"}
	_, err := p.tryCreate(other)
	wantError(t, err, codes.AlreadyExists, config.GetMetadata().GetName(), ids[0])
}

func TestCreationTimesIncreaseB7(t *testing.T) {
	n := onNode(t)
	var times []int64
	for range 5 {
		p := n.pod(t)
		s, err := n.PodSandboxStatus(ctx(t), &criv1.PodSandboxStatusRequest{PodSandboxId: p.id})
		if err != nil {
			t.Fatal(err)
		}
		times = append(times, s.GetStatus().GetCreatedAt())
	}
	if !slices.IsSorted(times) || len(slices.Compact(slices.Clone(times))) != len(times) {
		t.Errorf("got %v, want strictly increasing", times)
	}
}

func TestPrefixesOfIDsServeUnlessAmbiguousB6(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	c := p.create(nil, "true")
	if s, err := n.PodSandboxStatus(ctx(t), &criv1.PodSandboxStatusRequest{PodSandboxId: p.id[:12]}); err != nil || s.GetStatus().GetId() != p.id {
		t.Errorf("sandbox by prefix: got %v, %v", s, err)
	}
	if s, err := n.ContainerStatus(ctx(t), &criv1.ContainerStatusRequest{ContainerId: c.id[:12]}); err != nil || s.GetStatus().GetId() != c.id {
		t.Errorf("container by prefix: got %v, %v", s, err)
	}
	// 17 ids share a first digit.
	var prefix string
	first := map[byte]bool{c.id[0]: true}
	for prefix == "" {
		id := p.create(nil, "true").id
		if first[id[0]] {
			prefix = id[:1]
		}
		first[id[0]] = true
	}
	_, err := n.ContainerStatus(ctx(t), &criv1.ContainerStatusRequest{ContainerId: prefix})
	wantError(t, err, codes.InvalidArgument, prefix)
	_, err = n.RemoveContainer(ctx(t), &criv1.RemoveContainerRequest{ContainerId: prefix})
	wantError(t, err, codes.InvalidArgument, prefix)
}

func TestListsFilterByEveryPartAtOnce(t *testing.T) {
	n := onNode(t)
	a := n.pod(t, func(c *criv1.PodSandboxConfig) { c.Labels = map[string]string{"app": "a", "env": "x"} })
	b := n.pod(t, func(c *criv1.PodSandboxConfig) { c.Labels = map[string]string{"app": "b", "env": "x"} })
	if _, err := n.StopPodSandbox(ctx(t), &criv1.StopPodSandboxRequest{PodSandboxId: b.id}); err != nil {
		t.Fatal(err)
	}
	ready := &criv1.PodSandboxStateValue{State: criv1.PodSandboxState_SANDBOX_READY}
	for name, test := range map[string]struct {
		filter *criv1.PodSandboxFilter
		want   []string
	}{
		"none":            {nil, []string{b.id, a.id}}, // newest first
		"label":           {&criv1.PodSandboxFilter{LabelSelector: map[string]string{"env": "x"}}, []string{b.id, a.id}},
		"label and state": {&criv1.PodSandboxFilter{LabelSelector: map[string]string{"env": "x"}, State: ready}, []string{a.id}},
		"label and id":    {&criv1.PodSandboxFilter{LabelSelector: map[string]string{"app": "a"}, Id: b.id}, nil},
	} {
		resp, err := n.ListPodSandbox(ctx(t), &criv1.ListPodSandboxRequest{Filter: test.filter})
		var got []string
		for _, s := range resp.GetItems() {
			got = append(got, s.GetId())
		}
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("sandboxes by %s: got %v, %v, want %v", name, got, err, test.want)
		}
	}
	c := a.sleeper(func(c *criv1.ContainerConfig) { c.Labels = map[string]string{"k": "v"} })
	a.create(nil, "true")
	running := &criv1.ContainerStateValue{State: criv1.ContainerState_CONTAINER_RUNNING}
	for name, filter := range map[string]*criv1.ContainerFilter{
		"state": {State: running}, "label": {LabelSelector: map[string]string{"k": "v"}}, "sandbox and state": {PodSandboxId: a.id, State: running}, "id": {Id: c.id},
	} {
		resp, err := n.ListContainers(ctx(t), &criv1.ListContainersRequest{Filter: filter})
		if err != nil || len(resp.GetContainers()) != 1 || resp.GetContainers()[0].GetId() != c.id {
			t.Errorf("containers by %s: got %v, %v, want %s alone", name, resp.GetContainers(), err, c.id)
		}
	}
}
