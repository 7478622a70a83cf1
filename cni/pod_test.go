package cni

import (
	"encoding/json"
	"net/netip"
	"testing"
)

// B53
func TestCapabilitiesOfAPod(t *testing.T) {
	p := pod("sb1", "/run/netns/sb1")
	p.CgroupPath = "/kubepods/pod1"
	p.Annotations = map[string]string{ingressAnnotation: "10M", egressAnnotation: "1.5Gi"}
	p.Aliases = []string{"web"}
	p.DNS = DNS{Servers: []string{"10.96.0.10"}, Searches: []string{"shop.svc"}, Options: []string{"ndots:5"}}
	p.PortMappings = []PortMapping{
		{HostPort: 8080, ContainerPort: 80, Protocol: "TCP"},
		{HostPort: 0, ContainerPort: 81},
		{HostPort: 53, ContainerPort: 53, Protocol: "udp", HostIP: "192.0.2.1"},
	}
	got, err := p.capabilities([]netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00::/64")})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"portMappings":                      `[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":"192.0.2.1"}]`,
		"bandwidth":                         `{"ingressRate":10000000,"ingressBurst":4294967295,"egressRate":1610612736,"egressBurst":4294967295}`,
		"dns":                               `{"servers":["10.96.0.10"],"searches":["shop.svc"],"options":["ndots:5"]}`,
		"ipRanges":                          `[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd00::/64"}]]`,
		"aliases":                           `["web"]`,
		"cgroupPath":                        `"/kubepods/pod1"`,
		"io.kubernetes.cri.pod-annotations": `{"kubernetes.io/egress-bandwidth":"1.5Gi","kubernetes.io/ingress-bandwidth":"10M"}`,
	}
	for capability, value := range want {
		if string(got[capability]) != value {
			t.Errorf("%s:\ngot  %s\nwant %s", capability, got[capability], value)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %d capabilities, want %d", len(got), len(want))
	}
	if none, err := pod("sb1", "/x").capabilities(nil); err != nil || len(none) != 0 {
		t.Errorf("of a plain pod: got %v, %v", none, err)
	}
}

func TestArgsOfAPod(t *testing.T) {
	args, err := pod("sb1", "/x").args()
	if err != nil {
		t.Fatal(err)
	}
	data, _ := json.Marshal(args)
	const want = `[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","web-0"],["K8S_POD_INFRA_CONTAINER_ID","sb1"],["K8S_POD_UID","u-1"]]`
	if string(data) != want {
		t.Errorf("got %s", data)
	}
	for _, name := range []string{"a;K8S_POD_NAMESPACE=kube-system", "a=b", "a\nb", "a\x00"} {
		p := pod("sb1", "/x")
		p.Name = name
		if _, err := p.args(); err == nil {
			t.Errorf("name %q is accepted", name)
		}
	}
}

func TestImpossiblePortMappingsAreRefused(t *testing.T) {
	for _, m := range []PortMapping{
		{HostPort: 70000, ContainerPort: 80}, {HostPort: -1, ContainerPort: 80}, {HostPort: 80, ContainerPort: 0},
		{HostPort: 80, ContainerPort: 65536}, {HostPort: 80, ContainerPort: 80, Protocol: "icmp"}, {HostPort: 80, ContainerPort: 80, HostIP: "localhost"},
	} {
		p := pod("sb1", "/x")
		p.PortMappings = []PortMapping{m}
		if _, err := p.capabilities(nil); err == nil {
			t.Errorf("%+v is accepted", m)
		}
	}
}

func TestBandwidthAnnotations(t *testing.T) {
	cases := []struct {
		text string
		want uint64 // 0: refused
	}{
		{"1000", 1000}, {"1k", 1000}, {"1Ki", 1024}, {"10M", 10_000_000}, {"1Mi", 1 << 20}, {"1.5k", 1500}, {"1G", 1_000_000_000},
		{"1P", 1_000_000_000_000_000}, {"1e6", 1_000_000}, {"2E3", 2000}, {"1e+4", 10_000}, {"5000000e-3", 5000}, {"1500000m", 1500},
		{"1000.1", 1001}, {".5M", 500_000}, {"+2k", 2000}, {"2.k", 2000},
		{"999", 0}, {"2P", 0}, {"1E", 0}, {"1Ei", 0}, {"1e99", 0}, {"", 0}, {"-1M", 0}, {"10 M", 0}, {"M", 0}, {"1MB", 0}, {"0x10", 0}, {"1e", 0}, {"1e6k", 0}, {".", 0}, {"١k", 0},
	}
	for _, c := range cases {
		got, err := rate(map[string]string{ingressAnnotation: c.text}, ingressAnnotation)
		if got != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("%q: got %d, %v; want %d", c.text, got, err, c.want)
		}
	}
}
