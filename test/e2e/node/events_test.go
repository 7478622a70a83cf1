package node

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// events subscribes; every event that the node tells from now on is in the channel, which ends with the stream.
func (n *node) events(t *testing.T) (<-chan *criv1.ContainerEventResponse, <-chan error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	stream, err := n.GetContainerEvents(ctx, &criv1.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil { // comes once the subscription holds
		t.Fatal(err)
	}
	events, end := make(chan *criv1.ContainerEventResponse, 10000), make(chan error, 1)
	// Owner: the test; ends with ctx.
	go func() {
		defer close(events)
		for {
			event, err := stream.Recv()
			if err != nil {
				end <- err
				return
			}
			events <- event
		}
	}()
	return events, end
}

func next(t *testing.T, events <-chan *criv1.ContainerEventResponse) *criv1.ContainerEventResponse {
	t.Helper()
	select {
	case event, ok := <-events:
		if !ok {
			t.Fatal("the stream of events ended")
		}
		return event
	case <-time.After(20 * time.Second):
		t.Fatal("no event came")
	}
	return nil
}

// told is an event as the tests compare it.
type told struct {
	id   string
	kind criv1.ContainerEventType
	// what is in it: the sandbox's state, and the container's
	sandbox   criv1.PodSandboxState
	container string
}

func TestEventsTellOfEveryStepInOrder(t *testing.T) {
	n := onNode(t)
	first, _ := n.events(t)
	second, _ := n.events(t)
	begin := time.Now().UnixNano()
	p := n.pod(t)
	c := p.start(nil, "sleep", "1000")
	c.stop(0)
	c.remove()
	n.removePod(t, p.id)
	const (
		created, started = criv1.ContainerEventType_CONTAINER_CREATED_EVENT, criv1.ContainerEventType_CONTAINER_STARTED_EVENT
		stopped, deleted = criv1.ContainerEventType_CONTAINER_STOPPED_EVENT, criv1.ContainerEventType_CONTAINER_DELETED_EVENT
		ready, notReady  = criv1.PodSandboxState_SANDBOX_READY, criv1.PodSandboxState_SANDBOX_NOTREADY
	)
	want := []told{
		{p.id, created, ready, ""}, {p.id, started, ready, ""},
		{c.id, created, ready, "CONTAINER_CREATED"}, {c.id, started, ready, "CONTAINER_RUNNING"},
		{c.id, stopped, ready, "CONTAINER_EXITED"}, {c.id, deleted, ready, ""},
		{p.id, stopped, notReady, ""}, {p.id, deleted, notReady, ""},
	}
	for name, events := range map[string]<-chan *criv1.ContainerEventResponse{"first": first, "second": second} {
		last := begin
		for i, w := range want {
			event := next(t, events)
			got := told{id: event.GetContainerId(), kind: event.GetContainerEventType(), sandbox: event.GetPodSandboxStatus().GetState()}
			for _, s := range event.GetContainersStatuses() {
				got.container += s.GetState().String()
			}
			if got != w {
				t.Errorf("%s subscriber, event %d: got %v, want %v", name, i, got, w)
			}
			if md := event.GetPodSandboxStatus().GetMetadata(); md.GetUid() != p.config.GetMetadata().GetUid() || event.GetPodSandboxStatus().GetId() != p.id {
				t.Errorf("%s subscriber, event %d: pod %v, want %s", name, i, md, p.config.GetMetadata().GetUid())
			}
			if at := event.GetCreatedAt(); at < last || at > time.Now().UnixNano() {
				t.Errorf("%s subscriber, event %d: created at %d, after one of %d", name, i, at, last)
			} else {
				last = at
			}
		}
		if len(events) > 0 {
			t.Errorf("%s subscriber: got %v besides", name, next(t, events))
		}
	}
}

// A failed start is an end, and tells it.
func TestFailedStartIsToldAsStopped(t *testing.T) {
	n := onNode(t)
	events, _ := n.events(t)
	c := n.pod(t).create(nil, "/no/such/program")
	if err := c.tryStart(); err == nil {
		t.Fatal("it started")
	}
	for range 3 {
		next(t, events) // pod created and started, container created
	}
	event := next(t, events)
	if s := event.GetContainersStatuses(); event.GetContainerEventType() != criv1.ContainerEventType_CONTAINER_STOPPED_EVENT || len(s) != 1 || s[0].GetReason() != "StartError" {
		t.Errorf("got %v, want a stop with StartError", event)
	}
}

// Whoever asks because of an event gets an answer that is not older than it.
func TestEventsComeAfterTheStateIsVisible(t *testing.T) {
	n := onNode(t)
	events, _ := n.events(t)
	p := n.pod(t)
	done := make(chan struct{})
	// Owner: the test, which waits for done.
	go func() {
		defer close(done)
		for range 10 {
			c := p.create(nil, "true")
			if err := c.tryStart(); err != nil {
				t.Error(err)
			}
			c.wait(20 * time.Second)
			c.remove()
		}
	}()
	for deleted := 0; deleted < 10; {
		event := next(t, events)
		if event.GetContainerId() == p.id {
			continue
		}
		resp, err := n.ContainerStatus(ctx(t), &criv1.ContainerStatusRequest{ContainerId: event.GetContainerId()})
		state, gone := resp.GetStatus().GetState(), status.Code(err) == codes.NotFound
		switch kind := event.GetContainerEventType(); {
		case kind == criv1.ContainerEventType_CONTAINER_DELETED_EVENT:
			deleted++
			if !gone {
				t.Errorf("%s is told as deleted, and its status is %v", event.GetContainerId(), resp)
			}
		case kind == criv1.ContainerEventType_CONTAINER_STARTED_EVENT && !gone && state == criv1.ContainerState_CONTAINER_CREATED,
			kind == criv1.ContainerEventType_CONTAINER_STOPPED_EVENT && !gone && state != criv1.ContainerState_CONTAINER_EXITED:
			t.Errorf("%s is told as %v, and its state is %v", event.GetContainerId(), kind, state)
		}
	}
	<-done
}

// A client that does not read loses its stream and knows it; nobody waits for it, and others miss nothing.
func TestSlowEventClientLosesItsStreamAlone(t *testing.T) {
	n := onNode(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	slow, err := n.GetContainerEvents(ctx, &criv1.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := slow.Header(); err != nil {
		t.Fatal(err)
	}
	quick, _ := n.events(t)
	// 1,000 may wait in the daemon, and some hundred more between it and the client.
	const pods = 500
	for range pods {
		config := n.podConfig(func(c *criv1.PodSandboxConfig) {
			c.Annotations = map[string]string{"weight": strings.Repeat("x", 1000)}
		})
		begin := time.Now()
		resp, err := n.RunPodSandbox(ctx, &criv1.RunPodSandboxRequest{Config: config})
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > patient(5*time.Second) {
			t.Errorf("a pod took %s", took)
		}
		n.removePod(t, resp.GetPodSandboxId())
	}
	for range 4 * pods {
		next(t, quick)
	}
	for got := 0; ; got++ {
		if _, err = slow.Recv(); err != nil {
			t.Logf("the slow client got %d of %d events", got, 4*pods)
			break
		}
	}
	wantError(t, err, codes.ResourceExhausted, "events behind", "list, and watch again")
}

// An open stream, read or not, does not hold the daemon up.
func TestEventStreamsEndWithTheDaemon(t *testing.T) {
	n := ownNode(t, options{})
	_, end := n.events(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := dial(n.socket())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stalled, err := criv1.NewRuntimeServiceClient(conn).GetContainerEvents(ctx, &criv1.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stalled.Header(); err != nil {
		t.Fatal(err)
	}
	for range 10 { // more than the window between daemon and client, so that its handler is in the middle of a send
		p, err := n.RunPodSandbox(ctx, &criv1.RunPodSandboxRequest{Config: n.podConfig(func(c *criv1.PodSandboxConfig) {
			c.Annotations = map[string]string{"weight": strings.Repeat("x", 100_000)}
		})})
		if err != nil {
			t.Fatal(err)
		}
		defer n.removePod(t, p.GetPodSandboxId())
	}
	begin := time.Now()
	if err := n.daemon.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-end:
		wantError(t, err, codes.Unavailable, "podwright is restarting")
	case <-time.After(10 * time.Second):
		t.Error("the stream did not end with the daemon")
	}
	select {
	case err := <-n.ended:
		n.ended <- err
		if took := time.Since(begin); err != nil || took > patient(6*time.Second) {
			t.Errorf("the daemon ended after %s with %v, want soon and without error", took, err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the daemon did not end")
	}
	n.conn.Close()
	if err := n.serve(); err != nil {
		t.Fatal(err)
	}
}

func TestVanishedEventClientsLeaveNothing(t *testing.T) {
	n := onNode(t)
	descriptors := func() int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.daemon.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := descriptors()
	for range 50 {
		conn, err := dial(n.socket())
		if err != nil {
			t.Fatal(err)
		}
		stream, err := criv1.NewRuntimeServiceClient(conn).GetContainerEvents(ctx(t), &criv1.GetEventsRequest{})
		if err == nil {
			_, err = stream.Header()
		}
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	eventually(t, 10*time.Second, "as many descriptors as before", func() bool { return descriptors() <= before })
}

func TestCrictlEvents(t *testing.T) {
	if os.Getenv(crictlVariable) == "" {
		t.Skip("crictl is missing: test/e2e/tools/get crictl says why")
	}
	n := onNode(t)
	// By itself it gives a busy node two seconds to answer, and ends.
	cmd := exec.Command(os.Getenv(crictlVariable), "--runtime-endpoint", "unix://"+n.socket(), "--timeout", "30s", "events", "--output", "json")
	var notes bytes.Buffer // what it logs; to be read when it has ended
	cmd.Stderr = &notes
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1000)
	// Owner: the test; ends with crictl.
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	defer func() {
		cmd.Process.Kill()
		for range lines {
		}
		cmd.Wait()
	}()
	// When crictl has subscribed it does not say, and it may be in the middle of a pod's life: the second one it shows whole.
	seen := ""
	for deadline := time.Now().Add(time.Minute); strings.Count(seen, "CONTAINER_DELETED_EVENT") < 2 && time.Now().Before(deadline); {
		p, err := n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: n.podConfig()})
		if err != nil {
			t.Fatal(err)
		}
		n.removePod(t, p.GetPodSandboxId())
		for more := true; more; {
			select {
			case line, ok := <-lines:
				if !ok {
					t.Fatalf("crictl events ended: %v: %s", cmd.Wait(), &notes)
				}
				seen += line + "\n"
			case <-time.After(300 * time.Millisecond):
				more = false
			}
		}
	}
	for _, word := range []string{"CONTAINER_CREATED_EVENT", "CONTAINER_STOPPED_EVENT", "CONTAINER_DELETED_EVENT", "SANDBOX_NOTREADY"} {
		if !strings.Contains(seen, word) {
			t.Errorf("crictl events: got %q, want %s in it", seen, word)
		}
	}
}

// collect reads a streamed list to its end and says how many messages it had.
func collect[M any, T any](t *testing.T, stream interface{ Recv() (*M, error) }, err error, items func(*M) []T) (all []T, messages int) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, messages
		}
		if err != nil {
			t.Fatal(err)
		}
		messages++
		if len(items(message)) == 0 {
			t.Error("a message without items")
		}
		all = append(all, items(message)...)
	}
}

func TestStreamedListsGiveWhatListsGive(t *testing.T) {
	n := onNode(t)
	p := n.pod(t, func(c *criv1.PodSandboxConfig) { c.Labels = map[string]string{"streamed": "yes"} })
	running := p.sleeper(nil)
	created := p.create(nil, "true")
	other := n.pod(t)
	other.create(nil, "true")

	for name, filter := range map[string]*criv1.ContainerFilter{
		"all": nil, "of a pod": {PodSandboxId: p.id}, "running of it": {PodSandboxId: p.id, State: &criv1.ContainerStateValue{State: criv1.ContainerState_CONTAINER_RUNNING}},
		"by prefix": {Id: created.id[:12]}, "none": {LabelSelector: map[string]string{"no": "such"}},
	} {
		stream, err := n.StreamContainers(ctx(t), &criv1.StreamContainersRequest{Filter: filter})
		got, messages := collect(t, stream, err, (*criv1.StreamContainersResponse).GetContainers)
		list, err := n.ListContainers(ctx(t), &criv1.ListContainersRequest{Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(list.GetContainers()) || len(got) == 0 && messages > 0 {
			t.Errorf("containers, %s: got %v in %d messages, want %v", name, got, messages, list.GetContainers())
		}
		if name == "running of it" && (len(got) != 1 || got[0].GetId() != running.id) {
			t.Errorf("containers, %s: got %v, want %s", name, got, running.id)
		}
	}
	for name, filter := range map[string]*criv1.PodSandboxFilter{"all": nil, "labelled": {LabelSelector: map[string]string{"streamed": "yes"}}, "none": {Id: "nowhere"}} {
		stream, err := n.StreamPodSandboxes(ctx(t), &criv1.StreamPodSandboxesRequest{Filter: filter})
		got, messages := collect(t, stream, err, (*criv1.StreamPodSandboxesResponse).GetPodSandboxes)
		list, err := n.ListPodSandbox(ctx(t), &criv1.ListPodSandboxRequest{Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(list.GetItems()) || len(got) == 0 && messages > 0 {
			t.Errorf("sandboxes, %s: got %v in %d messages, want %v", name, got, messages, list.GetItems())
		}
	}
	for name, ref := range map[string]string{"all": "", "one": running.config.GetImage().GetImage(), "none": "example.invalid/none:1"} {
		filter := &criv1.ImageFilter{Image: &criv1.ImageSpec{Image: ref}}
		stream, err := n.images.StreamImages(ctx(t), &criv1.StreamImagesRequest{Filter: filter})
		got, messages := collect(t, stream, err, (*criv1.StreamImagesResponse).GetImages)
		list, err := n.images.ListImages(ctx(t), &criv1.ListImagesRequest{Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(list.GetImages()) || (len(got) == 0) != (name == "none") || (len(got) == 0) != (messages == 0) {
			t.Errorf("images, %s: got %v in %d messages, want %v", name, got, messages, list.GetImages())
		}
	}
}

// More than one message can hold is what the streams are for.
func TestStreamedListHasNoLimit(t *testing.T) {
	n := onNode(t)
	const pods = 20
	want := map[string]bool{}
	for range pods {
		p := n.pod(t, func(c *criv1.PodSandboxConfig) {
			c.Labels, c.Annotations = map[string]string{"large": "yes"}, map[string]string{"weight": strings.Repeat("x", 900_000)}
		})
		want[p.id] = true
	}
	filter := &criv1.PodSandboxFilter{LabelSelector: map[string]string{"large": "yes"}}
	_, err := n.ListPodSandbox(ctx(t), &criv1.ListPodSandboxRequest{Filter: filter})
	wantError(t, err, codes.ResourceExhausted)
	stream, err := n.StreamPodSandboxes(ctx(t), &criv1.StreamPodSandboxesRequest{Filter: filter})
	got, messages := collect(t, stream, err, (*criv1.StreamPodSandboxesResponse).GetPodSandboxes)
	for _, s := range got {
		if !want[s.GetId()] {
			t.Errorf("%s came twice, or is none of the pods", s.GetId())
		}
		delete(want, s.GetId())
	}
	if len(want) > 0 || messages < 2 {
		t.Errorf("%d sandboxes are missing; they came in %d messages", len(want), messages)
	}
}
