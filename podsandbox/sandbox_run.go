package podsandbox

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/cni"
	"github.com/podwright/podwright/podsandbox/podfiles"
	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/namespace"
	"github.com/podwright/podwright/runtime/wire"
)

// RunSandbox makes a sandbox and answers its id once it is ready. The same identity with the same configuration
// joins the running create or answers the finished sandbox; with another one it is ErrExists.
func (m *sandboxManager) RunSandbox(ctx context.Context, config *criv1.PodSandboxConfig, handler string) (string, error) {
	if handler != "" {
		return "", kindf(ErrInvalid, "run sandbox: runtime_handler %q: unknown; the only handler is \"\"", handler)
	}
	if err := m.Ready(); err != nil {
		return "", err
	}
	if err := spec.ValidateSandbox(config, m.cfg.Node); err != nil {
		return "", kindf(ErrInvalid, "run sandbox: config.%w", err)
	}
	if _, err := podGroup(m.core, config, ""); err != nil {
		return "", kindf(ErrInvalid, "run sandbox: config.linux.cgroup_parent: %w", err)
	}
	digest, err := digestOf(config)
	if err != nil {
		return "", err
	}
	key := sandboxKey(config.GetMetadata())
	finished := func() (string, [sha256.Size]byte, bool) {
		id, ok := m.sandboxKeys.Load(key)
		if !ok {
			return "", digest, false
		}
		s, err := m.sandboxes.find("sandbox", id.(string))
		if err != nil {
			return "", digest, false
		}
		return s.id, s.digest, true
	}
	want := create{kind: kindRunSandbox, name: podName(config), key: key, digest: digest}
	id, err := m.ops.do(ctx, want, createDeadline, finished, func(ctx context.Context, op *Operation) (string, error) {
		return m.makeSandbox(ctx, op, config, digest)
	})
	if err != nil {
		return "", err
	}
	if s, err := m.sandboxes.find("sandbox", id); err == nil && s.record().Phase != record.SandboxReady {
		return "", kindf(ErrPrecondition, "%s exists as %s and is not ready; remove it, or ask for another attempt", key, id)
	}
	return id, nil
}

// makeSandbox records, acquires and publishes one sandbox. Any failure goes through the one teardown; what that
// cannot finish stays listed as not ready, so that Stop and Remove are tried again (B8).
func (m *sandboxManager) makeSandbox(ctx context.Context, op *Operation, config *criv1.PodSandboxConfig, digest [sha256.Size]byte) (string, error) {
	raw, err := protojson.Marshal(config)
	if err != nil {
		return "", kindf(ErrInvalid, "encode sandbox config: %w", err)
	}
	rec := &record.Sandbox{
		ID: record.NewID(), BootID: m.cfg.BootID, Phase: record.SandboxCreating, Config: raw, CreatedNanos: m.clock.now(),
	}
	pod, err := podGroup(m.core, config, rec.ID)
	if err != nil {
		return "", kindf(ErrInvalid, "run sandbox: config.linux.cgroup_parent: %w", err)
	}
	rec.CgroupParent, rec.CgroupScope = pod.Parent, pod.Scope
	if err := labelSandbox(m.core, rec, config); err != nil {
		return "", fmt.Errorf("run sandbox: %w", err)
	}
	s := newSandbox(rec, config, digest)
	op.is(s.id)
	op.at("record")
	m.creating.Store(s.id, true)
	defer m.creating.Delete(s.id)
	if err := m.changeSandbox(s, func(*record.Sandbox) {}); err != nil {
		unlabelSandbox(m.core, s.id)
		return "", errors.Join(err, m.deleteSandbox(s)) // or retries on a full disk leave a directory each
	}
	if err := m.acquire(ctx, op, s); err != nil {
		op.at("take back")
		op.on(Wait{For: WaitPlugin})
		back, cancel := teardownContext(ctx)
		defer cancel()
		if tearErr := m.teardownSandbox(back, s); tearErr != nil {
			klog.FromContext(ctx).Error(tearErr, "Left a sandbox that could not be torn down", "sandboxID", s.id)
			m.changeSandbox(s, func(r *record.Sandbox) { r.Phase, r.Reason = record.SandboxNotReady, tearErr.Error() })
			showSandbox(m.core, s)
		}
		return "", fmt.Errorf("run sandbox %s: %w", s.id, err)
	}
	showSandbox(m.core, s)
	return s.id, nil
}

