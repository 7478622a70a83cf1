package main

import (
	"fmt"

	"github.com/podwright/podwright/cmd/podwright/internal/config"
	"github.com/podwright/podwright/runtime/selinux"
)

// openLabels opens what labels containers, by selinux.mode; nil where they are not labelled. idle says that the kernel
// would have it.
func openLabels(cfg config.SELinux) (labels *selinux.Labels, idle bool, err error) {
	switch on := selinux.Enabled(); {
	case cfg.Mode == "off":
		return nil, on, nil
	case !on && cfg.Mode == "on":
		return nil, false, fmt.Errorf("selinux.mode is on: the kernel has no SELinux enabled; boot with security=selinux, or set it to auto")
	case !on:
		return nil, false, nil
	}
	labels, err = selinux.New(selinux.Config{Categories: cfg.CategoryRange})
	if err != nil {
		return nil, false, fmt.Errorf("selinux: %w; a policy with container types has to be installed, or selinux.mode set to off", err)
	}
	return labels, false, nil
}

// checkLabels is the part of the host's check that is about SELinux, for a kernel with it.
func checkLabels(cfg config.SELinux) hostCheck {
	const name = "security modules"
	labels, idle, err := openLabels(cfg)
	switch {
	case err != nil:
		return hostCheck{Name: name, State: stateMissing, Found: err.Error(), Do: "see docs/security.md"}
	case idle:
		return hostCheck{Name: name, State: stateLimited, Found: "SELinux, and containers without labels: selinux.mode is off", Do: "set selinux.mode to auto"}
	case !selinux.Enforcing():
		return hostCheck{Name: name, State: stateLimited, Found: "SELinux, permissive: containers run as " + labels.Type() + ", and nothing is refused to them", Do: "setenforce 1"}
	}
	found := "SELinux, enforcing: containers run as " + labels.Type()
	if on, known := selinux.Boolean(hostCapabilities); known && !on {
		return hostCheck{Name: name, State: stateLimited, Found: found + ", and may not use capabilities that a pod adds", Do: "setsebool -P " + hostCapabilities + " on"}
	}
	return ok(name, found)
}

// hostCapabilities is the reference policy's boolean for capabilities in the node's user namespace. Other policies allow them.
const hostCapabilities = "container_use_host_all_caps"
