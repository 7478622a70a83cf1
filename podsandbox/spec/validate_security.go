package spec

import (
	"math"
	"path"
	"regexp"
	"strconv"
	"strings"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	contextField = "linux.security_context."
	pidField     = contextField + "namespace_options.pid"
	targetField  = contextField + "namespace_options.target_id"
)

func checkSandboxSecurity(security *criv1.LinuxSandboxSecurityContext, node Node) error {
	if err := checkNamespaceOptions(security.GetNamespaceOptions(), node); err != nil {
		return err
	}
	if options := security.GetNamespaceOptions(); options.GetPid() == criv1.NamespaceMode_TARGET {
		return invalid(pidField, options.GetPid().String(), "want POD, CONTAINER or NODE: only a container can have another's")
	} else if options.GetTargetId() != "" {
		return invalid(targetField, options.GetTargetId(), "only a container can have a target")
	}
	if err := checkSELinux(security.GetSelinuxOptions(), node); err != nil {
		return err
	}
	if security.GetRunAsGroup() != nil && security.GetRunAsUser() == nil {
		return invalid(contextField+"run_as_group", groupText(security.GetRunAsGroup()), "needs run_as_user")
	}
	return nil
}

func checkContainerSecurity(config *criv1.ContainerConfig, sandbox *criv1.PodSandboxConfig, node Node) error {
	security := config.GetLinux().GetSecurityContext()
	if security.GetPrivileged() && !sandbox.GetLinux().GetSecurityContext().GetPrivileged() {
		return invalid(contextField+"privileged", "true", "the sandbox is not privileged")
	}
	if err := checkNamespaceOptions(security.GetNamespaceOptions(), node); err != nil {
		return err
	}
	if err := checkSameUser(security.GetNamespaceOptions(), sandbox); err != nil {
		return err
	}
	if _, err := containerPID(security.GetNamespaceOptions(), sandbox); err != nil {
		return err
	}
	if err := checkSELinux(security.GetSelinuxOptions(), node); err != nil {
		return err
	}
	if err := checkIdentity(security); err != nil {
		return err
	}
	if _, err := capabilitiesOf(security, node); err != nil {
		return err
	}
	for _, f := range []struct {
		field string
		list  []string
	}{{"masked_paths", security.GetMaskedPaths()}, {"readonly_paths", security.GetReadonlyPaths()}} {
		for _, p := range f.list {
			if err := checkAbsolute(contextField+f.field, p); err != nil {
				return err
			}
			if path.Clean(p) == "/" {
				return invalid(contextField+f.field, p, "the root has a field of its own")
			}
		}
	}
	if _, _, err := SeccompProfile(config); err != nil {
		return err
	}
	return checkAppArmor(config, node)
}

// checkNamespaceOptions holds for sandbox and container. Unset reads as POD.
func checkNamespaceOptions(options *criv1.NamespaceOption, node Node) error {
	for _, f := range []struct {
		field string
		mode  criv1.NamespaceMode
	}{{"network", options.GetNetwork()}, {"ipc", options.GetIpc()}} {
		if f.mode != criv1.NamespaceMode_POD && f.mode != criv1.NamespaceMode_NODE {
			return invalid(contextField+"namespace_options."+f.field, f.mode.String(), "want POD or NODE")
		}
	}
	return checkUserns(options, node)
}

// containerPID decides whose PID namespace a container gets. Network and IPC are always the sandbox's: a container
// that says nothing reads as POD, so only an explicit NODE can contradict.
func containerPID(options *criv1.NamespaceOption, sandbox *criv1.PodSandboxConfig) (PIDMode, error) {
	of := SandboxNamespaces(sandbox)
	for _, f := range []struct {
		field string
		mode  criv1.NamespaceMode
		own   bool
	}{{"network", options.GetNetwork(), of.Net}, {"ipc", options.GetIpc(), of.IPC}} {
		if f.mode == criv1.NamespaceMode_NODE && f.own {
			return 0, invalid(contextField+"namespace_options."+f.field, f.mode.String(), "the sandbox has a namespace of its own")
		}
	}
	if options == nil {
		return of.PID, nil
	}
	switch mode := options.GetPid(); {
	case mode == criv1.NamespaceMode_TARGET && options.GetTargetId() == "":
		return 0, invalid(targetField, "", "missing: pid is TARGET")
	case mode == criv1.NamespaceMode_TARGET:
		return PIDTarget, nil
	case options.GetTargetId() != "":
		return 0, invalid(targetField, options.GetTargetId(), "needs pid TARGET")
	case mode == criv1.NamespaceMode_CONTAINER:
		return PIDPrivate, nil
	case mode == criv1.NamespaceMode_NODE && of.PID != PIDHost:
		return 0, invalid(pidField, mode.String(), "the sandbox has no access to the node's processes")
	case mode == criv1.NamespaceMode_POD && of.PID == PIDPrivate:
		return 0, invalid(pidField, mode.String(), "the sandbox has no PID namespace its containers share")
	}
	return of.PID, nil
}