// acquire takes what a sandbox consists of, in the order teardownSandbox gives it back.
func (m *sandboxManager) acquire(ctx context.Context, op *Operation, s *sandbox) error {
	own := spec.SandboxNamespaces(s.config)
	early, late, err := sysctls(s.config)
	if err != nil {
		return err
	}
	op.at("make namespaces")
	hostname := ""
	if own.UTS {
		hostname = s.config.GetHostname()
	}
	user := spec.SandboxUser(s.config)
	err = m.cfg.Namespaces.Create(ctx, s.id, namespace.Spec{
		Net: own.Net, IPC: own.IPC, UTS: own.UTS, User: userMap(user), Hostname: hostname, Sysctls: early,
	})
	if err != nil {
		return namespaceError(fmt.Errorf("make namespaces: %w", err))
	}
	op.at("write files")
	if _, err := m.cfg.Files.Create(ctx, s.id, fileSpec(s, own)); err != nil {
		return fmt.Errorf("write files: %w", err)
	}
	if own.Net {
		op.at("attach network")
		op.on(Wait{For: WaitPlugin})
		if err := m.attach(ctx, s); err != nil {
			return err
		}
	}
	if len(late) > 0 {
		op.at("write sysctls")
		if err := m.cfg.Namespaces.WriteSysctls(ctx, s.id, late); err != nil {
			return namespaceError(err)
		}
	}
	if own.PID == spec.PIDShared {
		op.at("start reaper")
		if err := m.startReaper(ctx, op, s); err != nil {
			return fmt.Errorf("start the sandbox's PID 1: %w", err)
		}
	}
	op.at("record as ready")
	return m.changeSandbox(s, func(r *record.Sandbox) {
		r.Phase, r.RunSteps = record.SandboxReady, op.timings()
		r.NetPath = ownPath(own.Net, m.cfg.Namespaces.Path(s.id, namespace.Net))
		r.IPCPath = ownPath(own.IPC, m.cfg.Namespaces.Path(s.id, namespace.IPC))
		r.UTSPath = ownPath(own.UTS, m.cfg.Namespaces.Path(s.id, namespace.UTS))
		r.UserPath = ownPath(user != nil, m.cfg.Namespaces.Path(s.id, namespace.User))
	})
}

// namespaceError gives a setting or a mapping that the kernel refuses its kind.
func namespaceError(err error) error {
	var refused *namespace.SysctlError
	if errors.As(err, &refused) || errors.Is(err, namespace.ErrMapping) {
		return kindf(ErrInvalid, "%w", err)
	}
	return err
}

// attach runs CNI ADD. The record owes a DEL from before the first plugin runs, and keeps the results of those that
// answered before another failed.
func (m *sandboxManager) attach(ctx context.Context, s *sandbox) error {
	if err := m.cfg.Network.Status(); err != nil {
		return kindf(ErrUnavailable, "attach network: %w", err)
	}
	attachment, err := m.cfg.Network.Plan(m.cniPod(s))
	if err != nil {
		return fmt.Errorf("attach network: %w", err)
	}
	if err := m.recordAttachment(s, attachment); err != nil {
		return err
	}
	addErr := m.cfg.Network.Add(ctx, attachment)
	if err := errors.Join(addErr, m.recordAttachment(s, attachment)); err != nil {
		return fmt.Errorf("attach network: %w", err)
	}
	return nil
}

func (m *sandboxManager) recordAttachment(s *sandbox, attachment *cni.Attachment) error {
	raw, err := json.Marshal(attachment)
	if err != nil {
		return fmt.Errorf("encode network attachment: %w", err)
	}
	return m.changeSandbox(s, func(r *record.Sandbox) { r.Attachment, r.IPs = raw, attachment.IPs() })
}

func (m *sandboxManager) cniPod(s *sandbox) cni.Pod {
	md, config := s.config.GetMetadata(), s.config
	pod := cni.Pod{
		SandboxID: s.id, Name: md.GetName(), Namespace: md.GetNamespace(), UID: md.GetUid(),
		NetnsPath: m.cfg.Namespaces.Path(s.id, namespace.Net), CgroupPath: s.record().CgroupParent, Annotations: config.GetAnnotations(),
		DNS: cni.DNS{
			Servers: config.GetDnsConfig().GetServers(), Searches: config.GetDnsConfig().GetSearches(), Options: config.GetDnsConfig().GetOptions(),
		},
	}
	for _, p := range config.GetPortMappings() {
		pod.PortMappings = append(pod.PortMappings, cni.PortMapping{
			HostPort: p.GetHostPort(), ContainerPort: p.GetContainerPort(), Protocol: p.GetProtocol().String(), HostIP: p.GetHostIp(),
		})
	}
	return pod
}

