package cgroup

import (
	"fmt"
	"path"
	"strings"
)

// Default parents of pods that name none, by driver. The slice is a unit file of podwright's.
const (
	DefaultParent      = "/podwright"
	DefaultSliceParent = "podwright-pods.slice"
)

const (
	sliceSuffix = ".slice"
	scopeSuffix = ".scope"
	scopePrefix = "podwright-"
)

// Pod is where the groups of one pod's containers are.
type Pod struct {
	// Parent has the limits of the whole pod. It is its owner's: the kubelet makes and removes it.
	Parent string
	// Scope is a unit of podwright's own in Parent, which systemd leaves to podwright; "" with the cgroupfs driver.
	Scope string
}

// Group is the group in which those of the pod's containers are made.
func (p Pod) Group() string {
	if p.Scope != "" {
		return p.Scope
	}
	return p.Parent
}

// PodGroup gives the group with the limits of the whole pod, of a container's.
func PodGroup(container string) string {
	dir := path.Dir(container)
	if isScope(dir) {
		return path.Dir(dir)
	}
	return dir
}

// Pod says where the groups of a pod are, by the parent that its sandbox asks for, which the driver decides the form of.
func (s *scopes) Pod(parent, id string) (Pod, error) {
	if s.manager.driver != DriverSystemd {
		if strings.HasSuffix(parent, sliceSuffix) && !strings.Contains(parent, "/") {
			return Pod{}, fmt.Errorf("cgroup parent %q: the name of a slice, and this node's cgroup driver is %s: want the absolute path of a control group, such as /kubepods/besteffort: %w",
				parent, DriverCgroupfs, ErrInvalid)
		}
		return Pod{Parent: parent}, checkPath(parent)
	}
	name := parent
	if strings.HasPrefix(parent, "/") {
		name = path.Base(parent)
	}
	expanded, err := expandSlice(name)
	switch {
	case err != nil:
		return Pod{}, fmt.Errorf("cgroup parent %q: %w; this node's cgroup driver is %s: want the name of a slice, such as kubepods-besteffort.slice: %w",
			parent, err, DriverSystemd, ErrInvalid)
	case name != parent && expanded != parent:
		return Pod{}, fmt.Errorf("cgroup parent %q: systemd has the slice %s at %s: want its name or that path: %w", parent, name, expanded, ErrInvalid)
	}
	return Pod{Parent: expanded, Scope: path.Join(expanded, scopePrefix+id+scopeSuffix)}, nil
}

// expandSlice gives the path of a slice's group: each dash leads one slice further down (systemd.slice(5)).
func expandSlice(name string) (string, error) {
	stem, ok := strings.CutSuffix(name, sliceSuffix)
	switch {
	case !ok:
		return "", fmt.Errorf("does not end in %s", sliceSuffix)
	case len(name) > 255:
		return "", fmt.Errorf("is longer than 255 bytes")
	case stem == "-":
		return "", fmt.Errorf("is the root of all slices, which has no limits")
	case stem == "" || strings.HasPrefix(stem, "-") || strings.HasSuffix(stem, "-") || strings.Contains(stem, "--"):
		return "", fmt.Errorf("has an empty part")
	}
	if i := strings.IndexFunc(stem, notInUnitName); i >= 0 {
		return "", fmt.Errorf("has %q, which is not allowed in the name of a unit", stem[i])
	}
	out := ""
	for i := range stem {
		if stem[i] == '-' {
			out += "/" + stem[:i] + sliceSuffix
		}
	}
	return out + "/" + name, nil
}

// notInUnitName: systemd.unit(5) allows ASCII letters and digits, and these; the name of a unit with @ is a template's.
func notInUnitName(r rune) bool {
	letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
	return !letter && !strings.ContainsRune(`:-_.\`, r)
}

// isScope says whether a group is one that podwright had systemd make, whichever the driver is now.
func isScope(group string) bool {
	name := path.Base(group)
	return strings.HasPrefix(name, scopePrefix) && strings.HasSuffix(name, scopeSuffix) && strings.HasSuffix(path.Dir(group), sliceSuffix)
}
