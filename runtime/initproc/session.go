package initproc

import (
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/spawn"
)

const (
	ioctlControllingTty = 0x540e     // TIOCSCTTY
	ioctlLockPty        = 0x40045431 // TIOCSPTLCK
	ioctlOpenPeer       = 0x5441     // TIOCGPTPEER
	ioctlWindowSize     = 0x5414     // TIOCSWINSZ
	ptmxDevice          = 5<<8 | 2

	keyctlJoinSession = 1
)

// console opens a terminal of the container's own devpts. Its slave is reached through the master's descriptor
// (TIOCGPTPEER) and never by its path, which the container could have replaced (CVE-2025-52565).
func console(r *runner, op *launch.Op) (string, syscall.Errno) {
	const ptmx, device = "/dev/pts/ptmx", "/dev/console"
	master, errno := r.openMaster(ptmx)
	if errno != 0 {
		return ptmx, errno
	}
	defer closeFd(master)
	locked := new(int32)
	if _, errno = call(syscall.SYS_IOCTL, uintptr(master), ioctlLockPty, uintptr(unsafe.Pointer(locked))); errno != 0 {
		return ptmx, errno
	}
	if len(op.Data) == 4 {
		size := &[4]uint16{uint16(op.Data[2]) | uint16(op.Data[3])<<8, uint16(op.Data[0]) | uint16(op.Data[1])<<8} // struct winsize: rows, columns, pixels
		if _, errno = call(syscall.SYS_IOCTL, uintptr(master), ioctlWindowSize, uintptr(unsafe.Pointer(size))); errno != 0 {
			return ptmx, errno
		}
	}
	slave, errno := call(syscall.SYS_IOCTL, uintptr(master), ioctlOpenPeer, syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC)
	if errno != 0 {
		return ptmx, errno
	}
	defer closeFd(slave)
	if _, errno = call(syscall.SYS_FCHOWN, uintptr(slave), uintptr(op.Flags), ^uintptr(0)); errno != 0 {
		return ptmx, errno
	}
	if op.Number == 1 {
		if errno = r.mountConsole(slave, device); errno != 0 {
			return device, errno
		}
	}
	for fd := range uintptr(3) {
		if _, errno = call(syscall.SYS_DUP3, uintptr(slave), fd, 0); errno != 0 {
			return ptmx, errno
		}
	}
	r.later(op, ofChild, func(p *spawn.Program) { p.Call(syscall.SYS_IOCTL, 0, ioctlControllingTty, 0) })
	return "", sendMaster(master)
}

// openMaster opens a new terminal's master and verifies that a devpts gave it.
func (r *runner) openMaster(path string) (int, syscall.Errno) {
	if r.root < 0 {
		return -1, syscall.EBADF
	}
	fd, errno := openat2(r.root, path, syscall.O_RDWR|syscall.O_NOCTTY, 0, inRoot|resolveNoSymlinks)
	if errno != 0 {
		return -1, errno
	}
	info, errno := stat(fd)
	if errno == 0 {
		var magic int64
		if magic, errno = fsType(fd); errno == 0 && (magic != devptsMagic || !info.is(syscall.S_IFCHR) || info.rdev != ptmxDevice) {
			errno = syscall.ENODEV
		}
	}
	if errno != 0 {
		closeFd(fd)
		return -1, errno
	}
	return fd, 0
}

// mountConsole binds the terminal over /dev/console.
func (r *runner) mountConsole(slave int, path string) syscall.Errno {
	target, errno := r.open(path, resolveNoSymlinks)
	if errno == syscall.ENOENT {
		target, errno = r.create(path, false, 0o600, false)
	}
	if errno != 0 {
		return errno
	}
	defer closeFd(target)
	if errno = r.mayMountOn(target, path, false); errno != 0 {
		return errno
	}
	return coverWith(slave, target)
}

// sendMaster hands the terminal's master to the keeper.
func sendMaster(master int) syscall.Errno {
	body := (&launch.Status{Kind: launch.StatusConsole}).Encode()
	control := &struct {
		syscall.Cmsghdr
		fd int32
		_  int32
	}{Cmsghdr: syscall.Cmsghdr{Len: syscall.SizeofCmsghdr + 4, Level: syscall.SOL_SOCKET, Type: syscall.SCM_RIGHTS}, fd: int32(master)}
	vector := &syscall.Iovec{Base: &body[0], Len: uint64(len(body))}
	message := &syscall.Msghdr{Iov: vector, Iovlen: 1, Control: (*byte)(unsafe.Pointer(control)), Controllen: uint64(unsafe.Sizeof(*control))}
	_, errno := call(syscall.SYS_SENDMSG, launch.StatusFd, uintptr(unsafe.Pointer(message)), syscall.MSG_NOSIGNAL)
	return errno
}

