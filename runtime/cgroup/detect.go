package cgroup

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// v1Controllers are the names that a v1 superblock can show among its options;
// the others (rw, xattr, clone_children, release_agent=...) are no controllers.
var v1Controllers = []string{
	"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb",
	"memory", "misc", "net_cls", "net_prio", "perf_event", "pids", "rdma",
}

// mountedTree is what is mounted: where each hierarchy begins and what it controls.
type mountedTree struct {
	version     int
	root        string      // v2: mount point of the unified hierarchy
	nsDelegate  bool        // v2: mounted with that option
	hierarchies []Hierarchy // v1
	controllers []string    // sorted
	tops        []top       // where each hierarchy begins, on v2 the only one
}

// top is the first directory of a hierarchy, open (O_PATH): from there the kernel walks half as far as from its own root,
// which statistics do for every file.
type top struct {
	point string
	dir   *os.File
}

func (t top) fd() int { return int(t.dir.Fd()) }

// openTops comes before the first group. What it opens is closed with the tree, by the collector.
func (t *mountedTree) openTops() error {
	points := []string{t.root}
	if t.version == 1 {
		points = nil
		for _, h := range t.hierarchies {
			points = append(points, h.MountPoint)
		}
	}
	for _, point := range points {
		fd, err := unix.Open(point, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: point, Err: err}
		}
		t.tops = append(t.tops, top{point, os.NewFile(uintptr(fd), point)})
	}
	return nil
}

// topOf is of the hierarchy that has the controller, which the tree has.
func (t *mountedTree) topOf(controller string) top {
	for i, h := range t.hierarchies {
		if slices.Contains(h.Controllers, controller) {
			return t.tops[i]
		}
	}
	return t.tops[0]
}

type cgroupMount struct {
	point, fsType, options string
}

// detect reads mountinfo (proc_pid_mountinfo(5)) and finds what is mounted at
// and below root.
func detect(mountinfo io.Reader, root string) (mountedTree, error) {
	var tree mountedTree
	mounts, err := cgroupMounts(mountinfo, root)
	if err != nil {
		return tree, err
	}
	seen := map[string]bool{}
	for _, mnt := range mounts {
		if mnt.fsType == "cgroup2" {
			if mnt.point == root {
				delegates := slices.Contains(strings.Split(mnt.options, ","), "nsdelegate")
				return mountedTree{version: 2, root: root, nsDelegate: delegates}, nil
			}
			continue
		}
		h, ok := parseHierarchy(mnt)
		// The same hierarchy can be bound at a second place; the first serves.
		key := strings.Join(h.Controllers, ",") + "=" + h.Name
		if ok && !seen[key] {
			seen[key] = true
			tree.hierarchies = append(tree.hierarchies, h)
		}
	}
	if !slices.ContainsFunc(tree.hierarchies, func(h Hierarchy) bool { return slices.Contains(h.Controllers, "freezer") }) {
		return tree, fmt.Errorf("neither cgroup2 nor a v1 freezer hierarchy is mounted there: %w", ErrNotSupported)
	}
	tree.version = 1
	return tree, nil
}

// cgroupMounts lists the visible cgroup mounts at or below root, in mount order.
func cgroupMounts(mountinfo io.Reader, root string) ([]cgroupMount, error) {
	var mounts []cgroupMount
	scanner := bufio.NewScanner(mountinfo)
	scanner.Buffer(nil, 1<<20) // a mount's options can exceed the default of 64 KiB
	for scanner.Scan() {
		before, after, ok := strings.Cut(scanner.Text(), " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 6 || len(tail) < 3 {
			continue
		}
		point := unescapeMountinfo(head[4])
		if point != root && !strings.HasPrefix(point, strings.TrimSuffix(root, "/")+"/") {
			continue
		}
		// What is mounted later on the same place, or above it, hides what was there.
		mounts = slices.DeleteFunc(mounts, func(m cgroupMount) bool {
			return m.point == point || strings.HasPrefix(m.point, point+"/")
		})
		if tail[0] == "cgroup" || tail[0] == "cgroup2" {
			mounts = append(mounts, cgroupMount{point: point, fsType: tail[0], options: tail[2]})
		}
	}
	return mounts, scanner.Err()
}

func parseHierarchy(mnt cgroupMount) (Hierarchy, bool) {
	h := Hierarchy{MountPoint: mnt.point}
	for _, option := range strings.Split(mnt.options, ",") {
		if name, ok := strings.CutPrefix(option, "name="); ok {
			h.Name = name
		} else if slices.Contains(v1Controllers, option) {
			h.Controllers = append(h.Controllers, option)
		}
	}
	// Named hierarchies other than systemd's belong to whoever made them.
	return h, len(h.Controllers) > 0 || h.Name == "systemd"
}

// unescapeMountinfo undoes the \ooo that the kernel writes for space, tab,
// newline and backslash.
func unescapeMountinfo(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// findControllers fills in what groups of the tree can have.
func (t *mountedTree) findControllers() error {
	if t.version == 1 {
		for _, h := range t.hierarchies {
			t.controllers = append(t.controllers, h.Controllers...)
		}
		slices.Sort(t.controllers)
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(t.root, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", t.root, err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("%s: mountinfo says cgroup2, statfs type is %#x: %w", t.root, st.Type, ErrNotSupported)
	}
	text, err := sys.ReadKernelFile(filepath.Join(t.root, "cgroup.controllers"), smallFile)
	t.controllers = strings.Fields(text)
	slices.Sort(t.controllers)
	return err
}

// dirs are the directories of a group, one per hierarchy; the first of v2 is the
// only one.
func (t *mountedTree) dirs(path string) []string {
	if t.version == 2 {
		return []string{filepath.Join(t.root, path)}
	}
	out := make([]string, 0, len(t.hierarchies))
	for _, h := range t.hierarchies {
		out = append(out, filepath.Join(h.MountPoint, path))
	}
	return out
}

// controllerDir is the directory in which controller has its files for path.
func (t *mountedTree) controllerDir(controller, path string) (string, bool) {
	if t.version == 2 {
		return filepath.Join(t.root, path), true
	}
	for _, h := range t.hierarchies {
		if slices.Contains(h.Controllers, controller) {
			return filepath.Join(h.MountPoint, path), true
		}
	}
	return "", false
}

func (t *mountedTree) has(controller string) bool {
	return slices.Contains(t.controllers, controller)
}
