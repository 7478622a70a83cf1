// Package powerofftest leaves containers running in the guest and a script that says how they ended, which the guest's
// agent runs when systemd has switched everything off (see test/e2e/vm/guest/agent). It is the last package of a boot and
// owns what is left of it. Outside of a guest it skips.
// Source: k8s.io/cri-api v1, systemd.scope(5), systemd-poweroff.service(8).
package powerofftest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// verdict is run after the last process has ended. Times are the guest's uptime in seconds.
const verdict = `cd "$RESULTS/poweroff.d" || exit 1
status=0
say() { echo "--- $1: TestPoweroffGivesContainersTheirSignalAndGrace: $2"; if [ "$1" = FAIL ]; then status=1; fi; }
check() { if [ -e "$1" ]; then say PASS "$2"; else say FAIL "not so: $2"; fi; }
check term-got "the container got SIGTERM"
check term-done "it had the 3 seconds that it took to end"
check usr1-done "another one got its own stop signal, SIGUSR1"
if [ -e usr1-wrong ]; then say FAIL "that one got SIGTERM"; fi
if [ -e term-got ] && [ -e stubborn-last ]; then
	lived=$(($(cat stubborn-last) - $(cat term-got)))
	if [ $lived -ge 6 ] && [ $lived -le 30 ]; then say PASS "one that ignores its signal was killed, $lived s later with a grace of 10"
	else say FAIL "one that ignores its signal lived $lived s longer, with a grace of 10"; fi
fi
exit $status
`

// scripts are what the containers begin with.
var scripts = map[string]string{
	"term":     `trap 'now >/out/term-got; sleep 3; now >/out/term-done; exit 0' TERM; : >/out/term-ready`,
	"usr1":     `trap 'now >/out/usr1-done; exit 0' USR1; trap 'now >/out/usr1-wrong' TERM; : >/out/usr1-ready`,
	"stubborn": `trap '' TERM; : >/out/stubborn-ready`,
}

const now = `now() { cut -d. -f1 /proc/uptime; }; `

// loop is what all of them do; the one that ignores its signal says how long it did.
const loop = `; while :; do if [ "$0" = stubborn ]; then now >/out/next; mv /out/next /out/stubborn-last; fi; sleep 0.5; done`

func TestPoweroffGivesContainersTheirSignalAndGrace(t *testing.T) {
	if os.Getenv("PODWRIGHT_GUEST") == "" {
		t.Skip("the guest is missing: make vm-test")
	}
	results := os.Getenv("RESULTS")
	out := filepath.Join(results, "poweroff.d")
	if err := os.Mkdir(out, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("/etc/podwright/conf.d", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/etc/podwright/conf.d/poweroff.toml", []byte("[runtime]\nshutdown_grace = \"10s\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command("systemctl", "restart", "podwright").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	conn, err := grpc.NewClient("unix:///run/podwright/podwright.sock", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := criv1.NewRuntimeServiceClient(conn)
	for name := range scripts {
		start(ctx, t, client, name, out)
	}
	for name := range scripts {
		for _, err := os.Stat(filepath.Join(out, name+"-ready")); err != nil; _, err = os.Stat(filepath.Join(out, name+"-ready")) {
			if ctx.Err() != nil {
				t.Fatalf("container %s does not start its work", name)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	if err := os.WriteFile(filepath.Join(results, "poweroff"), []byte(verdict), 0o644); err != nil {
		t.Fatal(err)
	}
}

// start leaves a container running, in a sandbox of its own. It is privileged, so that it may write where the results are.
func start(ctx context.Context, t *testing.T, client criv1.RuntimeServiceClient, name, out string) {
	t.Helper()
	node := &criv1.NamespaceOption{Network: criv1.NamespaceMode_NODE, Pid: criv1.NamespaceMode_CONTAINER}
	pod := &criv1.PodSandboxConfig{
		Metadata: &criv1.PodSandboxMetadata{Name: name, Namespace: "poweroff", Uid: name}, LogDirectory: "/var/log/pods/poweroff_" + name,
		Linux: &criv1.LinuxPodSandboxConfig{SecurityContext: &criv1.LinuxSandboxSecurityContext{Privileged: true, NamespaceOptions: node}},
	}
	sandbox, err := client.RunPodSandbox(ctx, &criv1.RunPodSandboxRequest{Config: pod})
	if err != nil {
		t.Fatal(err)
	}
	config := &criv1.ContainerConfig{
		Metadata: &criv1.ContainerMetadata{Name: name}, Image: &criv1.ImageSpec{Image: "localhost/busybox:1"}, LogPath: "c.log",
		Command: []string{"sh", "-c", now + scripts[name] + loop, name},
		Mounts:  []*criv1.Mount{{HostPath: out, ContainerPath: "/out"}},
		Linux:   &criv1.LinuxContainerConfig{SecurityContext: &criv1.LinuxContainerSecurityContext{Privileged: true, NamespaceOptions: node}},
	}
	if name == "usr1" {
		config.StopSignal = criv1.Signal_SIGNAL_SIGUSR1
	}
	container, err := client.CreateContainer(ctx, &criv1.CreateContainerRequest{PodSandboxId: sandbox.PodSandboxId, Config: config, SandboxConfig: pod})
	if err == nil {
		_, err = client.StartContainer(ctx, &criv1.StartContainerRequest{ContainerId: container.ContainerId})
	}
	if err != nil {
		t.Fatal(err)
	}
}
