package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/kerneltest"
)

// settleTime is how long a node may take to be as it was: namespaces and interfaces die asynchronously.
const settleTime = 15 * time.Second

// patient is a time to wait for what takes less, on a machine so many times slower than usual as PODWRIGHT_TEST_PATIENCE
// says: an emulated one, or one that does other things.
func patient(d time.Duration) time.Duration {
	factor, err := strconv.Atoi(os.Getenv("PODWRIGHT_TEST_PATIENCE"))
	if err != nil || factor < 1 {
		factor = 1
	}
	return d * time.Duration(factor)
}

// node is a podwright with state, sockets, cgroups and network configuration of its own.
type node struct {
	name, dir, group string
	env              []string

	daemon *exec.Cmd
	ended  chan error // the daemon's end
	conn   *grpc.ClientConn
	criv1.RuntimeServiceClient
	images criv1.ImageServiceClient
}

// options are what differs between nodes.
type options struct {
	conf    map[string]string // CNI configuration files; nil is a bridge
	plugins map[string]string // scripts that stand in for CNI plugins, by name
	config  string            // more of podwright's configuration
	runtime string            // more of its section [runtime]
	cgroup  string            // more of its section [cgroup]
	env     []string          // more of the daemon's environment
}

var nodeCount atomic.Int32

// newNode lays a node out and starts it. The name is short: it is part of the bridge's.
func newNode(o options) (*node, error) {
	n := &node{name: fmt.Sprintf("n%d", nodeCount.Add(1)), env: o.env}
	n.dir = filepath.Join(os.Getenv(workVariable), n.name)
	n.group = "/" + os.Getenv(groupVariable) + "/" + n.name
	for _, dir := range []string{"cni", "plugins", "logs", "netns", "certs", "run", "state", "addresses", "seccomp"} {
		if err := os.MkdirAll(filepath.Join(n.dir, dir), 0o755); err != nil {
			return nil, err
		}
	}
	if o.conf == nil {
		o.conf = map[string]string{"10-bridge.conflist": n.bridge()}
	}
	for dir, files := range map[string]map[string]string{"cni": o.conf, "plugins": o.plugins} {
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(n.dir, dir, name), []byte(text), 0o755); err != nil {
				return nil, err
			}
		}
	}
	config := fmt.Sprintf("socket = %q\nstate_dir = %q\nrun_dir = %q\n%s\n[cgroup]\nparent = %q\nkeeper = %q\n%s"+
		"[network]\nconf_dir = %q\nnetns_dir = %q\nbin_dirs = [%q, \"/opt/cni/bin\", \"/usr/lib/cni\"]\nplugin_timeout = %q\n[image]\ncerts_dirs = [%q]\nprogress_timeout = %q\n"+
		"[runtime]\npids_limit = 64\n%s",
		n.socket(), n.path("state"), n.path("run"), o.config, n.group+"/pods", n.group+"/keeper", o.cgroup,
		n.path("cni"), n.path("netns"), n.path("plugins"), patient(4*time.Second).String(), n.path("certs"), patient(2*time.Second).String(), o.runtime)
	if err := os.WriteFile(n.path("config.toml"), []byte(config), 0o644); err != nil {
		return nil, err
	}
	if err := n.labelled(); err != nil {
		return nil, err
	}
	return n, n.serve()
}

func (n *node) path(elements ...string) string {
	return filepath.Join(append([]string{n.dir}, elements...)...)
}

func (n *node) socket() string { return n.path("run", "podwright.sock") }

func (n *node) bridge() string {
	return fmt.Sprintf(`{ "cniVersion": "1.0.0", "name": "%s", "plugins": [
  { "type": "bridge", "bridge": "%s", "isGateway": true, "ipMasq": false,
    "ipam": { "type": "host-local", "dataDir": "%s", "ranges": [[{ "subnet": "10.88.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }] } } ] }`,
		n.name, n.name, n.path("addresses"))
}

