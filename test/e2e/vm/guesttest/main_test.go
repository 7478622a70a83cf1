// Package guesttest tests podwright as an operator has it: installed by make install and started by systemd, in the guest
// that test/e2e/vm boots with cgroup v2 and SELinux enforcing, or AppArmor. It speaks to the daemon's socket and looks at
// the guest as an administrator. Outside of a guest every test skips; inside, a test that needs what this boot hasn't
// says so by needs.
// It owns the guest while it runs: tests may stop and start podwright, and leave the guest as it was. `make vm-test RUN=TestX`
// runs one; test/e2e/vm/packages says which set has which.
// Source: k8s.io/cri-api v1, systemd.unit(5), selinux(8), apparmor(7).
package guesttest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	socket = "/run/podwright/podwright.sock"
	// image is a busybox, loaded before the tests.
	image = "localhost/busybox:1"
	// patience is what a call may take: under software emulation everything is 10 to 20 times slower.
	patience = 2 * time.Minute
)

// lsm is the security module of this boot: selinux, apparmor or none; "" outside of a guest.
func lsm() string { return os.Getenv("PODWRIGHT_GUEST") }

// needs skips a test that is about a security module which this boot hasn't; "any" for none in particular.
func needs(t *testing.T, module string) {
	t.Helper()
	names := map[string]string{"selinux": "SELinux", "apparmor": "AppArmor"}
	switch {
	case lsm() == "":
		t.Skip("the guest is missing: make vm-test")
	case module != "any" && names[module] == "":
		t.Fatalf("needs %q: want any, selinux or apparmor", module)
	case module != "any" && module != lsm():
		t.Skipf("%s is missing: this guest was booted with %s", names[module], lsm())
	}
}

func ctx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// daemon is a connection to the installed podwright.
type daemon struct {
	t *testing.T
	criv1.RuntimeServiceClient
	images criv1.ImageServiceClient
}

// connect waits until podwright answers; it may have been restarted just now.
func connect(t *testing.T) *daemon {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20), grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	d := &daemon{t: t, RuntimeServiceClient: criv1.NewRuntimeServiceClient(conn), images: criv1.NewImageServiceClient(conn)}
	if _, err := d.Version(ctx(t), &criv1.VersionRequest{}); err != nil {
		t.Fatalf("podwright does not answer: %v\n%s", err, run(t, "journalctl", "-b", "--no-pager", "-n", "30", "-u", "podwright"))
	}
	return d
}

// pod is a sandbox of a test, removed at its end.
type pod struct {
	t      *testing.T
	d      *daemon
	id     string
	config *criv1.PodSandboxConfig
}

var count atomic.Int32

// pod runs one on the host's network, which change may change, as the rest.
func (d *daemon) pod(change ...func(*criv1.PodSandboxConfig)) *pod {
	d.t.Helper()
	name := fmt.Sprintf("pod-%d-%d", os.Getpid(), count.Add(1))
	config := &criv1.PodSandboxConfig{
		Metadata: &criv1.PodSandboxMetadata{Name: name, Namespace: "guest", Uid: name}, LogDirectory: "/var/log/pods/guest_" + name,
		Linux: &criv1.LinuxPodSandboxConfig{SecurityContext: &criv1.LinuxSandboxSecurityContext{NamespaceOptions: &criv1.NamespaceOption{
			Network: criv1.NamespaceMode_NODE, Pid: criv1.NamespaceMode_CONTAINER,
		}}},
	}
	for _, c := range change {
		c(config)
	}
	resp, err := d.RunPodSandbox(ctx(d.t), &criv1.RunPodSandboxRequest{Config: config})
	if err != nil {
		d.t.Fatal(err)
	}
	p := &pod{t: d.t, d: d, id: resp.GetPodSandboxId(), config: config}
	d.t.Cleanup(p.remove)
	return p
}

