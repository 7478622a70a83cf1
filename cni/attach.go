package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// Plan decides, from memory alone, what Add will do for a sandbox. Stored before
// Add runs, it lets a teardown after a crash undo an ADD that nobody saw the end
// of, even if the configuration has changed since.
func (n *Network) Plan(pod Pod) (*Attachment, error) {
	if pod.NetnsPath == "" {
		return nil, errors.New("attach network: no network namespace")
	}
	return n.plan(pod)
}

func (n *Network) plan(pod Pod) (*Attachment, error) {
	now := n.state.Load()
	if len(now.networks) == 0 {
		return nil, fmt.Errorf("attach network: %w", now.err)
	}
	if err := utils.ValidateContainerID(pod.SandboxID); err != nil {
		return nil, fmt.Errorf("attach network: sandbox id %.140q: %s", pod.SandboxID, err.Msg)
	}
	args, err := pod.args()
	if err != nil {
		return nil, fmt.Errorf("attach network: %w", err)
	}
	var podCIDR []netip.Prefix
	if known := n.podCIDR.Load(); known != nil {
		podCIDR = *known
	}
	capabilities, err := pod.capabilities(podCIDR)
	if err != nil {
		return nil, fmt.Errorf("attach network: %w", err)
	}
	planned := &Attachment{SandboxID: pod.SandboxID, NetnsPath: pod.NetnsPath}
	for i, net := range now.networks {
		member := attachedMember{Network: net.name, IfName: interfaceName(i), Config: net.list.Bytes, Args: args}
		if i == 0 {
			member.Capabilities = capabilities
		} else {
			// Ports, names and limits are the pod's on its first network.
			member.Capabilities = only(capabilities, capCgroupPath, capAnnotations)
		}
		planned.Networks = append(planned.Networks, member)
	}
	return planned, nil
}

func only(capabilities map[string]json.RawMessage, names ...string) map[string]json.RawMessage {
	kept := map[string]json.RawMessage{}
	for _, name := range names {
		if value, ok := capabilities[name]; ok {
			kept[name] = value
		}
	}
	return kept
}

// Add executes a plan: CNI ADD for each of its networks, in order. It writes the
// results into the plan as they come. After an error the plan is what Detach takes
// away; ADD itself cleans nothing up.
func (n *Network) Add(ctx context.Context, planned *Attachment) error {
	if err := planned.check(); err != nil {
		return fmt.Errorf("attach network: %w", err)
	}
	if err := n.ops.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("attach network: wait for CNI GC: %w", err)
	}
	defer n.ops.Release(1)
	for i := range planned.Networks {
		member := &planned.Networks[i]
		fail := func(err error) error { return fmt.Errorf("attach network %q: %w", member.Network, err) }
		list, err := member.conf()
		if err != nil {
			return fail(err)
		}
		result, err := n.lib.AddNetworkList(ctx, list, member.runtimeConf(planned.SandboxID, planned.NetnsPath))
		if err != nil {
			return fail(inPlugin(err))
		}
		data, err := json.Marshal(result)
		if err != nil {
			return fail(bounded(err))
		}
		member.Result = data
		if _, err := member.result(); err != nil {
			return fail(err)
		}
	}
	if len(planned.IPs()) == 0 {
		// The kubelet would take such a pod down and make it anew for ever.
		return fmt.Errorf("attach network %q: the plugins gave the sandbox no address", planned.Networks[0].Network)
	}
	return nil
}

// Attach plans and adds. With an error comes the attachment as far as it got, nil
// only if no plugin was run: it is stored and detached like a complete one (B8).
func (n *Network) Attach(ctx context.Context, pod Pod) (*Attachment, error) {
	planned, err := n.Plan(pod)
	if err != nil {
		return nil, err
	}
	return planned, n.Add(ctx, planned)
}