// podwright runs one of the command's verbs against this node.
func (n *node) podwright(args ...string) (string, error) {
	ctx, cancel := contextWithTimeout(patient(time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(binDir(), "podwright"), append([]string{"--config", n.path("config.toml")}, args...)...)
	cmd.WaitDelay = time.Second // a process that it left behind has our pipe
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("podwright %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// serve starts the daemon and waits until it answers.
func (n *node) serve() error {
	log, err := os.OpenFile(n.path("podwright.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	serve := []string{filepath.Join(binDir(), "podwright"), "--config", n.path("config.toml"), "serve"}
	if hasLabels() { // as systemd starts it; a program that an administrator starts stays in the administrator's domain
		serve = append([]string{"runcon", "system_u:system_r:podwright_t:s0"}, serve...)
	}
	n.daemon = exec.Command(serve[0], serve[1:]...)
	n.daemon.Stderr, n.daemon.Env = log, append(os.Environ(), n.env...)
	if err := n.daemon.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	n.ended = ended
	// Owner: node; ends with the daemon; halt reads the answer.
	go func(cmd *exec.Cmd) { ended <- cmd.Wait() }(n.daemon)
	if n.conn, err = dial(n.socket()); err != nil {
		return err
	}
	n.RuntimeServiceClient, n.images = criv1.NewRuntimeServiceClient(n.conn), criv1.NewImageServiceClient(n.conn)
	for deadline := time.Now().Add(patient(30 * time.Second)); ; time.Sleep(10 * time.Millisecond) {
		if _, err = os.Stat(n.socket()); err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			_, err = n.Version(ctx, &criv1.VersionRequest{})
			cancel()
		}
		if err == nil {
			return nil
		}
		select {
		case end := <-n.ended:
			n.ended <- end
			return fmt.Errorf("the daemon ended: %v\n%s", end, n.logTail())
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the daemon does not answer: %w\n%s", err, n.logTail())
		}
	}
}

// dial gives a connection as the kubelet's, but for its patience: the socket of a daemon that was killed is still there
// when the next one starts.
func dial(socket string) (*grpc.ClientConn, error) {
	soon := backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, MaxDelay: 100 * time.Millisecond}
	return grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)), grpc.WithConnectParams(grpc.ConnectParams{Backoff: soon, MinConnectTimeout: time.Second}))
}

// halt ends the daemon with a signal and waits for its end.
func (n *node) halt(signal os.Signal) error {
	n.conn.Close()
	if err := n.daemon.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-n.ended:
		n.ended <- err
		if signal == unix.SIGTERM {
			return err
		}
		return nil
	case <-time.After(patient(30 * time.Second)):
		return fmt.Errorf("the daemon still runs %s after %v", patient(30*time.Second), signal)
	}
}

// keeperPIDs asks who keeper and anchor are.
func (n *node) keeperPIDs() (keeper, anchor int, err error) {
	out, err := n.podwright("keeper", "status")
	if err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Sscanf(out, "keeper %d, anchor %d,", &keeper, &anchor); err != nil {
		return 0, 0, fmt.Errorf("keeper status %q: %w", out, err)
	}
	return keeper, anchor, nil
}

func (n *node) logTail() string { return n.logSince(0) }

// logSince is the end of the daemon's log, from the byte at which a test began.
func (n *node) logSince(mark int64) string {
	raw, _ := os.ReadFile(n.path("podwright.log"))
	return "the end of its log:\n" + string(raw[max(0, min(int(mark), len(raw)), len(raw)-6000):])
}

func (n *node) logMark() int64 {
	info, err := os.Stat(n.path("podwright.log"))
	if err != nil {
		return 0
	}
	return info.Size()
}

// scope is what the leak oracle looks at.
func (n *node) scope() (kerneltest.Scope, error) {
	keeper, anchor, err := n.keeperPIDs()
	return kerneltest.Scope{
		Cgroup: n.group, Dirs: []string{n.path("state"), n.path("run"), n.path("netns"), n.path("addresses")},
		// What images are made of is collected some time after it is of no use.
		SkipFile: func(path string) bool { return path == n.path("state", "images") },
		Programs: map[string]int{"daemon": n.daemon.Process.Pid, "keeper": keeper, "anchor": anchor}, Ancestor: 1,
	}, err
}