func setsid(r *runner, op *launch.Op) (string, syscall.Errno) {
	r.later(op, ofChild, func(p *spawn.Program) { p.Call(syscall.SYS_SETSID) })
	return "", 0
}

// keyring gives the workload a session keyring of its own instead of the keeper's.
func keyring(r *runner, op *launch.Op) (string, syscall.Errno) {
	_, errno := call(syscall.SYS_KEYCTL, keyctlJoinSession, uintptr(unsafe.Pointer(text(op.Arg))))
	if errno == syscall.ENOSYS || errno == syscall.EPERM {
		errno = 0 // a kernel without keyrings, or a filter around podwright itself
	}
	return "", errno
}

func rlimit(r *runner, op *launch.Op) (string, syscall.Errno) {
	if len(op.Strings) != 1 {
		return "", syscall.EINVAL
	}
	hard, err := strconv.ParseUint(op.Strings[0], 10, 64)
	if err != nil {
		return "", syscall.EINVAL
	}
	r.later(op, ofEither, func(p *spawn.Program) {
		p.Call(syscall.SYS_PRLIMIT64, 0, uintptr(op.Number), p.Words(uintptr(op.Flags), uintptr(hard)), 0)
	})
	return "", 0
}

func umask(r *runner, op *launch.Op) (string, syscall.Errno) {
	r.later(op, ofEither, func(p *spawn.Program) { p.Call(syscall.SYS_UMASK, uintptr(op.Number)) })
	return "", 0
}

// chdir enters the working directory. As root before OpUser and as the user after it, one of the two is
// enough: root may lack access to a network file system, the user to root's directories.
func chdir(r *runner, op *launch.Op) (string, syscall.Errno) {
	if r.entered != "" && r.entered == op.Path {
		return "", 0
	}
	if r.userSet {
		r.enterAsUser(op)
		return "", 0
	}
	fd, errno := r.open(op.Path, 0)
	if errno == syscall.ENOENT && op.Flags == 1 {
		fd, errno = r.create(op.Path, true, dirMode, true)
	}
	if errno == 0 {
		_, errno = call(syscall.SYS_FCHDIR, uintptr(fd))
		closeFd(fd)
	}
	if errno == 0 {
		r.entered = op.Path
		return "", insideRoot()
	}
	if (errno == syscall.EACCES || errno == syscall.EPERM) && r.chdirFollows() {
		errno = 0
	}
	return "", errno
}

// enterAsUser adds the look-up to the tail. Init's root is the container's by then, so the path can't lead out
// but through procfs's magic links, which are refused (CVE-2024-21626).
func (r *runner) enterAsUser(op *launch.Op) {
	r.later(op, ofEither, func(p *spawn.Program) { enterPath(p, op.Path) })
	r.entered = op.Path
}

// enterPath adds the look-up of a working directory, and its entering; it gives their indexes.
func enterPath(p *spawn.Program, path string) (open, enter int) {
	open = openPath(p, path, oPath|syscall.O_DIRECTORY, resolveNoMagiclinks)
	enter = p.Call(syscall.SYS_FCHDIR, 0)
	p.Feed(open, enter, 0)
	return open, enter
}

// openPath adds openat2(2) of a path.
func openPath(p *spawn.Program, path string, flags, resolve uintptr) int {
	return p.Call(sysOpenat2, fdcwd, p.Text(path), p.Words(flags|syscall.O_CLOEXEC, 0, resolve), openHowSize)
}

func (r *runner) chdirFollows() bool {
	for _, op := range r.plan.Ops[r.at+1:] {
		if op.Code == launch.OpChdir {
			return true
		}
	}
	return false
}

// insideRoot refuses a working directory that the root directory doesn't reach, which getcwd(2) marks.
func insideRoot() syscall.Errno {
	buffer := make([]byte, pathMax)
	n, errno := call(syscall.SYS_GETCWD, uintptr(unsafe.Pointer(&buffer[0])), uintptr(len(buffer)))
	if errno == 0 && !strings.HasPrefix(string(buffer[:n]), "/") {
		errno = syscall.EXDEV
	}
	return errno
}
