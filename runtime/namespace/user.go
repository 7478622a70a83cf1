package namespace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// IDMap is one line of a uid_map or gid_map: Length ids from Inside on in the
// namespace are the ids from Outside on in the daemon's own.
type IDMap struct{ Inside, Outside, Length uint32 }

// UserMap is the mapping of one user namespace.
type UserMap struct{ UIDs, GIDs []IDMap }

// ErrMapping reports a mapping that no user namespace can have, or that this kernel
// refuses: ids the daemon does not have itself, when it runs in a user namespace.
var ErrMapping = errors.New("user namespace mapping refused")

// maxIDMaps is UID_GID_MAP_MAX_EXTENTS, how many lines the kernel takes.
const maxIDMaps = 340

// check refuses what the kernel would, but says what is wrong.
func (m *UserMap) check() error {
	for what, list := range map[string][]IDMap{"uids": m.UIDs, "gids": m.GIDs} {
		if len(list) == 0 || len(list) > maxIDMaps {
			return fmt.Errorf("%s: %d mappings, want 1 to %d: %w", what, len(list), maxIDMaps, ErrMapping)
		}
		for i, a := range list {
			if a.Length == 0 || !a.fits(a.Inside) || !a.fits(a.Outside) {
				return fmt.Errorf("%s %v: empty, or beyond the last id: %w", what, a, ErrMapping)
			}
			for _, b := range list[:i] {
				if overlap(a.Inside, a.Length, b.Inside, b.Length) || overlap(a.Outside, a.Length, b.Outside, b.Length) {
					return fmt.Errorf("%s %v and %v overlap: %w", what, b, a, ErrMapping)
				}
			}
		}
	}
	return nil
}

// fits: the ids from first on are all below the last 32-bit number, which is no id (-1).
func (m IDMap) fits(first uint32) bool { return uint64(first)+uint64(m.Length) <= 1<<32-1 }

func overlap(a, aLength, b, bLength uint32) bool {
	return uint64(a) < uint64(b)+uint64(bLength) && uint64(b) < uint64(a)+uint64(aLength)
}

func outside(list []IDMap, id uint32) (uint32, bool) {
	for _, m := range list {
		if id >= m.Inside && id-m.Inside < m.Length {
			return m.Outside + (id - m.Inside), true
		}
	}
	return 0, false
}

// UserNamespace makes a user namespace that nothing pins: it lives as long as the
// file, which is the caller's, and the mounts that are mapped by it.
func (p *Pins) UserNamespace(ctx context.Context, users UserMap) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := users.check(); err != nil {
		return nil, err
	}
	h, err := p.hold(&users, unix.CLONE_NEWUSER)
	if err != nil {
		return nil, err
	}
	defer h.end()
	return p.openTask(h.task(), User)
}

// populateOwned makes the namespaces around a process of its own: a process with
// threads may enter no user namespace (setns(2)), and only who is born in one, or
// enters it, makes namespaces that belong to it. A thread sets the others up; it
// has every right over them as they are below its own user namespace.
func (p *Pins) populateOwned(ctx context.Context, id string, spec Spec, sysctls []sysctl) error {
	flags := 0
	for _, kind := range spec.kinds() {
		flags |= kind.cloneFlag()
	}
	h, err := p.hold(spec.User, flags)
	if err != nil {
		return fmt.Errorf("create namespaces: %w", err)
	}
	defer h.end()
	if err := sys.OnThread(func() error { return p.setUpOwned(spec, sysctls, h) }); err != nil {
		return err
	}
	for _, kind := range spec.kinds() {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("create namespaces: %w", err)
		}
		if err := p.pin(id, kind, h.task()); err != nil {
			return err
		}
	}
	return nil
}

// setUpOwned runs on a thread of its own and leaves it inside the namespaces.
func (p *Pins) setUpOwned(spec Spec, sysctls []sysctl, h *holder) error {
	for _, kind := range spec.kinds() {
		if kind == User {
			continue
		}
		f, err := p.openTask(h.task(), kind)
		if err != nil {
			return err
		}
		err = unix.Setns(int(f.Fd()), kind.cloneFlag())
		f.Close()
		if err != nil {
			return fmt.Errorf("join %s namespace: %w", kind, err)
		}
	}
	if err := nameHost(spec); err != nil {
		return err
	}
	if err := loopbackUp(spec); err != nil {
		return err
	}
	if err := ownQueues(spec); err != nil {
		return err
	}
	if len(sysctls) == 0 {
		return nil
	}
	if err := becomeOwner(spec.User); err != nil {
		return err
	}
	return p.writeSysctls(sysctls)
}