// Detach runs CNI DEL with what ADD was run with. Of pod it uses the sandbox id and
// the network namespace's path, which may be empty or lead to nothing: plugins then
// free what they hold outside of it (B10).
//
// An attachment of nil is a sandbox of which none was stored. DEL then runs with
// today's configuration, if there is one. Where no ADD ever answered, what DEL
// says does not matter (B9): there may be nothing for it to find.
func (n *Network) Detach(ctx context.Context, pod Pod, attached *Attachment) error {
	if attached == nil {
		pod.PortMappings, pod.Annotations = nil, nil // not worth an error now
		planned, err := n.plan(pod)
		if err != nil {
			klog.FromContext(ctx).V(2).Info("Nothing known to detach from", "sandboxID", pod.SandboxID, "err", err)
			return nil
		}
		attached = planned
	}
	if err := attached.check(); err != nil {
		return fmt.Errorf("detach network: %w", err)
	}
	if attached.SandboxID != pod.SandboxID {
		return fmt.Errorf("detach network: the attachment is of sandbox %s, not %s", attached.SandboxID, pod.SandboxID)
	}
	if err := n.ops.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("detach network: wait for CNI GC: %w", err)
	}
	defer n.ops.Release(1)
	netnsPath := existingNetns(pod.NetnsPath)
	var errs []error
	for i := len(attached.Networks) - 1; i >= 0; i-- {
		if err := n.del(ctx, attached, &attached.Networks[i], netnsPath); err != nil {
			errs = append(errs, err)
		}
	}
	err := errors.Join(errs...)
	if err != nil && !attached.attached() && ctx.Err() == nil {
		klog.FromContext(ctx).V(2).Info("Ignored CNI DEL of a sandbox that was never attached", "sandboxID", pod.SandboxID, "err", err)
		return nil
	}
	return err
}

func (n *Network) del(ctx context.Context, attached *Attachment, member *attachedMember, netnsPath string) error {
	fail := func(err error) error { return fmt.Errorf("detach network %q: %w", member.Network, err) }
	list, err := member.conf()
	if err != nil {
		return fail(err)
	}
	if err := n.restoreCache(attached, member); err != nil {
		return fail(err)
	}
	if err := n.lib.DelNetworkList(ctx, list, member.runtimeConf(attached.SandboxID, netnsPath)); err != nil {
		return fail(inPlugin(err))
	}
	return nil
}

// existingNetns is "" for a path that is no namespace any more: the specification
// has the runtime leave it out then, and plugins fail on one that isn't there.
func existingNetns(path string) string {
	if path == "" {
		return ""
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return ""
	}
	// Before Linux 3.19 it was procfs; /proc/<pid>/ns/net leads to nsfs.
	if st.Type != unix.NSFS_MAGIC {
		return ""
	}
	return path
}

// cachedAdd is libcni's own form of a cached ADD ("cniCacheV1").
type cachedAdd struct {
	Kind           string                     `json:"kind"`
	ContainerID    string                     `json:"containerId"`
	Config         []byte                     `json:"config"`
	IfName         string                     `json:"ifName"`
	NetworkName    string                     `json:"networkName"`
	NetNS          string                     `json:"netns,omitempty"`
	CniArgs        [][2]string                `json:"cniArgs,omitempty"`
	CapabilityArgs map[string]json.RawMessage `json:"capabilityArgs,omitempty"`
	RawResult      json.RawMessage            `json:"result,omitempty"`
}

func (n *Network) resultsDir() string { return filepath.Join(n.cfg.CacheDir, "results") }

// restoreCache makes libcni's cache say what the record says: DelNetworkList gives
// plugins the previous result from there and from nowhere else. The caller's record
// is the truth; the cache may have been lost or be of a sandbox before it.
func (n *Network) restoreCache(attached *Attachment, member *attachedMember) error {
	path := filepath.Join(n.resultsDir(), member.Network+"-"+attached.SandboxID+"-"+member.IfName)
	if len(member.Result) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("drop cached result: %w", err)
		}
		return nil
	}
	data, err := json.Marshal(cachedAdd{
		Kind: libcni.CNICacheV1, ContainerID: attached.SandboxID, Config: member.Config,
		IfName: member.IfName, NetworkName: member.Network, NetNS: attached.NetnsPath,
		CniArgs: member.Args, CapabilityArgs: member.Capabilities, RawResult: member.Result,
	})
	if err != nil {
		return fmt.Errorf("restore cached result: %w", err)
	}
	if err := os.MkdirAll(n.resultsDir(), 0o700); err != nil {
		return fmt.Errorf("restore cached result: %w", err)
	}
	err = replaceFile(path, data)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		// DEL is on the way that frees the disk. What libcni wrote at ADD is most likely there and says the same.
		klog.Background().Error(err, "DEL runs with the result that libcni cached, if any", "sandboxID", attached.SandboxID)
		return nil
	}
	if err != nil {
		return fmt.Errorf("restore cached result: %w", err)
	}
	return nil
}
