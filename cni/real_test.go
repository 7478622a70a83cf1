package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// serve is what the test binary does when executed as "serve <address>...": it
// answers each connection with the address that it was reached from.
func serve(addresses []string) {
	for _, address := range addresses {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		// Owner: the process, which ends by being killed.
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(conn, "hello from ", listener.Addr())
				_ = conn.Close()
			}
		}()
	}
	fmt.Println("ready")
	time.Sleep(time.Minute)
}

// startServer runs serve in a network namespace until the test's end.
func startServer(t *testing.T, netnsPath string, addresses ...string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"--net=" + netnsPath, "--", self, "serve"}, addresses...)
	cmd := exec.Command("nsenter", args...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	answer := make([]byte, 200)
	if count, _ := stdout.Read(answer); !strings.HasPrefix(string(answer[:count]), "ready") {
		t.Fatalf("server: %q", answer[:count])
	}
}

func ask(address string) (string, error) {
	conn, err := net.DialTimeout("tcp", address, 2*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

// realNode has Debian's plugins and a dual-stack bridge with host ports.
func realNode(t *testing.T, bridge string) *node {
	t.Helper()
	needRoot(t)
	n := newNode(t)
	n.cfg.BinDirs = []string{"/opt/cni/bin", "/usr/lib/cni"}
	for _, plugin := range []string{"bridge", "host-local", "portmap", "bandwidth"} {
		if _, err := (&runner{}).FindInPath(plugin, n.cfg.BinDirs); err != nil {
			t.Skip("needs the plugins of Debian's containernetworking-plugins: ", err)
		}
	}
	n.conf("10-bridge.conflist", `{
  "cniVersion": "1.0.0",
  "name": "podnet",
  "plugins": [
    {"type": "bridge", "bridge": "`+bridge+`", "isGateway": true, "ipMasq": false,
     "capabilities": {"ipRanges": true},
     "ipam": {"type": "host-local", "dataDir": "`+filepath.Join(n.cfg.CacheDir, "ipam")+`",
       "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
  ]}`)
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", bridge).Run() })
	return n
}

// stock is what a DEL that does too little leaves.
func stock(t *testing.T, n *node) string {
	t.Helper()
	var out strings.Builder
	for _, args := range [][]string{
		{"ip", "-o", "link"}, {"iptables-save", "-t", "nat"}, {"ip6tables-save", "-t", "nat"},
		{"find", n.cfg.CacheDir, "-type", "f", "-not", "-name", "last_reserved_ip*", "-not", "-name", "lock"},
	} {
		text, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", args, err, text)
		}
		for _, line := range strings.Split(string(text), "\n") {
			if strings.Contains(line, ": veth") || strings.Contains(line, "CNI-DN-") || strings.HasPrefix(line, "/") {
				out.WriteString(line + "\n")
			}
		}
	}
	return out.String()
}

// B52, B53, B56: address ranges from the kubelet, both families in order, and a
// host port that is reachable from the node's side.
func TestRealBridgeDualStackWithHostPorts(t *testing.T) {
	n := realNode(t, "pwtest0")
	network := n.ready()
	if err := network.SetPodCIDR("10.88.7.0/24,fd00:88:7::/64"); err != nil {
		t.Fatal(err)
	}
	before := stock(t, n)
	ctx := context.Background()
	sandbox := pod("sb1", netns(t, "real1"))
	sandbox.PortMappings = []PortMapping{{HostPort: 18080, ContainerPort: 8080, Protocol: "TCP"}, {HostPort: 0, ContainerPort: 8081}}
	begin := time.Now()
	attached, err := network.Attach(ctx, sandbox)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ADD of bridge, host-local, portmap: %s", time.Since(begin))
	if got := attached.IPs(); !slices.Equal(got, []string{"10.88.7.2", "fd00:88:7::2"}) {
		t.Errorf("addresses: got %v", got)
	}
	if inert := attached.Inert(); len(inert) > 0 {
		t.Errorf("inert: got %v", inert)
	}
	startServer(t, sandbox.NetnsPath, "[::]:8080") // both families
	for _, address := range []string{
		"10.88.7.2:8080", "[fd00:88:7::2]:8080", // the pod itself
		"10.88.7.1:18080", "127.0.0.1:18080", // the node's ports
	} {
		got := ""
		for range 30 { // IPv6: until duplicate address detection is through
			if got, err = ask(address); err == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if !strings.HasPrefix(got, "hello") {
			t.Errorf("%s: got %q, %v", address, got, err)
		}
	}
	// Through JSON, as the caller's record does it.
	data, err := json.Marshal(attached)
	if err != nil {
		t.Fatal(err)
	}
	stored := &Attachment{}
	if err := json.Unmarshal(data, stored); err != nil {
		t.Fatal(err)
	}
	if err := network.Detach(ctx, sandbox, stored); err != nil {
		t.Fatal(err)
	}
	if got := stock(t, n); got != before {
		t.Errorf("left behind:\n%s", got)
	}
	if err := network.Detach(ctx, sandbox, stored); err != nil {
		t.Errorf("second DEL: %v", err)
	}
}

// B8, B10: DEL frees the address and the port when neither the namespace nor the
// configuration nor libcni's cache is there any more.
func TestRealDelAfterRebootAndChangedConfiguration(t *testing.T) {
	n := realNode(t, "pwtest1")
	network := n.ready()
	if err := network.SetPodCIDR("10.88.8.0/30"); err != nil { // one address
		t.Fatal(err)
	}
	before := stock(t, n)
	ctx := context.Background()
	sandbox := pod("sb1", netns(t, "real2"))
	sandbox.PortMappings = []PortMapping{{HostPort: 18081, ContainerPort: 8080, Protocol: "tcp"}}
	attached, err := network.Attach(ctx, sandbox)
	if err != nil {
		t.Fatal(err)
	}
	second := pod("sb2", netns(t, "real3"))
	failed, err := network.Attach(ctx, second)
	wantError(t, err, `attach network "podnet": plugin bridge: `, "no IP addresses available")
	if err := network.Detach(ctx, second, failed); err != nil {
		t.Errorf("DEL after the failed ADD: %v", err)
	}
	if out, err := exec.Command("ip", "netns", "del", "real2").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.RemoveAll(network.resultsDir()); err != nil {
		t.Fatal(err)
	}
	n.conf("10-bridge.conflist", `{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"none"}]}`)
	awaitStatus(t, network, "none")
	if err := network.Detach(ctx, sandbox, attached); err != nil {
		t.Fatal(err)
	}
	for range 100 { // the veth goes with its namespace, asynchronously
		if stock(t, n) == before {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("left behind:\n%s", stock(t, n))
}
