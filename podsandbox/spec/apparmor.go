package spec

import (
	"strings"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/launch"
)

// AppArmorKind says which profile is asked for.
type AppArmorKind int

// What a container can ask for. The kubelet leaves the field out where the pod has none.
const (
	AppArmorUnset AppArmorKind = iota
	AppArmorUnconfined
	AppArmorRuntimeDefault
	AppArmorLocalhost // with a name
)

// AppArmorUnconfinedName is what the kernel calls no profile. It is asked for only where what starts containers is confined itself.
const AppArmorUnconfinedName = "unconfined"

// AppArmorStep begins the name of the step that asks the kernel for a profile; the profile's name follows.
const AppArmorStep = "set AppArmor profile "

const localhostPrefix = "localhost/"

// AppArmorProfile reads the profile a container asks for. A privileged container has none but one it names: the default
// would take away what privileged means.
func AppArmorProfile(config *criv1.ContainerConfig) (kind AppArmorKind, name string, err error) {
	security := config.GetLinux().GetSecurityContext()
	field := contextField + "apparmor.localhost_ref"
	if profile := security.GetApparmor(); profile != nil {
		switch name = profile.GetLocalhostRef(); profile.GetProfileType() {
		case criv1.SecurityProfile_Localhost:
			// The kubelet and others put the prefix of the old field before the name here, too.
			kind, name = AppArmorLocalhost, strings.TrimPrefix(name, localhostPrefix)
		case criv1.SecurityProfile_RuntimeDefault:
			kind = AppArmorRuntimeDefault
		default:
			kind = AppArmorUnconfined
		}
		if kind != AppArmorLocalhost && name != "" {
			return 0, "", invalid(field, name, "needs profile_type Localhost")
		}
	} else {
		field = contextField + "apparmor_profile"
		if kind, name, err = oldAppArmor(security.GetApparmorProfile()); err != nil {
			return 0, "", err
		}
	}
	if kind == AppArmorLocalhost {
		return kind, name, checkProfileName(field, name)
	}
	if security.GetPrivileged() {
		kind = AppArmorUnconfined
	}
	return kind, "", nil
}

// oldAppArmor reads the deprecated string field, which counts where the new one is not set.
func oldAppArmor(s string) (AppArmorKind, string, error) {
	switch s {
	case "":
		return AppArmorUnset, "", nil
	case "unconfined":
		return AppArmorUnconfined, "", nil
	case "runtime/default":
		return AppArmorRuntimeDefault, "", nil
	}
	name, ok := strings.CutPrefix(s, localhostPrefix)
	if !ok {
		return 0, "", invalid(contextField+"apparmor_profile", s, "want runtime/default, unconfined or localhost/NAME")
	}
	return AppArmorLocalhost, name, nil
}

// checkProfileName takes what the kernel takes for a name in one line.
func checkProfileName(field, name string) error {
	switch {
	case name == "":
		return invalid(field, "", "missing: the profile type is Localhost")
	case name == AppArmorUnconfinedName:
		return invalid(field, name, "no profile; the profile type for it is Unconfined")
	case hasControl(name) || strings.TrimSpace(name) != name || len(name) >= pathBytes:
		return invalid(field, name, "no name of a profile")
	}
	return nil
}

func checkAppArmor(config *criv1.ContainerConfig, node Node) error {
	kind, name, err := AppArmorProfile(config)
	if err == nil && kind == AppArmorLocalhost && !node.AppArmor {
		err = invalid(contextField+"apparmor.localhost_ref", name, "the kernel has no AppArmor")
	}
	return err
}

// apparmorOf holds the caller to what was asked for: in.AppArmor was chosen by him.
func apparmorOf(in *ContainerInput) (string, error) {
	kind, name, err := AppArmorProfile(in.Config)
	switch {
	case err != nil || !in.Node.AppArmor:
		return "", err
	case kind == AppArmorLocalhost && in.AppArmor != name, kind == AppArmorRuntimeDefault && (in.AppArmor == "" || in.AppArmor == AppArmorUnconfinedName):
		return "", invalid(contextField+"apparmor.profile_type", "", "the profile that was asked for is not the one found: %q", in.AppArmor)
	}
	return in.AppArmor, nil
}

// apparmorAsked says whether the default is asked for by its name.
func apparmorAsked(config *criv1.ContainerConfig) bool {
	kind, _, err := AppArmorProfile(config)
	return err == nil && kind == AppArmorRuntimeDefault
}

// confine asks for the profile that the next program runs under; "" asks for nothing. Before no_new_privs and the filter.
func (p *planner) confine(profile string) {
	if profile == "" {
		return
	}
	p.add(launch.Op{Code: launch.OpExecLabel, Step: AppArmorStep + profile, Path: "apparmor/exec", Arg: "exec " + profile})
}