// TargetID is the container whose PID namespace a valid configuration asks for, "" for none.
func TargetID(config *criv1.ContainerConfig) string {
	return config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetTargetId()
}

// What parts of a label look like in every policy. The policy says which of them there are.
var (
	labelPartForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)
	levelForm     = func() *regexp.Regexp {
		const category = `c\d{1,4}(\.c\d{1,4})?`
		const level = `s\d{1,2}(:` + category + `(,` + category + `)*)?`
		return regexp.MustCompile(`^` + level + `(-` + level + `)?$`)
	}()
)

func checkSELinux(options *criv1.SELinuxOption, node Node) error {
	for _, f := range []struct{ field, value string }{{"user", options.GetUser()}, {"role", options.GetRole()},
		{"type", options.GetType()}, {"level", options.GetLevel()}} {
		if f.value == "" {
			continue
		}
		field := contextField + "selinux_options." + f.field
		switch {
		case node.SELinuxIdle:
			return invalid(field, f.value, "labels are off on this node (selinux.mode)")
		case f.field == "level" && (len(f.value) > nameBytes || !levelForm.MatchString(f.value)):
			return invalid(field, f.value, "no level; want one such as s0 or s0:c1,c2")
		case f.field != "level" && (len(f.value) > nameBytes || !labelPartForm.MatchString(f.value)):
			return invalid(field, f.value, "no part of a label; want letters, digits, '_', '-' and '.'")
		}
	}
	return nil
}

func checkIdentity(security *criv1.LinuxContainerSecurityContext) error {
	user, name, group := security.GetRunAsUser(), security.GetRunAsUsername(), security.GetRunAsGroup()
	if user != nil && name != "" {
		return invalid(contextField+"run_as_username", name, "run_as_user is set too")
	}
	if user != nil && !goodID(user.GetValue()) {
		return invalid(contextField+"run_as_user", strconv.FormatInt(user.GetValue(), 10), "no user id")
	}
	if group != nil && user == nil && name == "" {
		return invalid(contextField+"run_as_group", groupText(group), "needs run_as_user or run_as_username")
	}
	if group != nil && !goodID(group.GetValue()) {
		return invalid(contextField+"run_as_group", groupText(group), "no group id")
	}
	if len(security.GetSupplementalGroups()) > maxGroups {
		return invalid(contextField+"supplemental_groups", "", "more than %d", maxGroups)
	}
	for _, g := range security.GetSupplementalGroups() {
		if !goodID(g) {
			return invalid(contextField+"supplemental_groups", strconv.FormatInt(g, 10), "no group id")
		}
	}
	return nil
}

func groupText(v *criv1.Int64Value) string { return strconv.FormatInt(v.GetValue(), 10) }

// goodID bounds ids as Kubernetes does: the kernel's upper half holds (uid_t)-1 and is negative to 32-bit programs.
func goodID(id int64) bool { return id >= 0 && id <= math.MaxInt32 }

// SeccompKind says which profile is asked for.
type SeccompKind int

// The three profile types of the CRI.
const (
	SeccompUnconfined SeccompKind = iota
	SeccompRuntimeDefault
	SeccompLocalhost // with a path
)

// SeccompProfile reads the profile a container asks for; privileged is unconfined. No profile at all is unconfined, a
// Localhost one without a path is an error, never unconfined (CVE-2023-2431).
func SeccompProfile(config *criv1.ContainerConfig) (kind SeccompKind, profilePath string, err error) {
	security := config.GetLinux().GetSecurityContext()
	const field = contextField + "seccomp"
	if profile := security.GetSeccomp(); profile != nil {
		ref := profile.GetLocalhostRef()
		switch profile.GetProfileType() {
		case criv1.SecurityProfile_Localhost:
			kind, profilePath = SeccompLocalhost, ref
			err = checkAbsolute(field+".localhost_ref", ref)
		case criv1.SecurityProfile_RuntimeDefault:
			kind = SeccompRuntimeDefault
		}
		if kind != SeccompLocalhost && ref != "" {
			err = invalid(field+".localhost_ref", ref, "needs profile_type Localhost")
		}
	} else {
		kind, profilePath, err = oldSeccomp(security.GetSeccompProfilePath())
	}
	if err != nil {
		return 0, "", err
	}
	if security.GetPrivileged() {
		return SeccompUnconfined, "", nil
	}
	return kind, profilePath, nil
}

// oldSeccomp reads the deprecated string field, which counts where the new one is not set.
func oldSeccomp(s string) (SeccompKind, string, error) {
	const field = contextField + "seccomp_profile_path"
	switch s {
	case "", "unconfined":
		return SeccompUnconfined, "", nil
	case "runtime/default", "docker/default":
		return SeccompRuntimeDefault, "", nil
	}
	ref, ok := strings.CutPrefix(s, "localhost/")
	if !ok {
		return 0, "", invalid(field, s, "no seccomp profile")
	}
	return SeccompLocalhost, ref, checkAbsolute(field, ref)
}
