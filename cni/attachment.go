package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/utils"
)

// Attachment is one sandbox's place on the networks: all that DEL needs, whatever
// has become of the configuration by then. The caller stores it as JSON in its own
// record and looks at it through the methods only.
//
//	Plan ──> planned (no result) ──Add──> attached (results) ──Detach──> gone
//	                                └─ a failed Add leaves results up to the failure
type Attachment struct {
	SandboxID string           `json:"sandboxID"`
	NetnsPath string           `json:"netnsPath"`
	Networks  []attachedMember `json:"networks"`
}

// attachedMember is the attachment to one network. Config is the configuration
// list as it was used; Result is what ADD answered, in the list's CNI version.
type attachedMember struct {
	Network      string                     `json:"network"`
	IfName       string                     `json:"ifName"`
	Config       json.RawMessage            `json:"config"`
	Args         [][2]string                `json:"args"`
	Capabilities map[string]json.RawMessage `json:"capabilities,omitempty"`
	Result       json.RawMessage            `json:"result,omitempty"`
}

// DefaultInterface is the one whose addresses are the pod's.
const DefaultInterface = "eth0"

func interfaceName(i int) string { return fmt.Sprintf("eth%d", i) }

// IPs are the pod's addresses in the order the plugins gave them: the first is
// the pod's ip, the others its additional ips (B52). None before ADD has answered.
func (a *Attachment) IPs() []string {
	if a == nil || len(a.Networks) == 0 {
		return nil
	}
	member := a.Networks[0]
	result, err := member.result()
	if err != nil || result == nil {
		return nil
	}
	var inside, all []string
	for _, ip := range result.IPs {
		if ip == nil {
			continue
		}
		address, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			continue
		}
		text := address.Unmap().String()
		all = append(all, text)
		if ofSandbox(result.Interfaces, ip.Interface, member.IfName) {
			inside = append(inside, text)
		}
	}
	// A plugin that describes its interfaces otherwise still means some address.
	if len(inside) == 0 {
		return all
	}
	return inside
}

// ofSandbox: an address may belong to an interface on the node's side or to one
// that a meta plugin added. One without an interface is the sandbox's.
func ofSandbox(interfaces []*types100.Interface, index *int, ifName string) bool {
	if index == nil || *index < 0 || *index >= len(interfaces) || interfaces[*index] == nil {
		return true
	}
	return interfaces[*index].Sandbox != "" && interfaces[*index].Name == ifName
}

// Inert names the capabilities that were asked for by the pod and that no plugin
// of its networks takes: nothing here can enforce those.
func (a *Attachment) Inert() []string {
	if a == nil {
		return nil
	}
	var inert []string
	for _, capability := range []string{capPortMappings, capBandwidth, capDNS, capAliases} {
		asked, taken := false, false
		for _, member := range a.Networks {
			list, err := libcni.NetworkConfFromBytes(member.Config)
			if err != nil {
				continue
			}
			_, wanted := member.Capabilities[capability]
			asked = asked || wanted
			taken = taken || (&network{list: list}).advertises(capability)
		}
		if asked && !taken {
			inert = append(inert, capability)
		}
	}
	return inert
}

// attached says whether any ADD ever answered (B9).
func (a *Attachment) attached() bool {
	for _, member := range a.Networks {
		if len(member.Result) > 0 {
			return true
		}
	}
	return false
}

// check is done before anything of a stored attachment is used: names become
// paths of the cache and executables.
func (a *Attachment) check() error {
	if err := utils.ValidateContainerID(a.SandboxID); err != nil {
		return fmt.Errorf("attachment of %.140q: %s", a.SandboxID, err.Msg)
	}
	for i := range a.Networks {
		if _, err := a.Networks[i].conf(); err != nil {
			return fmt.Errorf("attachment of %s: %w", a.SandboxID, err)
		}
	}
	return nil
}

// conf is the member's configuration list, checked.
func (m *attachedMember) conf() (*libcni.NetworkConfigList, error) {
	if err := utils.ValidateInterfaceName(m.IfName); err != nil {
		return nil, fmt.Errorf("interface %.100q: %s", m.IfName, err.Msg)
	}
	list, err := libcni.NetworkConfFromBytes(m.Config)
	if err != nil {
		return nil, bounded(err)
	}
	if err := checkList(list); err != nil {
		return nil, err
	}
	if list.Name != m.Network {
		return nil, fmt.Errorf("configuration of network %q, want %.140q", list.Name, m.Network)
	}
	return list, nil
}

// result is nil where ADD has not answered.
func (m *attachedMember) result() (*types100.Result, error) {
	if len(m.Result) == 0 {
		return nil, nil
	}
	if err := checkResult(m.Result); err != nil {
		return nil, err
	}
	result, err := create.CreateFromBytes(m.Result)
	if err != nil {
		return nil, bounded(err)
	}
	latest, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, bounded(err)
	}
	if latest == nil {
		return nil, errors.New("result is empty")
	}
	return latest, nil
}

// checkResult refuses what libcni would stumble over: it converts the elements of
// these lists without looking whether there are any.
func checkResult(data []byte) error {
	if !isObject(data) {
		return errors.New("result is not an object")
	}
	var lists struct {
		Interfaces []*json.RawMessage `json:"interfaces"`
		IPs        []*json.RawMessage `json:"ips"`
		Routes     []*json.RawMessage `json:"routes"`
	}
	if err := json.Unmarshal(data, &lists); err != nil {
		return bounded(err)
	}
	for _, list := range [][]*json.RawMessage{lists.Interfaces, lists.IPs, lists.Routes} {
		if slices.Contains(list, nil) {
			return errors.New("result has an element that is null")
		}
	}
	return nil
}

func (m *attachedMember) runtimeConf(sandboxID, netnsPath string) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{ContainerID: sandboxID, NetNS: netnsPath, IfName: m.IfName, Args: m.Args}
	rt.CapabilityArgs = make(map[string]any, len(m.Capabilities))
	for capability, value := range m.Capabilities {
		rt.CapabilityArgs[capability] = value
	}
	return rt
}
