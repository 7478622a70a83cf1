package namespace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Spec says which namespaces a sandbox has of its own (the others are the
// host's) and what is set in them before anybody enters.
type Spec struct {
	Net, IPC, UTS bool

	// User, if not nil, is a user namespace of the sandbox's own, which then owns the
	// namespaces above: its root is root over them and over nothing else.
	User *UserMap

	// Both need UTS. Empty: as on the host, which is what a new namespace copies.
	Hostname, Domainname string

	// Key, in either form that sysctl(8) takes, to value. Each key must belong to
	// one of the namespaces above; a key of the host's is refused, never written.
	Sysctls map[string]string
}

func (s Spec) kinds() []Kind {
	var own []Kind
	for _, kind := range kinds {
		if s.has(kind) {
			own = append(own, kind)
		}
	}
	return own
}

func (s Spec) has(kind Kind) bool {
	switch kind {
	case Net:
		return s.Net
	case IPC:
		return s.IPC
	case UTS:
		return s.UTS
	case User:
		return s.User != nil
	}
	return false
}

// maxHostname is __NEW_UTS_LEN, in bytes.
const maxHostname = 64

// check answers with the sysctls in the order they will be written.
func (s Spec) check() ([]sysctl, error) {
	for what, name := range map[string]string{"hostname": s.Hostname, "domainname": s.Domainname} {
		switch {
		case name == "":
		case !s.UTS:
			return nil, fmt.Errorf("%s %q: the UTS namespace is the host's", what, name)
		case len(name) > maxHostname:
			return nil, fmt.Errorf("%s %q: longer than %d bytes", what, name, maxHostname)
		}
	}
	if s.User != nil {
		if err := s.User.check(); err != nil {
			return nil, err
		}
	}
	return sortSysctls(s.Sysctls, s.has)
}

// populate runs on a thread of its own and leaves it inside the namespaces.
// The pins come last: until then, nothing but the thread holds them.
func (p *Pins) populate(ctx context.Context, id string, spec Spec, sysctls []sysctl) error {
	flags := 0
	for _, kind := range spec.kinds() {
		flags |= kind.cloneFlag()
	}
	steps := []func() error{
		func() error { return unshare(flags) },
		func() error { return nameHost(spec) },
		func() error { return loopbackUp(spec) },
		func() error { return p.writeSysctls(sysctls) },
	}
	for _, kind := range spec.kinds() {
		steps = append(steps, func() error { return p.pin(id, kind, "thread-self") })
	}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("create namespaces: %w", err)
		}
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func unshare(flags int) error {
	if err := unix.Unshare(flags); err != nil {
		if errors.Is(err, unix.ENOSPC) {
			// user_namespaces(7): a limit of /proc/sys/user, not of a disk.
			return fmt.Errorf("unshare: more namespaces than /proc/sys/user/max_*_namespaces allows: %w", err)
		}
		return fmt.Errorf("unshare: %w", err)
	}
	return nil
}

func nameHost(spec Spec) error {
	if spec.Hostname != "" {
		if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", spec.Hostname, err)
		}
	}
	if spec.Domainname != "" {
		if err := unix.Setdomainname([]byte(spec.Domainname)); err != nil {
			return fmt.Errorf("set domainname %q: %w", spec.Domainname, err)
		}
	}
	return nil
}

// loopbackUp is what the CNI plugin "loopback" would be executed for (B51). The
// kernel gives lo its addresses, 127.0.0.1/8 and ::1, when it comes up.
func loopbackUp(spec Spec) error {
	if !spec.Net {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring lo up: socket: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// pin mounts a task's namespace of that kind on its pin's path; the task is a directory of procfs.
func (p *Pins) pin(id string, kind Kind, task string) error {
	path := p.Path(id, kind)
	fail := func(err error) error { return fmt.Errorf("pin %s namespace %s: %w", kind, path, err) }

	nsFile, err := p.openTask(task, kind)
	if err != nil {
		return fail(err)
	}
	defer nsFile.Close()
	nsFD := int(nsFile.Fd())
	dirFD, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(dirFD)
	name := filepath.Base(path)
	// Mode 0: as `ip netns add` makes it; only the mount on top is ever read.
	fileFD, err := unix.Openat(dirFD, name, unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	_ = unix.Close(fileFD)

	// A bind mount by fds (Linux 5.2): no path is resolved twice.
	treeFD, err := unix.OpenTree(nsFD, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fail(fmt.Errorf("open_tree: %w", err))
	}
	defer unix.Close(treeFD)
	if err := unix.MoveMount(treeFD, "", dirFD, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fail(fmt.Errorf("move_mount: %w", err))
	}
	return nil
}

// unpin unmounts and unlinks one pin.
//
// The unlink does more than tidy up: it detaches the mount from every other mount
// namespace that copied it (a service started with PrivateTmp, say), which would
// keep the sandbox's namespace alive for as long as it runs.
func unpin(path string) error {
	for {
		// MNT_DETACH: a process that has the pin open keeps it busy, and removal
		// must finish (umount2(2)).
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue // there may be one mounted below it
		}
		// EINVAL is a bare file: an earlier removal, or a Create that got no further.
		if errors.Is(err, unix.EINVAL) {
			break
		}
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("unpin %s: umount: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin: %w", err)
	}
	return nil
}
