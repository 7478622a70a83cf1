package anchor

import (
	"fmt"
	"log/slog"

	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// Enter moves a fresh anchor, which was started in a mount namespace of its own, into its cgroups and its root.
// procsFiles is the number of cgroup.procs files from wire.ProcsFd on.
func Enter(procsFiles int) error {
	for fd := wire.ProcsFd; fd < wire.ProcsFd+procsFiles; fd++ {
		if _, err := unix.Write(fd, []byte("0")); err != nil {
			return fmt.Errorf("join cgroup %d of %d: %w", fd-wire.ProcsFd+1, procsFiles, err)
		}
		unix.Close(fd)
	}
	return enterRoot()
}

// enterRoot pivots to a tmpfs that holds /proc, /sys and an empty /r: a copy of the host's mounts would pin its file
// systems and make every container's mount namespace as slow to copy. /r is where init attaches the container's root.
func enterRoot() error {
	context, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen tmpfs: %w", err)
	}
	defer unix.Close(context)
	for _, option := range [][2]string{{"source", "podwright"}, {"size", "4k"}, {"nr_inodes", "8"}, {"mode", "0755"}} {
		if err := unix.FsconfigSetString(context, option[0], option[1]); err != nil {
			return fmt.Errorf("fsconfig tmpfs %s: %w", option[0], err)
		}
	}
	if err := unix.FsconfigCreate(context); err != nil {
		return fmt.Errorf("fsconfig tmpfs: %w", err)
	}
	root, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return fmt.Errorf("fsmount tmpfs: %w", err)
	}
	defer unix.Close(root)
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount tmpfs: %w", err)
	}
	// The mount is above "/", but our root is still below: the new one is reached by its descriptor only.
	if err := unix.Fchdir(root); err != nil {
		return fmt.Errorf("fchdir new root: %w", err)
	}
	for _, dir := range []string{"proc", "sys", "r"} {
		if err := unix.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("mkdir %s: %w", dir, err)
		}
	}
	// Fresh instances, with nothing of the host's mounted in them: the kernel allows a proc or sysfs in a user
	// namespace only to who sees a whole one (mount_too_revealing).
	for _, fs := range [][2]string{{"proc", "proc"}, {"sysfs", "sys"}} {
		err := unix.Mount(fs[0], fs[1], fs[0], unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		if err == unix.EPERM { // we are ourselves in a user namespace that may only see the host's
			err = unix.Mount("/"+fs[1], fs[1], "", unix.MS_BIND|unix.MS_REC, "")
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", fs[0], err)
		}
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the host's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("chdir: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	return nil
}

// Protect keeps the process from being traced or dumped, and from being the OOM killer's first choice; both keeper and
// anchor call it, as execve(2) resets the first.
func Protect(log *slog.Logger) {
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	fd, err := unix.Open("/proc/self/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		// As the field's daemons: not -1000, which no container that inherits it by mistake may ever have.
		_, err = unix.Write(fd, []byte("-999"))
		unix.Close(fd)
	}
	if err != nil { // EACCES without CAP_SYS_RESOURCE
		log.Info("OOM score was left as inherited", "err", err)
	}
}
