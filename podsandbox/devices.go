package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/mounts"
)

// hostDevices resolves the devices a request names, a directory to all nodes below it; privileged gets the host's.
// Inside a user namespace the host's root has no power over them, so there it gets what every user may use. A path that
// hangs ends with ctx and holds nothing but itself, as a mount's source.
func hostDevices(ctx context.Context, opener *mounts.Opener, op *Operation, config *criv1.ContainerConfig, ownUser bool) ([]spec.Device, error) {
	below := func(hostPath, containerPath, access string) (found []spec.Device, err error) {
		op.on(Wait{For: WaitDevice, Name: hostPath})
		var list []spec.Device // whoever is left behind goes on writing this one
		if err = opener.Look(ctx, hostPath, func() (err error) {
			list, err = devicesBelow(hostPath, containerPath, access)
			return err
		}); err != nil {
			return nil, err
		}
		return list, nil
	}
	var list []spec.Device
	if config.GetLinux().GetSecurityContext().GetPrivileged() {
		found, err := below("/dev", "/dev", "rwm")
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
		found, err := below(d.GetHostPath(), d.GetContainerPath(), d.GetPermissions())
		switch {
		case ctx.Err() != nil && err != nil:
			return nil, kindf(ErrTimeout, "config.devices[%d].host_path: %w", i, err)
		case err != nil:
			return nil, kindf(ErrInvalid, "config.devices[%d].host_path %q: %w", i, d.GetHostPath(), err)
		case len(found) == 0:
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
