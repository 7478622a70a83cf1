package spec

import (
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const workloadUmask = 0o022

// Container derives the OCI spec. It validates Config first; nothing of the image gets further than command,
// environment, user, directory, volumes and stop signal, and no label of it anywhere (CVE-2026-53488).
func Container(in ContainerInput) (*specs.Spec, error) {
	if err := ValidateContainer(in.Config, in.Sandbox.Config, in.Node); err != nil {
		return nil, err
	}
	if err := checkImage(in.Image); err != nil {
		return nil, err
	}
	security := in.Config.GetLinux().GetSecurityContext()
	caps, err := capabilitiesOf(security, in.Node)
	if err != nil {
		return nil, err
	}
	process, err := processOf(&in, caps)
	if err != nil {
		return nil, err
	}
	mounts, err := mountsOf(&in)
	if err != nil {
		return nil, err
	}
	linux, err := linuxOf(&in)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:     specs.Version,
		Process:     process,
		Root:        &specs.Root{Path: in.Root, Readonly: security.GetReadonlyRootfs()},
		Mounts:      mounts,
		Linux:       linux,
		Annotations: annotationsOf(&in),
	}
	setNotes(s, notesOf(&in, caps))
	return s, nil
}

func processOf(in *ContainerInput, caps capabilitySet) (*specs.Process, error) {
	security := in.Config.GetLinux().GetSecurityContext()
	args, err := argsOf(in.Config, in.Image)
	if err != nil {
		return nil, err
	}
	id, err := resolveUser(security, in.Image.User, in.Passwd, in.Group)
	if err != nil {
		return nil, err
	}
	fromImage := security.GetRunAsUser() == nil && security.GetRunAsUsername() == "" && security.GetRunAsGroup() == nil
	if err := checkMapped(id, SandboxUser(in.Sandbox.Config), fromImage && len(security.GetSupplementalGroups()) == 0); err != nil {
		return nil, err
	}
	if _, err := StopSignal(in.Config, in.Image); err != nil {
		return nil, err
	}
	profile, err := apparmorOf(in)
	if err != nil {
		return nil, err
	}
	score, _ := oomScore(in.Config.GetLinux().GetResources(), in.Node)
	return &specs.Process{
		Terminal: in.Config.GetTty(),
		User:     specs.User{UID: id.uid, GID: id.gid, AdditionalGids: id.groups, Umask: ptr(uint32(workloadUmask))},
		Args:     args,
		Env:      envOf(in, id.home),
		Cwd:      cwdOf(in.Config, in.Image),

		Capabilities:    caps.oci(),
		Rlimits:         slices.Clone(in.Node.Rlimits),
		NoNewPrivileges: security.GetNoNewPrivs(),
		ApparmorProfile: profile,
		OOMScoreAdj:     ptr(score),
		SelinuxLabel:    in.ProcessLabel,
	}, nil
}

func linuxOf(in *ContainerInput) (*specs.Linux, error) {
	security := in.Config.GetLinux().GetSecurityContext()
	resources, err := Resources(in.Config.GetLinux().GetResources(), in.Node)
	if err != nil {
		return nil, err
	}
	if in.Node.PidsLimit > 0 {
		if err := need(in.Node, "pids", "pids"); err != nil {
			return nil, err
		}
		resources.Pids = &specs.LinuxPids{Limit: ptr(in.Node.PidsLimit)}
	}
	nodes, rules, err := devicesOf(in)
	if err != nil {
		return nil, err
	}
	resources.Devices = rules
	boundGroups(in.Config, in.Sandbox.Config, resources)
	namespaces, err := namespacesOf(in)
	if err != nil {
		return nil, err
	}
	linux := &specs.Linux{
		Namespaces:        namespaces,
		Devices:           nodes,
		CgroupsPath:       in.CgroupsPath,
		Resources:         resources,
		RootfsPropagation: rootPropagation(in.Config),
		MountLabel:        in.MountLabel,
	}
	if user := SandboxUser(in.Sandbox.Config); user != nil {
		linux.UIDMappings, linux.GIDMappings = []specs.LinuxIDMapping{user.UID}, []specs.LinuxIDMapping{user.GID}
		linux.Devices = nil // they are mounts
	}
	if !security.GetPrivileged() {
		linux.Seccomp = in.Seccomp
		linux.MaskedPaths = slices.Clone(security.GetMaskedPaths())
		linux.ReadonlyPaths = slices.Clone(security.GetReadonlyPaths())
	}
	return linux, nil
}

