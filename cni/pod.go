package cni

import (
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"regexp"
	"strings"
)

// Pod is what plugins are told about a sandbox.
type Pod struct {
	SandboxID string // CNI_CONTAINERID
	Name      string // of the Kubernetes pod, as the two below
	Namespace string
	UID       string

	// The pinned network namespace. Detach takes "" for one that is gone (B10).
	NetnsPath string

	CgroupPath   string // "" where plugins are not told
	Annotations  map[string]string
	Aliases      []string // names for the sandbox's address, for plugins with a DNS server
	PortMappings []PortMapping
	DNS          DNS
}

// PortMapping opens a port of the node for the sandbox. The field names are those
// of the portMappings capability (CONVENTIONS.md).
type PortMapping struct {
	HostPort      int32  `json:"hostPort"` // 0 maps nothing
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp, udp or sctp, in any case
	HostIP        string `json:"hostIP,omitempty"`
}

// DNS is the dns capability.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Capabilities that podwright has arguments for (B53).
const (
	capPortMappings = "portMappings"
	capBandwidth    = "bandwidth"
	capDNS          = "dns"
	capIPRanges     = "ipRanges"
	capAliases      = "aliases"
	capCgroupPath   = "cgroupPath"
	// The key that containerd and CRI-O give the pod's annotations under.
	capAnnotations = "io.kubernetes.cri.pod-annotations"
)

// args are the K8S_POD_* words of CNI_ARGS. A ';' in a value would begin another
// word: a pod could give itself another namespace towards a policy plugin.
func (p Pod) args() ([][2]string, error) {
	args := [][2]string{
		// Plugins refuse words they don't know unless told not to.
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", p.Namespace},
		{"K8S_POD_NAME", p.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", p.SandboxID},
		{"K8S_POD_UID", p.UID},
	}
	for _, arg := range args {
		if strings.ContainsAny(arg[1], ";=\n\x00") {
			return nil, fmt.Errorf("%s %.100q: must not contain ';' or '='", arg[0], arg[1])
		}
	}
	return args, nil
}

// capabilities are the arguments by capability; libcni gives each plugin those
// that its configuration says it takes.
func (p Pod) capabilities(podCIDR []netip.Prefix) (map[string]json.RawMessage, error) {
	values := map[string]any{}
	mappings, err := p.portMappings()
	if err != nil {
		return nil, err
	}
	if len(mappings) > 0 {
		values[capPortMappings] = mappings
	}
	limits, err := bandwidthOf(p.Annotations)
	if err != nil {
		return nil, err
	}
	if limits != nil {
		values[capBandwidth] = limits
	}
	if len(p.DNS.Servers)+len(p.DNS.Searches)+len(p.DNS.Options) > 0 {
		values[capDNS] = p.DNS
	}
	if len(podCIDR) > 0 {
		// One set per range: an address of each, so that dual stack is both.
		var sets [][]ipRange
		for _, prefix := range podCIDR {
			sets = append(sets, []ipRange{{Subnet: prefix.String()}})
		}
		values[capIPRanges] = sets
	}
	if len(p.Aliases) > 0 {
		values[capAliases] = p.Aliases
	}
	if p.CgroupPath != "" {
		values[capCgroupPath] = p.CgroupPath
	}
	if len(p.Annotations) > 0 {
		values[capAnnotations] = p.Annotations
	}
	return encode(values)
}

type ipRange struct {
	Subnet string `json:"subnet"`
}

func encode(values map[string]any) (map[string]json.RawMessage, error) {
	encoded := make(map[string]json.RawMessage, len(values))
	for capability, value := range values {
		data, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("capability %s: %w", capability, err)
		}
		encoded[capability] = data
	}
	return encoded, nil
}

