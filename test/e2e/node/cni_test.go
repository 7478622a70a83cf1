package node

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/kerneltest"
)

// A plugin that does not do its work is a clear error, soon, and the sandbox's every part is given back.
func TestBrokenPluginsAreClearErrors(t *testing.T) {
	n, cni := pluginNode(t)
	n.watch(t)
	for how, test := range map[string]struct {
		code codes.Code
		word string
	}{
		"fail": {codes.Unknown, "no luck today"}, "hang": {codes.DeadlineExceeded, "fake"}, "rubbish": {codes.Unknown, "fake"},
		"silent": {codes.Unknown, "fake"}, "die": {codes.Unknown, "killed"},
	} {
		t.Run(how, func(t *testing.T) {
			cni.behave("ADD", how)
			begin, dels := time.Now(), len(cni.calls("DEL"))
			_, err := n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: n.podConfig(ownNetwork)})
			wantError(t, err, test.code, "attach network", test.word)
			if err != nil && len(err.Error()) > 4000 {
				t.Errorf("the error has %d bytes: what a plugin prints is not to be repeated at length", len(err.Error()))
			}
			if took := time.Since(begin); took > patient(15*time.Second) {
				t.Errorf("it took %s, want no more than the plugin's deadline of 4 s and some", took)
			}
			if len(cni.calls("DEL")) <= dels {
				t.Error("no DEL after the failed ADD")
			}
			if list, err := n.ListPodSandbox(ctx(t), &criv1.ListPodSandboxRequest{}); err != nil || len(list.GetItems()) != 0 {
				t.Errorf("sandboxes afterwards: got %v, %v, want none", list, err)
			}
		})
	}
	all, err := kerneltest.Descendants(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if strings.HasPrefix(p.Command(), "sleep 1000") {
			t.Errorf("the plugin that hung still runs: %d", p.PID)
		}
	}
}

// A plugin that hangs holds up its own pod alone.
func TestHangingPluginHoldsUpNobodyElse(t *testing.T) {
	n, cni := pluginNode(t)
	n.watch(t)
	cni.behave("ADD", "hang")
	answer := make(chan error, 1)
	go func() {
		_, err := n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: n.podConfig(ownNetwork)})
		answer <- err
	}()
	cni.waitForCall("ADD")
	begin := time.Now()
	p := n.pod(t)
	if got := p.output(nil, "echo", "lively"); got != "lively\n" {
		t.Errorf("got %q", got)
	}
	if _, err := n.ListPodSandbox(ctx(t), &criv1.ListPodSandboxRequest{}); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > patient(3*time.Second) {
		t.Errorf("a pod beside it took %s", took)
	}
	if err := <-answer; err == nil {
		t.Error("the pod of the hanging plugin: got success")
	}
}

// DEL that fails keeps the sandbox, not ready, until a later Stop gets through (B8).
func TestFailedDetachKeepsTheSandboxListedB8B9(t *testing.T) {
	n, cni := pluginNode(t)
	n.watch(t)
	p := n.pod(t, ownNetwork)
	cni.behave("DEL", "fail")
	_, err := n.StopPodSandbox(ctx(t), &criv1.StopPodSandboxRequest{PodSandboxId: p.id})
	wantError(t, err, codes.Unknown, p.id, "no luck today")
	if got := n.sandboxState(t, p.id); got != sandboxNotReady {
		t.Errorf("after the failed stop: got %v, want not ready", got)
	}
	_, err = n.RemovePodSandbox(ctx(t), &criv1.RemovePodSandboxRequest{PodSandboxId: p.id})
	wantError(t, err, codes.Unknown, p.id, "no luck today")
	// The same where the sandbox failed after ADD, here for want of the interface that the plugin did not make.
	_, err = n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: n.podConfig(ownNetwork, func(c *criv1.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.conf.eth0.log_martians": "1"}
	})})
	wantError(t, err, codes.InvalidArgument, "log_martians")
	// An ADD without any result owes nothing, whatever DEL says (B9).
	cni.behave("ADD", "fail")
	_, err = n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: n.podConfig(ownNetwork)})
	wantError(t, err, codes.Unknown, "no luck today")
	list, err := n.ListPodSandbox(ctx(t), &criv1.ListPodSandboxRequest{})
	if err != nil || len(list.GetItems()) != 2 {
		t.Errorf("sandboxes: got %v, %v, want both that owe a DEL", list, err)
	}
	cni.behave("ADD", "")
	cni.behave("DEL", "")
	for _, s := range list.GetItems() {
		if s.GetState() != sandboxNotReady {
			t.Errorf("%s: got %v, want not ready", s.GetId(), s.GetState())
		}
		n.removePod(t, s.GetId())
	}
}

