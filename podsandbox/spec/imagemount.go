package spec

import (
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/launch"
)

// Image mounts (KEP-4639; Kubernetes calls them image volumes) are in a spec as mounts of a type of podwright's own, whose
// source is the image's id: no mount of an image is on the host that another runtime could bind.
const (
	imageType     = "podwright.image"
	subPathPrefix = "subpath="
)

// checkImageMount refuses what an image cannot be mounted as. What it holds is its author's, so it stays out of
// the places where the kernel is expected (CVE-2019-16884).
func checkImageMount(at string, m *criv1.Mount, sandbox *criv1.PodSandboxConfig) error {
	sub, target := m.GetImageSubPath(), path.Clean(m.GetContainerPath())
	switch {
	case m.GetHostPath() != "":
		return invalid(at+".host_path", m.GetHostPath(), "an image is given too; want one of them")
	case m.GetImage().GetImage() == "":
		return invalid(at+".image.image", "", "missing")
	case !m.GetReadonly():
		return invalid(at+".readonly", "false", "an image can be mounted read-only only")
	case m.GetPropagation() != criv1.MountPropagation_PROPAGATION_PRIVATE:
		return invalid(at+".propagation", m.GetPropagation().String(), "an image has no mounts to share; want PROPAGATION_PRIVATE")
	case underKernel(target):
		return invalid(at+".container_path", m.GetContainerPath(), "an image cannot be mounted over the kernel's file systems")
	case path.IsAbs(sub) || hasControl(sub) || len(sub) >= pathBytes || escapes(sub):
		return invalid(at+".image_sub_path", sub, "must be a relative path inside the image")
	}
	if len(m.GetUidMappings())+len(m.GetGidMappings()) == 0 {
		return nil
	}
	own := UserMapping{}
	if len(m.GetUidMappings()) == 1 && len(m.GetGidMappings()) == 1 {
		own = UserMapping{UID: ociMapping(m.GetUidMappings()[0]), GID: ociMapping(m.GetGidMappings()[0])}
	}
	if user := SandboxUser(sandbox); user == nil || *user != own {
		return invalid(at+".uidMappings", "", "an image has the mapping of its pod and no other")
	}
	return nil
}

// imageMount is the mount of an image, always of the pod's mapping. No devices and set-user-ID programs come with it; to
// execute what is in it is allowed, as the KEP decided after it had been forbidden.
func imageMount(m *criv1.Mount, ids map[string]string) (specs.Mount, error) {
	target := path.Clean(m.GetContainerPath())
	id := ids[target]
	if id == "" {
		return specs.Mount{}, invalid("mounts.image.image", m.GetImage().GetImage(), "not found")
	}
	options := append([]string{"ro", "nosuid", "nodev"}, m.GetMountOptions()...)
	if sub := path.Clean(m.GetImageSubPath()); sub != "." {
		options = append(options, subPathPrefix+sub)
	}
	return specs.Mount{Destination: target, Type: imageType, Source: id, Options: options}, nil
}

// image plans one: the daemon opens it as a detached mount, like a bind.
func (p *planner) image(m specs.Mount, o mountOptions) error {
	const fixed = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	image := ImageMount{ID: m.Source, Target: m.Destination, NoExec: o.attr&unix.MOUNT_ATTR_NOEXEC != 0}
	for _, option := range o.data {
		sub, ok := strings.CutPrefix(option, subPathPrefix)
		if !ok {
			return fmt.Errorf("mount image %s on %s: option %q: %w", m.Source, m.Destination, option, ErrUnsupported)
		}
		image.SubPath = sub
	}
	if o.attr&^unix.MOUNT_ATTR_NOEXEC != fixed {
		return fmt.Errorf("mount image %s on %s: options %q: %w", m.Source, m.Destination, m.Options, ErrUnsupported)
	}
	p.bound = append(p.bound, m.Destination)
	fd := p.need(Need{Kind: NeedImage, Image: image}, "image "+m.Source)
	p.addFd(fd, launch.Op{Code: launch.OpMountFd, Step: "mount image on " + m.Destination, Path: m.Destination, Number: 1})
	return nil
}