// watch compares the node at the end of the test with what it is now.
func (n *node) watch(t *testing.T) {
	t.Helper()
	scope, err := n.scope()
	if err != nil {
		t.Fatal(err)
	}
	before, mark := scope.MustTake(t), n.logMark()
	t.Cleanup(func() {
		// The daemon or keeper may be another one by now.
		if scope, err = n.scope(); err != nil {
			t.Error(err)
		} else {
			scope.Settled(t, before, patient(settleTime))
		}
		if t.Failed() {
			t.Log(n.logSince(mark))
		}
	})
}

// shared is the node of all tests that break nothing.
var shared struct {
	once   sync.Once
	node   *node
	err    error
	before kerneltest.Snapshot // of the machine, without any node
}

// machine is the scope that no node is part of.
func machine() kerneltest.Scope {
	return kerneltest.Scope{Cgroup: os.Getenv(groupVariable), Ancestor: 1}
}

// onNode gives the shared node; the test ends with a look at what it left.
func onNode(t *testing.T) *node {
	t.Helper()
	needNode(t)
	shared.once.Do(func() {
		if shared.before, shared.err = machine().Take(); shared.err == nil {
			shared.node, shared.err = warmNode(options{})
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	shared.node.watch(t)
	return shared.node
}

// ownNode gives a node that is this test's alone.
func ownNode(t *testing.T, o options) *node {
	t.Helper()
	needNode(t)
	before := machine().MustTake(t)
	n, err := warmNode(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.end(); err != nil {
			t.Error(err)
		}
		machine().Settled(t, before, patient(settleTime))
		if t.Failed() {
			t.Log(n.logTail())
		}
	})
	return n
}

func needNode(t *testing.T) {
	t.Helper()
	kerneltest.Root(t)
	if binDir() == "" {
		t.Skip("a build of podwright is missing: make build, or PODWRIGHT_BIN")
	}
}

// warmNode has pulled the test image and had one pod of each network, which makes bridge and groups.
func warmNode(o options) (*node, error) {
	n, err := newNode(o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patient(time.Minute))
	defer cancel()
	ref, err := testImage()
	if err != nil {
		return nil, err
	}
	if _, err := n.images.PullImage(ctx, &criv1.PullImageRequest{Image: &criv1.ImageSpec{Image: ref}}); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, n.logTail())
	}
	resp, err := n.RunPodSandbox(ctx, &criv1.RunPodSandboxRequest{Config: &criv1.PodSandboxConfig{
		Metadata: &criv1.PodSandboxMetadata{Name: "warm", Namespace: "e2e", Uid: "warm"},
		// Nothing of it is executed: init may be one that does a step wrong.
		Linux: &criv1.LinuxPodSandboxConfig{SecurityContext: &criv1.LinuxSandboxSecurityContext{
			NamespaceOptions: &criv1.NamespaceOption{Network: criv1.NamespaceMode_POD, Pid: criv1.NamespaceMode_CONTAINER},
		}},
	}})
	if err == nil {
		_, err = n.StopPodSandbox(ctx, &criv1.StopPodSandboxRequest{PodSandboxId: resp.GetPodSandboxId()})
	}
	if err == nil {
		_, err = n.RemovePodSandbox(ctx, &criv1.RemovePodSandboxRequest{PodSandboxId: resp.GetPodSandboxId()})
	}
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, n.logTail())
	}
	return n, nil
}

// endShared ends the shared node; the machine is then as it was before the first test.
func endShared() error {
	if shared.node == nil {
		return nil
	}
	if err := shared.node.end(); err != nil {
		return err
	}
	var diff []string
	for deadline := time.Now().Add(settleTime); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		after, err := machine().Take()
		if err != nil {
			return err
		}
		if diff = shared.before.Diff(after); len(diff) == 0 {
			return nil
		}
	}
	return errors.New("the machine is not as it was:\n" + strings.Join(diff[:min(len(diff), 40)], "\n"))
}