func TestPluginGetsWhatKubernetesPromises(t *testing.T) {
	n, cni := pluginNode(t)
	if _, err := n.UpdateRuntimeConfig(ctx(t), &criv1.UpdateRuntimeConfigRequest{RuntimeConfig: &criv1.RuntimeConfig{NetworkConfig: &criv1.NetworkConfig{PodCidr: "10.77.0.0/24"}}}); err != nil {
		t.Fatal(err)
	}
	n.watch(t) // not before: the node keeps its pod CIDR
	p := n.pod(t, ownNetwork, func(c *criv1.PodSandboxConfig) {
		c.PortMappings = []*criv1.PortMapping{{HostPort: 8080, ContainerPort: 80}, {HostPort: 0, ContainerPort: 90}, {HostPort: 8053, ContainerPort: 53, Protocol: criv1.Protocol_UDP, HostIp: "127.0.0.1"}}
		c.DnsConfig = &criv1.DNSConfig{Servers: []string{"10.1.1.1"}, Searches: []string{"x.example"}}
		c.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "20M"}
	})
	meta := p.config.GetMetadata()
	for _, want := range []string{"id=" + p.id, "if=eth0", "netns=" + n.path("netns", p.id), "K8S_POD_NAME=" + meta.GetName(), "K8S_POD_NAMESPACE=" + meta.GetNamespace(),
		"K8S_POD_UID=" + meta.GetUid(), "K8S_POD_INFRA_CONTAINER_ID=" + p.id, "IgnoreUnknown="} {
		if call := cni.calls("ADD")[0]; !strings.Contains(call, want) {
			t.Errorf("CNI ADD %q: want %s in it", call, want)
		}
	}
	var conf struct {
		RuntimeConfig struct {
			PortMappings []map[string]any `json:"portMappings"`
			Bandwidth    map[string]any   `json:"bandwidth"`
			DNS          map[string]any   `json:"dns"`
			IPRanges     [][]map[string]any
		} `json:"runtimeConfig"`
	}
	if err := json.Unmarshal([]byte(cni.conf("ADD")), &conf); err != nil {
		t.Fatal(err)
	}
	got := conf.RuntimeConfig
	if len(got.PortMappings) != 2 || got.PortMappings[0]["hostPort"] != 8080.0 || got.PortMappings[1]["hostIP"] != "127.0.0.1" || got.PortMappings[1]["protocol"] != "udp" {
		t.Errorf("port mappings: got %v, want those with a host port", got.PortMappings)
	}
	if got.Bandwidth["ingressRate"] != 1e7 || got.Bandwidth["egressRate"] != 2e7 {
		t.Errorf("bandwidth: got %v", got.Bandwidth)
	}
	if text, _ := json.Marshal(got.DNS); !strings.Contains(string(text), "10.1.1.1") || !strings.Contains(string(text), "x.example") {
		t.Errorf("dns: got %s", text)
	}
	if text, _ := json.Marshal(got.IPRanges); !strings.Contains(string(text), "10.77.0.0/24") {
		t.Errorf("ipRanges: got %s, want the node's pod CIDR", text)
	}
}

// A pod on the node's network has nothing for plugins to do, host ports neither (B55).
func TestHostNetworkPodsCallNoPluginB55(t *testing.T) {
	n, cni := pluginNode(t)
	n.watch(t)
	n.pod(t, func(c *criv1.PodSandboxConfig) {
		c.PortMappings = []*criv1.PortMapping{{HostPort: 8080, ContainerPort: 80}}
	})
	if calls := append(cni.calls("ADD"), cni.calls("DEL")...); len(calls) != 0 {
		t.Errorf("CNI calls: got %q, want none", calls)
	}
}

