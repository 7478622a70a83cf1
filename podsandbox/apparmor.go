package podsandbox

import (
	"context"
	"errors"
	"fmt"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/apparmor"
)

// apparmorOf resolves the profile a container asks for, which is loaded then; "" is what the daemon has, and that is
// unconfined. A container that says nothing gets the default, as in the field, and where there is none, runs without it
// and with a note, weaker: kernels have AppArmor on nodes that know nothing of it.
func apparmorOf(ctx context.Context, cfg Config, config *criv1.ContainerConfig) (profile, weaker string, err error) {
	kind, name, err := spec.AppArmorProfile(config)
	if err != nil {
		return "", "", kindf(ErrInvalid, "config.%w", err)
	}
	policy := cfg.AppArmor
	if policy == nil {
		return "", "", nil
	}
	asked := kind
	if kind == spec.AppArmorUnset {
		kind = cfg.UnsetAppArmor
	}
	switch kind {
	case spec.AppArmorLocalhost:
		if _, err := policy.Loaded(name); err != nil {
			return "", "", profileError("localhost_ref", name, err)
		}
		return name, "", nil
	case spec.AppArmorRuntimeDefault:
		name, err := policy.Default(ctx)
		if err == nil {
			return name, "", nil
		}
		if asked != spec.AppArmorUnset || ctx.Err() != nil {
			return "", "", profileError("profile_type", "RuntimeDefault", err)
		}
		weaker = fmt.Sprintf("AppArmor does not confine this container: %v", err)
	}
	if policy.Confined() {
		return spec.AppArmorUnconfinedName, weaker, nil
	}
	return "", weaker, nil
}

// profileError is the request's fault where it names what is not there, and the node's where that has no default.
func profileError(field, value string, err error) error {
	kind := ErrPrecondition
	if field == "localhost_ref" && errors.Is(err, apparmor.ErrNotLoaded) {
		kind = ErrInvalid
	}
	return kindf(kind, "config.linux.security_context.apparmor.%s %q: %w", field, value, err)
}

// reaperProfile confines the PID 1 of a shared PID namespace as the containers beside it are, where there is a default.
func reaperProfile(ctx context.Context, policy *apparmor.Policy) string {
	if policy == nil {
		return ""
	}
	name, err := policy.Default(ctx)
	if err != nil {
		klog.FromContext(ctx).V(4).Info("No AppArmor profile for a sandbox's PID 1", "err", err.Error())
		return ""
	}
	return name
}