func (p Pod) portMappings() ([]PortMapping, error) {
	var mappings []PortMapping
	for _, m := range p.PortMappings {
		if m.HostPort == 0 {
			continue
		}
		m.Protocol = strings.ToLower(m.Protocol)
		if m.Protocol == "" {
			m.Protocol = "tcp"
		}
		if m.Protocol != "tcp" && m.Protocol != "udp" && m.Protocol != "sctp" {
			return nil, fmt.Errorf("port mapping %d: protocol %.20q: not tcp, udp or sctp", m.HostPort, m.Protocol)
		}
		if m.HostPort < 0 || m.HostPort > math.MaxUint16 || m.ContainerPort < 1 || m.ContainerPort > math.MaxUint16 {
			return nil, fmt.Errorf("port mapping %d to %d: not ports", m.HostPort, m.ContainerPort)
		}
		if m.HostIP != "" {
			if _, err := netip.ParseAddr(m.HostIP); err != nil {
				return nil, fmt.Errorf("port mapping %d: host address %.50q: not an IP address", m.HostPort, m.HostIP)
			}
		}
		mappings = append(mappings, m)
	}
	return mappings, nil
}

// Annotations by which the bandwidth of a pod is limited.
const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
)

// bandwidth is the bandwidth capability: bits per second and bits.
type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// maxBurst is what the field sends where Kubernetes has no word for it: a burst
// is unlimited, as far as the bandwidth plugin takes it.
const maxBurst = math.MaxUint32

func bandwidthOf(annotations map[string]string) (*bandwidth, error) {
	ingress, err := rate(annotations, ingressAnnotation)
	if err != nil {
		return nil, err
	}
	egress, err := rate(annotations, egressAnnotation)
	if err != nil {
		return nil, err
	}
	if ingress == 0 && egress == 0 {
		return nil, nil
	}
	limits := &bandwidth{IngressRate: ingress, EgressRate: egress}
	if ingress > 0 {
		limits.IngressBurst = maxBurst
	}
	if egress > 0 {
		limits.EgressBurst = maxBurst
	}
	return limits, nil
}

// quantity is the grammar of k8s.io/apimachinery/pkg/api/resource, unsigned.
var quantity = regexp.MustCompile(`^\+?([0-9]{1,19}(?:\.[0-9]{0,19})?|\.[0-9]{1,19})(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?[0-9]{1,2}))?$`)

// Limits of the Kubernetes API (validateBandwidthIsReasonable), bits per second.
var (
	minRate = big.NewRat(1_000, 1)
	maxRate = big.NewRat(1_000_000_000_000_000, 1)
)

// rate is 0 where there is no annotation. A fraction of a bit is rounded up.
func rate(annotations map[string]string, key string) (uint64, error) {
	text, ok := annotations[key]
	if !ok {
		return 0, nil
	}
	match := quantity.FindStringSubmatch(text)
	if match == nil {
		return 0, fmt.Errorf("annotation %s: %.100q: not a quantity", key, text)
	}
	value, ok := new(big.Rat).SetString(match[1])
	if !ok {
		return 0, fmt.Errorf("annotation %s: %.100q: not a quantity", key, text)
	}
	value.Mul(value, scale(match[2], match[3]))
	if value.Cmp(minRate) < 0 || value.Cmp(maxRate) > 0 {
		return 0, fmt.Errorf("annotation %s: %s: not within 1k and 1P bits per second", key, text)
	}
	bits, remainder := new(big.Int).QuoRem(value.Num(), value.Denom(), new(big.Int))
	if remainder.Sign() > 0 {
		bits.Add(bits, big.NewInt(1))
	}
	return bits.Uint64(), nil
}

func scale(suffix, exponent string) *big.Rat {
	power := func(base, exp int64) *big.Rat {
		return new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(base), big.NewInt(exp), nil))
	}
	if exponent != "" {
		exp, _ := new(big.Int).SetString(strings.TrimPrefix(exponent, "+"), 10)
		if exp.Sign() < 0 {
			return new(big.Rat).Inv(power(10, -exp.Int64()))
		}
		return power(10, exp.Int64())
	}
	if binary, ok := strings.CutSuffix(suffix, "i"); ok {
		return power(1024, int64(strings.Index("KMGTPE", binary)+1))
	}
	switch i := strings.Index("num", suffix); {
	case suffix == "":
		return big.NewRat(1, 1)
	case i >= 0:
		return new(big.Rat).Inv(power(1000, int64(3-i)))
	}
	return power(1000, int64(strings.Index("kMGTPE", suffix)+1))
}
