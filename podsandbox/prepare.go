package podsandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	continuity "github.com/containerd/continuity/fs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/mounts"
	"github.com/podwright/podwright/runtime/selinux"
	"github.com/podwright/podwright/runtime/sys"
	"github.com/podwright/podwright/seccompprofiles"
)

// compile makes a container's launchable. It is made anew at each start from the recorded spec, so that a start
// after a restart of the daemon is no special case; the filter comes from the compiler's cache.
func (m *core) compile(id string, ociSpec *specs.Spec) (*spec.Launchable, error) {
	in := spec.CompileInput{ID: id, Node: m.cfg.Node}
	if profile := ociSpec.Linux.Seccomp; profile != nil {
		filter, err := m.cfg.Seccomp.Compile(profile)
		if err != nil {
			return nil, kindf(ErrInvalid, "seccomp: %w", err)
		}
		in.Filter, in.FilterFlags = filter.Program, uint64(filter.Flags)
	}
	return spec.Compile(ociSpec, in)
}

// recordedSpec gives a container's spec with its resources as updates left them.
func (m *core) recordedSpec(id string) (*specs.Spec, error) {
	raw, err := m.cfg.Records.Spec(id)
	if err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	var ociSpec specs.Spec
	if err := json.Unmarshal(raw, &ociSpec); err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	if c, ok := m.containers.get(id); ok && len(c.record().Resources) > 0 {
		if err := spec.SetResources(&ociSpec, resourcesOf(c, c.record()), m.cfg.Node); err != nil {
			return nil, fmt.Errorf("updated resources: %w", err)
		}
	}
	return &ociSpec, nil
}

// seccompSpec resolves the profile a container asks for; nil is unconfined.
func (m *core) seccompSpec(config *criv1.ContainerConfig) (*specs.LinuxSeccomp, error) {
	kind, path, err := spec.SeccompProfile(config)
	if err != nil {
		return nil, kindf(ErrInvalid, "%w", err)
	}
	security := config.GetLinux().GetSecurityContext()
	if security.GetSeccomp() == nil && security.GetSeccompProfilePath() == "" && !security.GetPrivileged() { //nolint:staticcheck // the deprecated field still counts as a wish
		kind = m.cfg.UnsetSeccomp
	}
	var raw []byte
	switch kind {
	case spec.SeccompUnconfined:
		return nil, nil
	case spec.SeccompRuntimeDefault:
		raw = m.cfg.SeccompDefault
	case spec.SeccompLocalhost:
		// The kubelet is trusted to name a file by its absolute path; its seccomp directory may be anywhere.
		if raw, err = seccompprofiles.Localhost("/", path); err != nil {
			return nil, kindf(ErrInvalid, "linux.security_context.seccomp.localhost_ref: %w", err)
		}
	}
	caps, err := spec.Capabilities(config, m.cfg.Node)
	if err != nil {
		return nil, invalidSpec(err)
	}
	_, profile, err := m.cfg.Seccomp.CompileProfile(raw, caps)
	if err != nil {
		return nil, kindf(ErrInvalid, "linux.security_context.seccomp.localhost_ref %q: %w", path, err)
	}
	return profile, nil
}

// fillVolumes makes the directory of each image VOLUME and copies into it what the image has at that place, looked up
// inside the image's layers (CVE-2022-23648), with the container's SELinux label, where there is one.
func (m *containerManager) fillVolumes(ctx context.Context, volumes map[string]string, layers []string, label string) error {
	if len(volumes) == 0 {
		return nil
	}
	root, err := m.cfg.Mounts.Overlay(ctx, mounts.OverlaySource{Lower: layers, ReadOnly: true})
	if err != nil {
		return fmt.Errorf("open image for its volumes: %w", err)
	}
	defer root.Close()
	for volume, dir := range volumes {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make volume %s: %w", volume, err)
		}
		if err := copyVolume(root, volume, dir); err != nil {
			return fmt.Errorf("fill volume %s: %w", volume, err)
		}
		if err := selinux.SetTree(dir, label); err != nil {
			return fmt.Errorf("fill volume %s: %w", volume, err)
		}
	}
	return nil
}

func copyVolume(root *os.File, volume, dir string) error {
	from, err := mounts.OpenInRoot(root, volume, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer from.Close()
	// Not the label of the image's layers, which is the node's.
	return continuity.CopyDir(dir, sys.FDPath(from), continuity.WithXAttrExclude("security.selinux"))
}