// ownQueues gives the root of the IPC namespace's mqueue file system to the namespace's root. The kernel made it with
// the namespace, and for the user who did (ipc/mqueue.c, mq_init_ns): the daemon's, who is nobody inside. There, a
// label of SELinux's can only be set by an owner who is somebody. The calling thread is in the IPC namespace.
func ownQueues(spec Spec) error {
	uid, hasUID := outside(spec.User.UIDs, 0)
	gid, hasGID := outside(spec.User.GIDs, 0)
	if !spec.IPC || !hasUID || !hasGID {
		return nil
	}
	fs, err := sys.OpenFS("mqueue")
	if err != nil {
		return err
	}
	defer fs.Close()
	if err := fs.Create(); err != nil {
		return err
	}
	root, err := fs.Mount(0)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := unix.Fchownat(int(root.Fd()), "", int(uid), int(gid), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("give the root of mqueue to user %d and group %d: %w", uid, gid, err)
	}
	return nil
}

// becomeOwner gives the calling thread, which ends soon, the ids of the namespace's
// root: settings of an IPC namespace may be written by its owner's root and by no
// other user, whatever its capabilities (ipc/ipc_sysctl.c, ipc_permissions).
func becomeOwner(users *UserMap) error {
	uid, hasUID := outside(users.UIDs, 0)
	gid, hasGID := outside(users.GIDs, 0)
	if !hasUID || !hasGID {
		return fmt.Errorf("the user namespace has no root: %w", ErrMapping)
	}
	const keep = ^uintptr(0)
	// By number: the wrappers would change the ids of every thread of the daemon.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, keep, uintptr(gid), keep); errno != 0 {
		return fmt.Errorf("setresgid %d: %w", gid, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
		return fmt.Errorf("setresuid %d: %w", uid, errno)
	}
	// The change of user took the capabilities out of effect, and settings of interfaces ask for one of their own.
	return sys.RaiseCapabilities()
}

// holder is the process around which namespaces are made. It does nothing, holds
// nothing but the read end of a pipe, and ends with the daemon at the latest.
type holder struct {
	cmd  *exec.Cmd
	stop *os.File
}

func (h *holder) task() string { return strconv.Itoa(h.cmd.Process.Pid) }

// end reaps the process; what was opened or pinned meanwhile stays.
func (h *holder) end() {
	h.stop.Close()
	_ = h.cmd.Process.Kill() // through its pidfd, where the kernel has them
	_ = h.cmd.Wait()
}

// hold starts the holder in new namespaces. Its pid is its own until end.
func (p *Pins) hold(users *UserMap, flags int) (*holder, error) {
	if len(p.holder) == 0 {
		return nil, errors.New("no program is configured to make user namespaces around")
	}
	in, stop, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	cmd := exec.Command(p.holder[0], p.holder[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdin = []string{}, "/", in
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: uintptr(flags), UidMappings: procMap(users.UIDs), GidMappings: procMap(users.GIDs),
		GidMappingsEnableSetgroups: true, // or no container could set supplementary groups
	}
	if err := cmd.Start(); err != nil {
		stop.Close()
		return nil, holdError(err)
	}
	return &holder{cmd: cmd, stop: stop}, nil
}

func procMap(list []IDMap) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, len(list))
	for i, m := range list {
		out[i] = syscall.SysProcIDMap{ContainerID: int(m.Inside), HostID: int(m.Outside), Size: int(m.Length)}
	}
	return out
}

// holdError tells a mapping that the kernel refuses from what is nobody's fault but the node's.
func holdError(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		return fmt.Errorf("more namespaces than /proc/sys/user/max_*_namespaces allows, or nested too deeply: %w", err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: %w", ErrMapping, err)
	}
	return fmt.Errorf("start holder of namespaces: %w", err)
}

// openTask opens a namespace of a task, which is a directory of procfs.
func (p *Pins) openTask(task string, kind Kind) (*os.File, error) {
	path := task + "/ns/" + kind.String()
	fd, err := unix.Openat(int(p.procFile.Fd()), path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s namespace: %w", kind, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
