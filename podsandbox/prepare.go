package podsandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	continuity "github.com/containerd/continuity/fs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/mounts"
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
// inside the image's layers (CVE-2022-23648).
func (m *containerManager) fillVolumes(ctx context.Context, volumes map[string]string, layers []string) error {
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
	return continuity.CopyDir(dir, sys.FDPath(from))
}

// hostDevices resolves the devices a request names, a directory to all nodes below it; privileged gets the host's.
// Inside a user namespace the host's root has no power over them, so there it gets what every user may use.
func hostDevices(config *criv1.ContainerConfig, ownUser bool) ([]spec.Device, error) {
	var list []spec.Device
	if config.GetLinux().GetSecurityContext().GetPrivileged() {
		found, err := devicesBelow("/dev", "/dev", "rwm")
		if err != nil {
			return nil, fmt.Errorf("list devices of the host: %w", err)
		}
		for _, d := range found {
			if !ownUser || d.Mode&0o006 == 0o006 {
				list = append(list, d)
			}
		}
	}
	for i, d := range config.GetDevices() {
		found, err := devicesBelow(d.GetHostPath(), d.GetContainerPath(), d.GetPermissions())
		if err != nil {
			return nil, kindf(ErrInvalid, "config.devices[%d].host_path %q: %w", i, d.GetHostPath(), err)
		}
		if len(found) == 0 {
			return nil, kindf(ErrInvalid, "config.devices[%d].host_path %q: no device node", i, d.GetHostPath())
		}
		list = append(list, found...)
	}
	return list, nil
}

// notGiven are parts of the host's /dev that a container has of its own or must not have.
var notGiven = map[string]bool{"/dev/pts": true, "/dev/shm": true, "/dev/fd": true, "/dev/mqueue": true, "/dev/console": true, "/dev/ptmx": true}

func devicesBelow(hostPath, containerPath, access string) ([]spec.Device, error) {
	if access == "" {
		access = "rwm"
	}
	resolved, err := filepath.EvalSymlinks(hostPath)
	if err != nil {
		return nil, err
	}
	var list []spec.Device
	err = filepath.WalkDir(resolved, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) && path != resolved {
				return nil // gone since the directory was read
			}
			return err
		}
		if notGiven[path] && path != resolved {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if entry.IsDir() || entry.Type()&fs.ModeDevice == 0 {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &fs.PathError{Op: "stat", Path: path, Err: err}
		}
		below, err := filepath.Rel(resolved, path)
		if err != nil {
			return err
		}
		kind := "c"
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			kind = "b"
		}
		list = append(list, spec.Device{
			Path: filepath.Join(containerPath, below), HostPath: path, Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
			Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Access: access,
		})
		return nil
	})
	return list, err
}
