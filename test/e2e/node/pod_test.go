package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ctx ends with the test, or after a minute: no call of these tests takes so long.
func ctx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patient(time.Minute))
	t.Cleanup(cancel)
	return ctx
}

func contextWithTimeout(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// pod is a sandbox of a test, removed at its end.
type pod struct {
	t      *testing.T
	n      *node
	id     string
	config *criv1.PodSandboxConfig
}

var podCount atomic.Int32

// podConfig is a sandbox on the host's network whose containers have PID namespaces of their own.
func (n *node) podConfig(change ...func(*criv1.PodSandboxConfig)) *criv1.PodSandboxConfig {
	name := fmt.Sprintf("pod-%d", podCount.Add(1))
	config := &criv1.PodSandboxConfig{
		Metadata: &criv1.PodSandboxMetadata{Name: name, Namespace: "e2e", Uid: name}, LogDirectory: n.path("logs", name),
		Linux: &criv1.LinuxPodSandboxConfig{SecurityContext: &criv1.LinuxSandboxSecurityContext{NamespaceOptions: &criv1.NamespaceOption{
			Network: criv1.NamespaceMode_NODE, Pid: criv1.NamespaceMode_CONTAINER,
		}}},
	}
	for _, c := range change {
		c(config)
	}
	return config
}

// What podConfig's changes are about.
func ownNetwork(c *criv1.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Network = criv1.NamespaceMode_POD
}
func podPID(c *criv1.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = criv1.NamespaceMode_POD
}
func hostPID(c *criv1.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = criv1.NamespaceMode_NODE
}
func hostIPC(c *criv1.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Ipc = criv1.NamespaceMode_NODE
}
func privilegedPod(c *criv1.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }

func (n *node) pod(t *testing.T, change ...func(*criv1.PodSandboxConfig)) *pod {
	t.Helper()
	config := n.podConfig(change...)
	resp, err := n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{t: t, n: n, id: resp.GetPodSandboxId(), config: config}
	t.Cleanup(func() { n.removePod(t, p.id) })
	return p
}

// removePod stops and removes; it may have been done before.
func (n *node) removePod(t *testing.T, id string) {
	t.Helper()
	if _, err := n.StopPodSandbox(ctx(t), &criv1.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Error(err)
	}
	if _, err := n.RemovePodSandbox(ctx(t), &criv1.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Error(err)
	}
}

// container is one of a pod's.
type container struct {
	p      *pod
	id     string
	config *criv1.ContainerConfig
}

// containerConfig runs args as they are.
func (p *pod) containerConfig(change func(*criv1.ContainerConfig), args ...string) *criv1.ContainerConfig {
	p.t.Helper()
	image, err := testImage()
	if err != nil {
		p.t.Fatal(err)
	}
	name := fmt.Sprintf("c-%d", podCount.Add(1))
	config := &criv1.ContainerConfig{
		Metadata: &criv1.ContainerMetadata{Name: name}, Image: &criv1.ImageSpec{Image: image}, Command: args, LogPath: name + ".log",
		Linux: &criv1.LinuxContainerConfig{Resources: &criv1.LinuxContainerResources{}, SecurityContext: &criv1.LinuxContainerSecurityContext{
			Capabilities: &criv1.Capability{}, NamespaceOptions: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
	}
	if change != nil {
		change(config)
	}
	return config
}

func (p *pod) tryCreate(config *criv1.ContainerConfig) (string, error) {
	resp, err := p.n.CreateContainer(ctx(p.t), &criv1.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	return resp.GetContainerId(), err
}

func (p *pod) create(change func(*criv1.ContainerConfig), args ...string) *container {
	p.t.Helper()
	config := p.containerConfig(change, args...)
	id, err := p.tryCreate(config)
	if err != nil {
		p.t.Fatal(err)
	}
	return &container{p: p, id: id, config: config}
}

func (c *container) tryStart() error {
	_, err := c.p.n.StartContainer(ctx(c.p.t), &criv1.StartContainerRequest{ContainerId: c.id})
	return err
}

// start creates and starts.
func (p *pod) start(change func(*criv1.ContainerConfig), args ...string) *container {
	p.t.Helper()
	c := p.create(change, args...)
	if err := c.tryStart(); err != nil {
		p.t.Fatal(err)
	}
	return c
}

// sleeper runs until it is killed.
func (p *pod) sleeper(change func(*criv1.ContainerConfig)) *container {
	p.t.Helper()
	return p.start(change, "sleep", "1000")
}

// output runs args to their end, which has code 0, and gives what they wrote.
func (p *pod) output(change func(*criv1.ContainerConfig), args ...string) string {
	p.t.Helper()
	c := p.start(change, args...)
	s := c.wait(30 * time.Second)
	text := c.stream("stdout")
	if s.GetExitCode() != 0 {
		p.t.Fatalf("%q: exit code %d (%s), stdout %q, stderr %q", args, s.GetExitCode(), s.GetReason(), text, c.stream("stderr"))
	}
	return text
}

func (c *container) status() *criv1.ContainerStatus {
	c.p.t.Helper()
	resp, err := c.p.n.ContainerStatus(ctx(c.p.t), &criv1.ContainerStatusRequest{ContainerId: c.id})
	if err != nil {
		c.p.t.Fatal(err)
	}
	return resp.GetStatus()
}

// wait returns once the container has exited.
func (c *container) wait(limit time.Duration) *criv1.ContainerStatus {
	c.p.t.Helper()
	var s *criv1.ContainerStatus
	eventually(c.p.t, limit, "exit of "+c.config.GetMetadata().GetName(), func() bool {
		s = c.status()
		return s.GetState() == criv1.ContainerState_CONTAINER_EXITED
	})
	return s
}

// info is what verbose status tells.
type info struct {
	PID         int             `json:"pid"`
	SandboxID   string          `json:"sandboxID"`
	CgroupPath  string          `json:"cgroupPath"`
	Config      json.RawMessage `json:"config"`
	RuntimeSpec json.RawMessage `json:"runtimeSpec"`
	Plan        json.RawMessage `json:"plan"`
	Notes       []string        `json:"notes"`
}

func (c *container) info() info {
	c.p.t.Helper()
	resp, err := c.p.n.ContainerStatus(ctx(c.p.t), &criv1.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	if err != nil {
		c.p.t.Fatal(err)
	}
	var i info
	if err := json.Unmarshal([]byte(resp.GetInfo()["info"]), &i); err != nil {
		c.p.t.Fatal(err)
	}
	return i
}

func (c *container) stop(seconds int64) {
	c.p.t.Helper()
	if _, err := c.p.n.StopContainer(ctx(c.p.t), &criv1.StopContainerRequest{ContainerId: c.id, Timeout: seconds}); err != nil {
		c.p.t.Fatal(err)
	}
}

func (c *container) remove() {
	c.p.t.Helper()
	if _, err := c.p.n.RemoveContainer(ctx(c.p.t), &criv1.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		c.p.t.Fatal(err)
	}
}

// tryExec runs a command in the container.
func (c *container) tryExec(seconds int64, args ...string) (*criv1.ExecSyncResponse, error) {
	return c.p.n.ExecSync(ctx(c.p.t), &criv1.ExecSyncRequest{ContainerId: c.id, Cmd: args, Timeout: seconds})
}

// exec gives the output of a command that ends with code 0.
func (c *container) exec(args ...string) string {
	c.p.t.Helper()
	resp, err := c.tryExec(30, args...)
	if err != nil {
		c.p.t.Fatal(err)
	}
	if resp.GetExitCode() != 0 {
		c.p.t.Fatalf("exec %q: exit code %d, stdout %q, stderr %q", args, resp.GetExitCode(), resp.GetStdout(), resp.GetStderr())
	}
	return string(resp.GetStdout())
}

// stream is what the container wrote to one stream, from its log.
func (c *container) stream(name string) string {
	c.p.t.Helper()
	var text bytes.Buffer
	for _, line := range c.logLines() {
		if line.stream == name {
			text.WriteString(line.text)
			if line.tag == "F" {
				text.WriteByte('\n')
			}
		}
	}
	return text.String()
}

// logLine is one line of a container's log, as the kubelet reads it (B35).
type logLine struct {
	at                time.Time
	stream, tag, text string
}

func (c *container) logPath() string {
	return c.p.config.GetLogDirectory() + "/" + c.config.GetLogPath()
}

func (c *container) logLines() []logLine {
	c.p.t.Helper()
	raw, err := os.ReadFile(c.logPath())
	if err != nil {
		c.p.t.Fatal(err)
	}
	var list []logLine
	for line := range strings.Lines(string(raw)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(fields) != 4 || !strings.HasSuffix(line, "\n") {
			c.p.t.Fatalf("%s: line %q is not four fields", c.logPath(), line)
		}
		at, err := time.Parse(time.RFC3339Nano, fields[0])
		if err != nil || fields[1] != "stdout" && fields[1] != "stderr" || fields[2] != "F" && fields[2] != "P" {
			c.p.t.Fatalf("%s: line %q: want time, stream, F or P, text (%v)", c.logPath(), line, err)
		}
		list = append(list, logLine{at, fields[1], fields[2], fields[3]})
	}
	return list
}

// eventually fails the test unless f is true within limit.
func eventually(t *testing.T, limit time.Duration, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patient(limit)); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within %s", what, limit)
		}
	}
}

// wantError checks a refusal: its code, and that its text names what is wrong.
func wantError(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if got := status.Code(err); got != code {
		t.Errorf("got %s (%v), want %s", got, err, code)
	}
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("got error %v, want it to name %q", err, word)
		}
	}
}