// The order of addresses is the plugins' and survives a restart (B52).
func TestAddressesKeepTheirOrderB52(t *testing.T) {
	n, _ := pluginNode(t)
	n.watch(t)
	p := n.pod(t, ownNetwork)
	check := func(when string) {
		s, err := n.PodSandboxStatus(ctx(t), &criv1.PodSandboxStatusRequest{PodSandboxId: p.id})
		if err != nil {
			t.Fatal(err)
		}
		ips := []string{s.GetStatus().GetNetwork().GetIp()}
		for _, ip := range s.GetStatus().GetNetwork().GetAdditionalIps() {
			ips = append(ips, ip.GetIp())
		}
		if got, want := strings.Join(ips, " "), "10.9.0.7 fd09::7 10.9.0.8"; got != want {
			t.Errorf("%s: got %s, want %s", when, got, want)
		}
	}
	check("at first")
	n.restart(t, os.Kill, nil)
	check("after a restart")
}

func networkReady(t *testing.T, n *node) bool {
	t.Helper()
	s, err := n.Status(ctx(t), &criv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.GetStatus().GetConditions() {
		if c.GetType() == criv1.NetworkReady {
			if c.GetStatus() != (c.GetReason() == "") {
				t.Errorf("condition %v: want a reason where it is false", c)
			}
			return c.GetStatus()
		}
	}
	t.Fatal("no NetworkReady condition")
	return false
}

// NetworkReady follows the configuration directory within seconds; pods on the node's network run regardless (B50).
func TestNetworkReadyFollowsTheConfigurationB50(t *testing.T) {
	n, _ := pluginNode(t)
	n.watch(t)
	conf, away := n.path("cni", "10-fake.conflist"), n.path("away")
	if !networkReady(t, n) {
		t.Fatal("not ready with a configuration")
	}
	flips := func(want bool, what string, change func() error) {
		t.Helper()
		if err := change(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 5*time.Second, what, func() bool { return networkReady(t, n) == want })
	}
	flips(false, "not ready after the file went", func() error { return os.Rename(conf, away) })
	_, err := n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: n.podConfig(ownNetwork)})
	wantError(t, err, codes.Unavailable, "network")
	if got := n.pod(t).output(nil, "echo", "runs"); got != "runs\n" {
		t.Errorf("a hostNetwork pod: got %q", got)
	}
	flips(true, "ready after it came back", func() error { return os.Rename(away, conf) })
	flips(false, "not ready with rubbish", func() error { return os.WriteFile(conf, []byte("{ not json"), 0o644) })
	flips(true, "ready after it was mended", func() error { return os.WriteFile(conf, []byte(pluginConf), 0o644) })
	n.pod(t, ownNetwork)
}

// A real bridge: the pod reaches the node and the other way round, its loopback is up without a plugin for it, and a
// pod on the node's network sees the node's interfaces (B51).
func TestPodNetworkB51(t *testing.T) {
	n := onNode(t)
	p := n.pod(t, ownNetwork)
	s, err := n.PodSandboxStatus(ctx(t), &criv1.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	ip := s.GetStatus().GetNetwork().GetIp()
	c := p.sleeper(nil)
	links := c.exec("ip", "-o", "addr")
	for _, want := range []string{"127.0.0.1/8", ip + "/16", "eth0"} {
		if !strings.Contains(links, want) {
			t.Errorf("interfaces: got %q, want %s", links, want)
		}
	}
	c.exec("ping", "-c", "1", "-W", "5", "10.88.0.1")
	other := n.pod(t, ownNetwork).sleeper(nil)
	other.exec("ping", "-c", "1", "-W", "5", ip)
	if got := n.pod(t).sleeper(nil).exec("ip", "-o", "link"); !strings.Contains(got, n.name) {
		t.Errorf("hostNetwork: got %q, want the node's bridge %s in it", got, n.name)
	}
	host, err := n.PodSandboxStatus(ctx(t), &criv1.PodSandboxStatusRequest{PodSandboxId: n.pod(t).id})
	if err != nil || host.GetStatus().GetNetwork().GetIp() != "" {
		t.Errorf("hostNetwork status: got %v, %v, want no address: the kubelet knows the node's", host, err)
	}
}