// remove stops and removes it with its containers; it may have been done before.
func (p *pod) remove() {
	d := connect(p.t) // the daemon may be another one meanwhile
	if _, err := d.StopPodSandbox(ctx(p.t), &criv1.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.t.Error(err)
	}
	if _, err := d.RemovePodSandbox(ctx(p.t), &criv1.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.t.Error(err)
	}
}

// container is one of a pod's.
type container struct {
	p  *pod
	id string
}

// create makes a container that runs args, with the image's capabilities by default and no_new_privs as change says.
func (p *pod) create(change func(*criv1.ContainerConfig), args ...string) (*container, error) {
	p.t.Helper()
	return p.createFrom(ctx(p.t), p.containerConfig(change, args...))
}

func (p *pod) containerConfig(change func(*criv1.ContainerConfig), args ...string) *criv1.ContainerConfig {
	name := fmt.Sprintf("c-%d", count.Add(1))
	config := &criv1.ContainerConfig{
		Metadata: &criv1.ContainerMetadata{Name: name}, Image: &criv1.ImageSpec{Image: image}, Command: args, LogPath: name + ".log",
		Linux: &criv1.LinuxContainerConfig{Resources: &criv1.LinuxContainerResources{}, SecurityContext: &criv1.LinuxContainerSecurityContext{
			NamespaceOptions: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
	}
	if change != nil {
		change(config)
	}
	return config
}

func (p *pod) createFrom(ctx context.Context, config *criv1.ContainerConfig) (*container, error) {
	resp, err := p.d.CreateContainer(ctx, &criv1.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	return &container{p: p, id: resp.GetContainerId()}, err
}

func (c *container) start() error {
	_, err := c.p.d.StartContainer(ctx(c.p.t), &criv1.StartContainerRequest{ContainerId: c.id})
	return err
}

// sleeper runs until it is stopped, and obeys the signal.
func (p *pod) sleeper(change func(*criv1.ContainerConfig)) *container {
	p.t.Helper()
	c, err := p.create(change, "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done")
	if err == nil {
		err = c.start()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// exec runs args in the container; err says that the call failed, code what the program returned.
func (c *container) exec(args ...string) (stdout, stderr string, code int32, err error) {
	c.p.t.Helper()
	resp, err := c.p.d.ExecSync(ctx(c.p.t), &criv1.ExecSyncRequest{ContainerId: c.id, Cmd: args, Timeout: int64(patience.Seconds())})
	return string(resp.GetStdout()), string(resp.GetStderr()), resp.GetExitCode(), err
}

// shell runs a script in the container, which has to succeed, and gives what it wrote.
func (c *container) shell(script string) string {
	c.p.t.Helper()
	stdout, stderr, code, err := c.exec("sh", "-c", script)
	if err != nil || code != 0 {
		c.p.t.Fatalf("in the container: %s\ncode %d, %v, stdout %q, stderr %q", script, code, err, stdout, stderr)
	}
	return strings.TrimSpace(stdout)
}

// refused runs a script in the container, which must not succeed, and gives what it said.
func (c *container) refused(script string) string {
	c.p.t.Helper()
	stdout, stderr, code, err := c.exec("sh", "-c", script)
	if err != nil || code == 0 {
		c.p.t.Errorf("in the container: %s\nwant it refused; got code %d, %v, stdout %q, stderr %q", script, code, err, stdout, stderr)
	}
	return strings.TrimSpace(stdout + stderr)
}

// pid is the container's first process as the guest sees it.
func (c *container) pid() string {
	c.p.t.Helper()
	return run(c.p.t, "crictl", "inspect", "--output", "go-template", "--template", "{{.info.pid}}", c.id)
}

// run runs a command in the guest, which has to succeed, and gives what it wrote.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// eventually waits for what takes a moment.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// label is a process's security context.
func label(t *testing.T, pid string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/" + pid + "/attr/current")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Trim(string(text), "\x00\n")
}