func namespacesOf(in *ContainerInput) ([]specs.LinuxNamespace, error) {
	of := SandboxNamespaces(in.Sandbox.Config)
	pid, err := containerPID(in.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(), in.Sandbox.Config)
	if err != nil {
		return nil, err
	}
	pidPath := in.Sandbox.PIDPath
	if pid == PIDTarget {
		pidPath = in.TargetPath
	}
	var list []specs.LinuxNamespace
	user := SandboxUser(in.Sandbox.Config) != nil
	for _, ns := range []struct {
		kind specs.LinuxNamespaceType
		own  bool
		path string
	}{
		{specs.UserNamespace, user, in.Sandbox.UserPath}, {specs.NetworkNamespace, of.Net, in.Sandbox.NetPath}, {specs.IPCNamespace, of.IPC, in.Sandbox.IPCPath},
		{specs.UTSNamespace, of.UTS, in.Sandbox.UTSPath}, {specs.PIDNamespace, pid == PIDShared || pid == PIDTarget, pidPath},
	} {
		if !ns.own {
			continue
		}
		if ns.path == "" { // never a new one by accident, and never the host's
			return nil, invalid("sandbox", string(ns.kind), "it has no such namespace to join")
		}
		list = append(list, specs.LinuxNamespace{Type: ns.kind, Path: ns.path})
	}
	if pid == PIDPrivate {
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	return append(list, specs.LinuxNamespace{Type: specs.MountNamespace}, specs.LinuxNamespace{Type: specs.CgroupNamespace}), nil
}

// annotationsOf tells external runtimes (Kata, gVisor) what they look for; the names are containerd's, which they read.
func annotationsOf(in *ContainerInput) map[string]string {
	meta := in.Sandbox.Config.GetMetadata()
	return map[string]string{
		"io.kubernetes.cri.container-type":    "container",
		"io.kubernetes.cri.container-name":    in.Config.GetMetadata().GetName(),
		"io.kubernetes.cri.sandbox-id":        in.Sandbox.ID,
		"io.kubernetes.cri.sandbox-name":      meta.GetName(),
		"io.kubernetes.cri.sandbox-namespace": meta.GetNamespace(),
		"io.kubernetes.cri.sandbox-uid":       meta.GetUid(),
		"io.kubernetes.cri.image-name":        in.Config.GetImage().GetImage(),
	}
}

// notesAnnotation carries the notes with the spec, so that they are there again after a restart.
const notesAnnotation = "podwright.notes"

func setNotes(s *specs.Spec, notes []string) {
	if len(notes) > 0 {
		s.Annotations[notesAnnotation] = strings.Join(notes, "\n")
	}
}

// AddNotes puts what only the host knows to what Container wrote down.
func AddNotes(s *specs.Spec, notes ...string) { setNotes(s, append(Notes(s), notes...)) }

// Notes gives what Container wrote down as weaker than asked, for the isolation report.
func Notes(s *specs.Spec) []string {
	if all := s.Annotations[notesAnnotation]; all != "" {
		return strings.Split(all, "\n")
	}
	return nil
}

func notesOf(in *ContainerInput, caps capabilitySet) []string {
	var notes []string
	security := in.Config.GetLinux().GetSecurityContext()
	if score, clamped := oomScore(in.Config.GetLinux().GetResources(), in.Node); clamped {
		notes = append(notes, "oom_score_adj "+strconv.FormatInt(in.Config.GetLinux().GetResources().GetOomScoreAdj(), 10)+
			" raised to "+strconv.Itoa(score)+": lower needs CAP_SYS_RESOURCE")
	}
	if caps.missing != 0 {
		notes = append(notes, "default capabilities the runtime itself lacks: "+strings.Join(capabilityList(caps.missing), " "))
	}
	if security.GetPrivileged() {
		if lacking := uint64(1<<len(capabilityNames)-1) &^ caps.held; lacking != 0 {
			notes = append(notes, "privileged without "+strings.Join(capabilityList(lacking), " ")+", which the runtime itself lacks")
		}
	}
	notes = append(notes, userNotes(in, caps)...)
	notes = append(notes, labelNotes(in)...)
	if !in.Node.AppArmor && apparmorAsked(in.Config) {
		notes = append(notes, "AppArmor RuntimeDefault is not enforced: the kernel has no AppArmor")
	}
	if r := in.Config.GetLinux().GetResources(); r.GetMemorySwapLimitInBytes() != 0 && !in.Node.SwapLimit {
		notes = append(notes, "memory_swap_limit_in_bytes is not enforced: the kernel has no swap accounting")
	}
	if n := unknownBytes(in.Config.ProtoReflect()) + unknownBytes(in.Sandbox.Config.ProtoReflect()); n > 0 {
		notes = append(notes, strconv.Itoa(n)+" bytes of the request are fields newer than this podwright")
	}
	return notes
}

// userNotes says what a user namespace makes weaker than it reads.
func userNotes(in *ContainerInput, caps capabilitySet) []string {
	if SandboxUser(in.Sandbox.Config) == nil {
		return nil
	}
	var notes []string
	if in.Config.GetLinux().GetSecurityContext().GetPrivileged() {
		notes = append(notes, "privileged in the pod's user namespace, not on the node: of the node's devices only those that every user may use are there")
	}
	if caps.held&(1<<unix.CAP_SYS_ADMIN) != 0 {
		notes = append(notes, "read-only mounts and masked paths are no boundary: CAP_SYS_ADMIN in the pod's user namespace may change its mounts")
	}
	return notes
}

// labelNotes says what is asked for of labels and has no effect.
func labelNotes(in *ContainerInput) []string {
	security := in.Config.GetLinux().GetSecurityContext()
	own, sandbox := selinuxAsked(security.GetSelinuxOptions()), selinuxAsked(in.Sandbox.Config.GetLinux().GetSecurityContext().GetSelinuxOptions())
	switch {
	case (own || sandbox) && !in.Node.SELinux:
		return []string{"selinux_options are not enforced: the kernel has no SELinux"}
	case own && security.GetPrivileged():
		return []string{"selinux_options label the container's files only: a privileged container's processes are unconfined"}
	case in.Node.SELinuxIdle:
		return []string{"SELinux labels are not set: selinux.mode is off"}
	}
	return nil
}

func selinuxAsked(o *criv1.SELinuxOption) bool {
	return o.GetUser() != "" || o.GetRole() != "" || o.GetType() != "" || o.GetLevel() != ""
}
