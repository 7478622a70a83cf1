// Package cgroup makes, limits, freezes, kills, measures and removes control
// groups, version 1 and 2. It owns the directories that its callers name and no
// others; it may not know sandboxes or containers, choose where a group goes, or
// move a process: writing another's pid into cgroup.procs waits for a grace
// period of a kernel lock (7 to 15 ms), so v2 processes are cloned into the
// group and v1 processes write "0" into the tasks files that Open hands out.
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
)

// Drivers, by the names that the kubelet and CRI use.
const (
	DriverCgroupfs = "cgroupfs"
	DriverSystemd  = "systemd"
)

// Config says where cgroupfs is and who owns the tree.
type Config struct {
	// Root is where the unified hierarchy, or the tmpfs with the v1 hierarchies,
	// is mounted; /sys/fs/cgroup if empty.
	Root string
	// Driver is DriverCgroupfs (also if empty) or DriverSystemd.
	Driver string
}

// Hierarchy is one mounted v1 hierarchy.
type Hierarchy struct {
	Controllers []string // nil for a named hierarchy
	Name        string   // "systemd" for name=systemd, else ""
	MountPoint  string
}

// Manager works on the groups of one cgroupfs. It holds no state of any group,
// so it needs no lock: everything is read from the kernel when it is asked for.
// The verbs are its own; what one group takes, in either version, is in group.
type Manager struct {
	mountedTree
	driver string
}

// New finds out which cgroup version is mounted at cfg.Root. A hybrid tree (v1
// controllers beside a cgroup2 without any) counts as v1.
func New(cfg Config) (*Manager, error) {
	root := cfg.Root
	if root == "" {
		root = "/sys/fs/cgroup"
	}
	driver := cfg.Driver
	if driver == "" {
		driver = DriverCgroupfs
	}
	// The systemd driver differs in who makes and removes the directory (a scope,
	// over D-Bus); makeGroup and removeGroup are the two places it would take over.
	if driver != DriverCgroupfs {
		return nil, fmt.Errorf("cgroup driver %q: %w", cfg.Driver, ErrNotSupported)
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
	return &Manager{mountedTree: found, driver: driver}, nil
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
