// Package cgroup makes, limits, freezes, kills, measures and removes control
// groups, version 1 and 2. It owns the directories that its callers name and no
// others; it may not know sandboxes or containers, choose where a group goes, or
// move a process: writing another's pid into cgroup.procs waits for a grace
// period of a kernel lock (7 to 15 ms), so v2 processes are cloned into the
// group and v1 processes write "0" into the tasks files that Open hands out. The one
// exception is made once in a sandbox's life (see Scopes).
//
// Of github.com/containerd/cgroups (v3.1.3) it uses the curve from shares to weight. It does not use
//   - statistics: of v1 it reads every file of every controller, 430 µs for the 50 µs of
//     the five that are asked for every few seconds; of v2 an absent group is an idle
//     one to it, and a file that it can't read is a 0;
//   - Mode: it asks /sys/fs/cgroup only, once, and v1 needs the mount table anyway;
//   - ToResources, Update: a quota without period is dropped, a period alone lifts
//     the quota, and nothing is checked, ordered or put back;
//   - Kill, Freeze, Delete: they end at no deadline, or sleep until their own;
//   - the device filter: see deviceProgram.
//
// Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ in the kernel.
package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Drivers, by the names that the kubelet and CRI use.
const (
	DriverCgroupfs = "cgroupfs"
	DriverSystemd  = "systemd"
	// DriverAuto is systemd where that runs the node and the version is 2, else cgroupfs.
	DriverAuto = "auto"
)

// Config says where cgroupfs is and who owns the tree.
type Config struct {
	// Root is where the unified hierarchy, or the tmpfs with the v1 hierarchies,
	// is mounted; /sys/fs/cgroup if empty.
	Root string
	// Driver is DriverCgroupfs (also if empty), DriverSystemd or DriverAuto.
	Driver string
	// Units is systemd, nil where it does not run. It is asked for scopes only.
	Units Units
	// HoldProgram is podwright-init, of which each scope has a process.
	HoldProgram string
	// StopTimeout is what processes have to end where systemd stops a scope; DefaultStopTimeout if 0.
	StopTimeout time.Duration
}

// Hierarchy is one mounted v1 hierarchy.
type Hierarchy struct {
	Controllers []string // nil for a named hierarchy
	Name        string   // "systemd" for name=systemd, else ""
	MountPoint  string
}

// Manager works on the groups of one cgroupfs. It holds no state of any group,
// so it needs no lock: everything is read from the kernel when it is asked for.
// The verbs are its own; what one group takes, in either version, is in group, and
// what systemd has to do with it in scopes.
type Manager struct {
	mountedTree
	driver string
	scopes
}

// New finds out which cgroup version is mounted at cfg.Root. A hybrid tree (v1
// controllers beside a cgroup2 without any) counts as v1.
func New(cfg Config) (*Manager, error) {
	root := cfg.Root
	if root == "" {
		root = "/sys/fs/cgroup"
	}
	// A symlink, as /sys/fs/cgroup may be in a chroot, does not match mountinfo.
	resolved, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, fmt.Errorf("cgroup root: %w", err)
	}
	info, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cgroup root %s: %w", root, err)
	}
	defer info.Close()
	found, err := detect(info, resolved)
	if err != nil {
		return nil, fmt.Errorf("cgroup root %s: %w", root, err)
	}
	if err := found.findControllers(); err != nil {
		return nil, err
	}
	if err := found.openTops(); err != nil {
		return nil, fmt.Errorf("cgroup root: %w", err)
	}
	m := &Manager{mountedTree: found}
	if m.driver, err = chooseDriver(cfg, found.version); err != nil {
		return nil, err
	}
	m.scopes = scopes{
		manager: m, tree: &m.mountedTree, units: cfg.Units, program: cfg.HoldProgram, stopTimeout: cfg.StopTimeout,
		holders: map[string]*os.Process{},
	}
	if m.scopes.stopTimeout == 0 {
		m.scopes.stopTimeout = DefaultStopTimeout
	}
	return m, nil
}

// chooseDriver gives the driver that cfg asks for, if this host can have it.
func chooseDriver(cfg Config, version int) (string, error) {
	switch cfg.Driver {
	case "", DriverCgroupfs:
		return DriverCgroupfs, nil
	case DriverAuto:
		if cfg.Units == nil || version != 2 {
			return DriverCgroupfs, nil
		}
	case DriverSystemd:
		if cfg.Units == nil {
			return "", fmt.Errorf("cgroup driver %s: systemd does not run this node: %w", cfg.Driver, ErrNotSupported)
		}
		if version != 2 {
			return "", fmt.Errorf("cgroup driver %s: needs cgroup v2, this host has v1: %w", cfg.Driver, ErrNotSupported)
		}
	default:
		return "", invalid("cgroup driver", cfg.Driver, "want %s, %s or %s", DriverAuto, DriverSystemd, DriverCgroupfs)
	}
	if cfg.HoldProgram == "" {
		return "", fmt.Errorf("cgroup driver %s: no program for the first process of a scope: %w", DriverSystemd, ErrInvalid)
	}
	return DriverSystemd, nil
}

// Version is 1 or 2.
func (m *Manager) Version() int { return m.version }

// Driver is the name that RuntimeConfig announces.
func (m *Manager) Driver() string { return m.driver }

// Controllers are the kernel controllers that groups of this manager can have,
// sorted. On v2 freezing and device filtering are part of the core and not listed.
func (m *Manager) Controllers() []string { return slices.Clone(m.controllers) }

// V1Hierarchies are the mounts that make up a v1 tree, nil on v2; a container's
// private view of its own groups is made from them.
func (m *Manager) V1Hierarchies() []Hierarchy {
	var out []Hierarchy
	for _, h := range m.hierarchies {
		h.Controllers = slices.Clone(h.Controllers)
		out = append(out, h)
	}
	return out
}

// UnifiedMountPoint is where the v2 hierarchy is mounted, "" on v1.
func (m *Manager) UnifiedMountPoint() string { return m.root }

// group is one group of a tree, at a path that checkPath has seen.
type group struct {
	*mountedTree
	path string
}

func (m *Manager) group(path string) (group, error) {
	return group{&m.mountedTree, path}, checkPath(path)
}

// dir is where controller has its files for the group.
func (g group) dir(controller string) (string, bool) {
	return g.controllerDir(controller, g.path)
}

// unified is the group's only directory on v2.
func (g group) unified() string { return filepath.Join(g.root, g.path) }
