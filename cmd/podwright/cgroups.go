package main

import (
	"fmt"
	"strings"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/cmd/podwright/internal/config"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/systemd"
)

// openCgroups gives the control groups with the driver that the configuration and this node decide, and the parent of
// pods that name none. units is nil where systemd does not run.
func openCgroups(cfg config.Config, units *systemd.Conn) (*cgroup.Manager, string, error) {
	groups := cgroup.Config{Root: cfg.Cgroup.Root, Driver: cfg.Cgroup.Driver, StopTimeout: time.Duration(cfg.Runtime.ShutdownGrace)}
	if units != nil {
		groups.Units = units
	}
	var err error
	if groups.HoldProgram, err = binary(cfg.Runtime.InitBinary, "podwright-init"); err != nil {
		return nil, "", err
	}
	if cfg.Cgroup.Driver == cgroup.DriverAuto && strings.HasPrefix(cfg.Cgroup.Parent, "/") {
		groups.Driver = cgroup.DriverCgroupfs // the form of the parent says which was meant
	}
	manager, err := cgroup.New(groups)
	if err != nil {
		return nil, "", err
	}
	parent := cfg.Cgroup.Parent
	switch {
	case parent != "":
	case manager.Driver() == cgroup.DriverSystemd:
		parent = cgroup.DefaultSliceParent
	default:
		parent = cgroup.DefaultParent
	}
	pod, err := manager.Pod(parent, "")
	if err != nil {
		return nil, "", fmt.Errorf("cgroup.parent: %w", err)
	}
	return manager, pod.Parent, nil
}

// announcedDriver is what RuntimeConfig tells the kubelet.
func announcedDriver(groups *cgroup.Manager) criv1.CgroupDriver {
	if groups.Driver() == cgroup.DriverSystemd {
		return criv1.CgroupDriver_SYSTEMD
	}
	return criv1.CgroupDriver_CGROUPFS
}
