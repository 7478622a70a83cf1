package kubelet

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kubeletHost is the kubelet's port; its certificate is one that it made for itself.
const kubeletHost = "127.0.0.1:10250"

var client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: selfSigned, DisableKeepAlives: true}}

var selfSigned = &tls.Config{InsecureSkipVerify: true}

func get(path string) (string, error) { return ask(http.MethodGet, path) }

func ask(method, path string) (string, error) {
	req, err := http.NewRequest(method, "https://"+kubeletHost+path, nil)
	if err != nil {
		return "", err
	}
	return body(client.Do(req))
}

func body(resp *http.Response, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return string(text), err
}

// podStatus is what these tests look at of a Kubernetes pod.
type podStatus struct {
	Metadata struct{ Name, UID string }
	Status   struct {
		Phase, PodIP, HostIP  string
		InitContainerStatuses []containerStatus
		ContainerStatuses     []containerStatus
	}
}

type containerStatus struct {
	Name, ContainerID, ImageID string
	Ready                      bool
	Started                    bool
	RestartCount               int
	State, LastState           struct {
		Waiting    *struct{ Reason, Message string }
		Running    *struct{ StartedAt time.Time }
		Terminated *terminated
	}
}

type terminated struct {
	ExitCode              int
	Reason, Message       string
	StartedAt, FinishedAt time.Time
}

func (c containerStatus) String() string {
	text, _ := json.Marshal(c)
	return string(text)
}

// pods are the kubelet's, by name in their manifest: a static pod's name ends in its node's.
func pods() (map[string]podStatus, error) {
	text, err := get("/pods")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []podStatus }
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("pods: %w in %s", err, text)
	}
	all := map[string]podStatus{}
	for _, p := range list.Items {
		all[strings.TrimSuffix(p.Metadata.Name, "-lab")] = p
	}
	return all, nil
}

func podNamed(name string) (podStatus, error) {
	all, err := pods()
	p, ok := all[name]
	if err == nil && !ok {
		err = fmt.Errorf("there is no pod %s", name)
	}
	return p, err
}

// container finds a container's status, init containers included.
func container(pod, name string) (containerStatus, error) {
	p, err := podNamed(pod)
	if err != nil {
		return containerStatus{}, err
	}
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if c.Name == name {
			return c, nil
		}
	}
	return containerStatus{}, fmt.Errorf("pod %s has no status of %s yet", pod, name)
}

// running says why a pod does not run with all containers ready.
func running(pod string) error {
	p, err := podNamed(pod)
	if err != nil {
		return err
	}
	if len(p.Status.ContainerStatuses) == 0 || p.Status.Phase != "Running" {
		return fmt.Errorf("pod %s: phase %s, init containers %v", pod, p.Status.Phase, p.Status.InitContainerStatuses)
	}
	for _, c := range p.Status.ContainerStatuses {
		if !c.Ready || c.State.Running == nil {
			return fmt.Errorf("container %s", c)
		}
	}
	return nil
}

// mustRun begins a test: in the lab, with these pods running.
func mustRun(t *testing.T, pods ...string) {
	t.Helper()
	inLab(t)
	wait(t, pods...)
}

func wait(t *testing.T, pods ...string) {
	t.Helper()
	for _, pod := range pods {
		mustEventually(t, 2*time.Minute, "pod "+pod, func() error { return running(pod) })
	}
}

// logs is what kubectl logs shows.
func logs(pod, container string, more ...string) (string, error) {
	return get(fmt.Sprintf("/containerLogs/default/%s-lab/%s?%s", pod, container, strings.Join(more, "&")))
}

// command runs one in a container by the kubelet's /run, as a probe or a hook does.
func command(t *testing.T, pod, container, line string) string {
	t.Helper()
	out, err := ask(http.MethodPost, fmt.Sprintf("/run/default/%s-lab/%s?cmd=%s", pod, container, url.QueryEscape(line)))
	if err != nil {
		t.Fatalf("%s in %s of %s: %v", line, container, pod, err)
	}
	return out
}

// runtimeClient asks podwright what the kubelet does not tell: processes, and sandboxes that it has forgotten.
func runtimeClient() (criv1.RuntimeServiceClient, func() error, error) {
	conn, err := grpc.NewClient("unix://"+criSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return criv1.NewRuntimeServiceClient(conn), conn.Close, nil
}

// sandboxNames gives all sandboxes' states by the name of their pods.
func sandboxNames() (map[string]string, error) {
	client, done, err := runtimeClient()
	if err != nil {
		return nil, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	list, err := client.ListPodSandbox(ctx, &criv1.ListPodSandboxRequest{})
	names := map[string]string{}
	for _, s := range list.GetItems() {
		names[s.GetMetadata().GetName()] = s.GetState().String()
	}
	return names, err
}

// process is who a container is on the node.
type process struct {
	ID      string
	PID     int
	Started int64
}

// processOf gives a running container's first process.
func processOf(c containerStatus) (process, error) {
	client, done, err := runtimeClient()
	if err != nil {
		return process{}, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, id, _ := strings.Cut(c.ContainerID, "://")
	resp, err := client.ContainerStatus(ctx, &criv1.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return process{}, err
	}
	var info struct{ PID int }
	if err := json.Unmarshal([]byte(resp.GetInfo()["info"]), &info); err != nil {
		return process{}, fmt.Errorf("verbose status of %s: %w", id, err)
	}
	return process{ID: id, PID: info.PID, Started: resp.GetStatus().GetStartedAt()}, nil
}