// startReaper starts the PID 1 of a shared PID namespace: init itself, which stays and reaps.
func (m *sandboxManager) startReaper(ctx context.Context, op *Operation, s *sandbox) error {
	own, user := spec.SandboxNamespaces(s.config), spec.SandboxUser(s.config)
	launchable, err := spec.Reaper(spec.ReaperInput{
		User: user, UserPath: ownPath(user != nil, m.cfg.Namespaces.Path(s.id, namespace.User)),
		ID: s.id, Node: m.cfg.Node, NetPath: ownPath(own.Net, m.cfg.Namespaces.Path(s.id, namespace.Net)),
		IPCPath: ownPath(own.IPC, m.cfg.Namespaces.Path(s.id, namespace.IPC)), UTSPath: ownPath(own.UTS, m.cfg.Namespaces.Path(s.id, namespace.UTS)),
		AppArmor:     reaperProfile(ctx, m.cfg.AppArmor),
		ProcessLabel: s.record().ProcessLabel, MountLabel: s.record().MountLabel,
	})
	if err != nil {
		return err
	}
	process, err := m.launch(ctx, launchRequest{op: op, id: s.id, kind: wire.KindReaper, launchable: launchable, cgroup: m.reaperCgroup(s)})
	if err != nil {
		return err
	}
	return m.changeSandbox(s, func(r *record.Sandbox) { r.ReaperPID, r.ReaperStartTime = process.PID, process.StartTime })
}

// podGroup says where the groups of a sandbox's processes go.
func podGroup(m *core, config *criv1.PodSandboxConfig, id string) (cgroup.Pod, error) {
	parent := config.GetLinux().GetCgroupParent()
	if parent == "" {
		parent = m.cfg.CgroupParent
	}
	return m.cfg.Cgroups.Pod(parent, id)
}

// cgroupOf gives the group of one process of a sandbox's: a container, or the sandbox's own PID 1.
func cgroupOf(rec *record.Sandbox, id string) string {
	return path.Join(cgroup.Pod{Parent: rec.CgroupParent, Scope: rec.CgroupScope}.Group(), id)
}

// reaperCgroup is the group of a sandbox's own PID 1, the only process that a sandbox itself has work for.
func (m *core) reaperCgroup(s *sandbox) string { return cgroupOf(s.record(), s.id) }

func fileSpec(s *sandbox, own spec.Namespaces) podfiles.Spec {
	config := s.config
	files := podfiles.Spec{
		Hostname: hostnameOf(config, own), HostNetwork: !own.Net, HostIPC: !own.IPC, ShmBytes: podfiles.DefaultShmBytes,
		MountLabel: s.record().MountLabel,
	}
	if user := spec.SandboxUser(config); user != nil {
		files.UID, files.GID = user.Outside(0, 0)
	}
	if dns := config.GetDnsConfig(); dns != nil {
		files.DNS = &podfiles.DNS{Servers: dns.GetServers(), Searches: dns.GetSearches(), Options: dns.GetOptions()}
	}
	return files
}

// hostnameOf is what uname -n says in the sandbox's containers.
func hostnameOf(config *criv1.PodSandboxConfig, own spec.Namespaces) string {
	if own.UTS && config.GetHostname() != "" {
		return config.GetHostname()
	}
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}

// sysctls splits a sandbox's settings into those that exist with the namespace and those of interfaces that CNI makes.
func sysctls(config *criv1.PodSandboxConfig) (early, late map[string]string, err error) {
	all, err := spec.Sysctls(config)
	if err != nil {
		return nil, nil, kindf(ErrInvalid, "%w", err)
	}
	early, late = map[string]string{}, map[string]string{}
	for key, value := range all {
		parts := strings.Split(key, ".")
		perInterface := len(parts) > 4 && parts[0] == "net" && (parts[2] == "conf" || parts[2] == "neigh") &&
			parts[3] != "all" && parts[3] != "default" && parts[3] != "lo"
		if perInterface {
			late[key] = value
		} else {
			early[key] = value
		}
	}
	return early, late, nil
}

func ownPath(own bool, path string) string {
	if own {
		return path
	}
	return ""
}
