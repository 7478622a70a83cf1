package main

import (
	"context"
	"path/filepath"

	"k8s.io/klog/v2"

	"github.com/podwright/podwright/cmd/podwright/internal/config"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/apparmor"
)

// newAppArmor gives the policy of this node; nil where the kernel has none.
func newAppArmor(cfg config.Config) (*apparmor.Policy, error) {
	if !apparmor.Enabled() {
		return nil, nil
	}
	return apparmor.New(apparmor.Config{Default: cfg.Runtime.AppArmor, StateFile: filepath.Join(cfg.RunDir, "apparmor-loaded")})
}

// openAppArmor loads the default profile too. Where that fails RuntimeDefault is refused until it can be loaded, which
// each container that asks for it tries again; others can run.
func openAppArmor(ctx context.Context, cfg config.Config) (*apparmor.Policy, error) {
	policy, err := newAppArmor(cfg)
	if policy == nil || err != nil {
		return nil, err
	}
	if err := policy.Load(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "The default AppArmor profile is not there: containers that ask for it are refused, those that ask for none run without")
	}
	return policy, nil
}

func unsetAppArmor(cfg config.Config) spec.AppArmorKind {
	if cfg.Runtime.UnsetAppArmor == "RuntimeDefault" {
		return spec.AppArmorRuntimeDefault
	}
	return spec.AppArmorUnconfined
}

// describeAppArmor is for a person: what RuntimeDefault is now.
func describeAppArmor(policy *apparmor.Policy, cfg config.Config) string {
	if policy == nil {
		return "the kernel has no AppArmor"
	}
	if cfg.Runtime.AppArmor == "" {
		return "RuntimeDefault is refused: runtime.apparmor_default_profile is empty"
	}
	mode, err := policy.Loaded(cfg.Runtime.AppArmor)
	if err != nil {
		return "RuntimeDefault: " + err.Error()
	}
	return "RuntimeDefault is " + cfg.Runtime.AppArmor + " (" + mode + ")"
}

// checkAppArmor says for a kernel with AppArmor what RuntimeDefault will come to. It loads nothing.
func checkAppArmor(cfg config.Config) hostCheck {
	const name = "security modules"
	limited := func(found, do string) hostCheck {
		return hostCheck{Name: name, State: stateLimited, Found: "AppArmor: " + found, Do: do}
	}
	policy, err := newAppArmor(cfg)
	if err != nil {
		return limited(err.Error(), "mount /proc; Linux 5.8 or newer")
	}
	profile := cfg.Runtime.AppArmor
	if profile == "" {
		return limited("RuntimeDefault is refused: no profile is configured for it", "set runtime.apparmor_default_profile")
	}
	mode, err := policy.Loaded(profile)
	switch _, noParser := apparmor.Parser(); {
	case err == nil && (mode == "enforce" || mode == "kill"):
		return ok(name, "AppArmor, with "+profile+" for RuntimeDefault")
	case profile == apparmor.DefaultName && noParser != nil:
		return limited("RuntimeDefault is refused: "+noParser.Error(), "install the package apparmor")
	case profile == apparmor.DefaultName:
		return ok(name, "AppArmor; podwright loads "+profile+" for RuntimeDefault at its start")
	case err == nil:
		return limited(profile+" is loaded, in mode "+mode+": it refuses nothing", "aa-enforce "+profile)
	}
	return limited("RuntimeDefault is refused: "+err.Error(), "load the profile, or set runtime.apparmor_default_profile")
}
