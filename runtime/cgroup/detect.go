package cgroup

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// v1Controllers are the names that a v1 superblock can show among its options;
// the others (rw, xattr, clone_children, release_agent=...) are no controllers.
var v1Controllers = []string{
	"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb",
	"memory", "misc", "net_cls", "net_prio", "perf_event", "pids", "rdma",
}

type mountedTree struct {
	version     int
	unified     string
	hierarchies []Hierarchy
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
				return mountedTree{version: 2, unified: root}, nil
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
