package namespace

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// makeNetnsDir makes the directory the way `ip netns add` does, under the same
// lock, so that whichever tool comes first makes it right for both: a shared
// mount, so that pins appear and, above all, disappear in every mount namespace
// that received them (ip/ipnetns.c, netns_add).
func makeNetnsDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make netns directory: %w", err)
	}
	lockFile, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("lock netns directory: %w", err)
	}
	defer lockFile.Close() // and unlock
	if err := unix.Flock(int(lockFile.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock netns directory %s: %w", dir, err)
	}
	return makeMount(dir, unix.MS_SHARED|unix.MS_REC)
}

// makeRunDir makes the private directory of ipc and uts pins. Unbindable is
// private and more: a recursive bind of / or /run, which is what a hostPath
// volume of those is, does not carry the pins along and so cannot hold them.
func makeRunDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make namespace directory: %w", err)
	}
	return makeMount(dir, unix.MS_UNBINDABLE)
}

// makeMount sets the propagation of the mount at dir, which becomes a mount by
// binding it to itself if it is none yet.
func makeMount(dir string, propagation uintptr) error {
	err := unix.Mount("", dir, "", propagation, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point
		if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", dir, err)
		}
		err = unix.Mount("", dir, "", propagation, "")
	}
	if err != nil {
		return fmt.Errorf("set propagation of %s: %w", dir, err)
	}
	return nil
}

// openProc opens the root of a procfs for reading namespaces and writing sysctls.
// It is mounted nowhere, so nothing can be mounted over a file in it: that was how
// writes to procfs could be redirected (CVE-2025-52881).
func openProc() (*os.File, error) {
	f, err := mountProc()
	if err != nil {
		// Some outer container managers deny a new procfs. The node's own will do,
		// as writes never cross a mount in it (RESOLVE_NO_XDEV).
		fd, openErr := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if openErr != nil {
			return nil, fmt.Errorf("open procfs: %w", errors.Join(err, openErr))
		}
		f = os.NewFile(uintptr(fd), "/proc")
	}
	if err := checkProcRoot(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open procfs: %w", err)
	}
	return f, nil
}

func mountProc() (*os.File, error) {
	fsFD, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fsFD)
	if err := unix.FsconfigCreate(fsFD); err != nil {
		return nil, fmt.Errorf("fsconfig: %w", err)
	}
	fd, err := unix.Fsmount(fsFD, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	return os.NewFile(uintptr(fd), "proc (detached)"), nil
}

// procRootIno is the inode of every procfs root (PROC_ROOT_INO).
const procRootIno = 1

func checkProcRoot(f *os.File) error {
	if err := checkProc(int(f.Fd())); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Ino != procRootIno {
		return errors.New("not the root of a procfs")
	}
	return nil
}

func checkProc(fd int) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return err
	}
	if st.Type != unix.PROC_SUPER_MAGIC {
		return errors.New("not on procfs")
	}
	return nil
}
