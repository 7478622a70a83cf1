// Package cgroup makes, limits, freezes, kills, measures and removes control
// groups, version 1 and 2. It owns the directories that its callers name and no
// others; it may not know sandboxes or containers, choose where a group goes, or
// move a process: writing another's pid into cgroup.procs waits for a grace
// period of a kernel lock (7 to 15 ms), so v2 processes are cloned into the
// group and v1 processes write "0" into the tasks files that Open hands out.
// Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ in the kernel.
package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
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
type Manager struct {
	version     int
	driver      string
	root        string      // v2: mount point of the unified hierarchy
	hierarchies []Hierarchy // v1
	controllers []string
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
	m := &Manager{driver: driver, version: found.version, root: found.unified, hierarchies: found.hierarchies}
	if m.version == 1 {
		for _, h := range m.hierarchies {
			m.controllers = append(m.controllers, h.Controllers...)
		}
	} else if m.controllers, err = m.unifiedControllers(); err != nil {
		return nil, err
	}
	slices.Sort(m.controllers)
	return m, nil
}

func (m *Manager) unifiedControllers() ([]string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(m.root, &st); err != nil {
		return nil, fmt.Errorf("statfs %s: %w", m.root, err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, fmt.Errorf("%s: mountinfo says cgroup2, statfs type is %#x: %w", m.root, st.Type, ErrNotSupported)
	}
	text, err := sys.ReadKernelFile(filepath.Join(m.root, "cgroup.controllers"), smallFile)
	if err != nil {
		return nil, err
	}
	return strings.Fields(text), nil
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

// dirs are the directories of a group, one per hierarchy; the first of v2 is the
// only one.
func (m *Manager) dirs(path string) []string {
	if m.version == 2 {
		return []string{filepath.Join(m.root, path)}
	}
	out := make([]string, 0, len(m.hierarchies))
	for _, h := range m.hierarchies {
		out = append(out, filepath.Join(h.MountPoint, path))
	}
	return out
}

// controllerDir is the directory in which controller has its files for path.
func (m *Manager) controllerDir(controller, path string) (string, bool) {
	if m.version == 2 {
		return filepath.Join(m.root, path), true
	}
	for _, h := range m.hierarchies {
		if slices.Contains(h.Controllers, controller) {
			return filepath.Join(h.MountPoint, path), true
		}
	}
	return "", false
}

func (m *Manager) has(controller string) bool {
	return slices.Contains(m.controllers, controller)
}
