package initproc

import (
	"strconv"
	"syscall"
	"unsafe"

	"github.com/podwright/podwright/runtime/launch"
)

func mkdir(r *runner, op *launch.Op) (string, syscall.Errno) {
	fd, errno := r.open(op.Path, 0)
	if errno == syscall.ENOENT {
		fd, errno = r.create(op.Path, true, modeOr(op.Number, dirMode), true)
	}
	if errno != 0 {
		return "", errno
	}
	defer closeFd(fd)
	info, errno := stat(fd)
	if errno == 0 && !info.is(syscall.S_IFDIR) {
		errno = syscall.ENOTDIR
	}
	return "", errno
}

func symlink(r *runner, op *launch.Op) (string, syscall.Errno) {
	dir, name, errno := r.parent(op.Path, false)
	if errno != 0 {
		return "", errno
	}
	defer closeFd(dir)
	_, errno = call(syscall.SYS_SYMLINKAT, uintptr(unsafe.Pointer(text(op.Arg))), uintptr(dir), uintptr(unsafe.Pointer(text(name))))
	if errno == syscall.EEXIST {
		errno = 0
	}
	return "", errno
}

// mknod makes a node, in a container with a /dev of its own only there.
func mknod(r *runner, op *launch.Op) (string, syscall.Errno) {
	dir, name, errno := r.parent(op.Path, false)
	if errno != 0 {
		return "", errno
	}
	defer closeFd(dir)
	if info, errno := stat(dir); errno != 0 || r.device != 0 && info.dev != r.device {
		if errno == 0 {
			errno = syscall.EXDEV
		}
		return "", errno
	}
	file := text(name)
	_, errno = call(syscall.SYS_MKNODAT, uintptr(dir), uintptr(unsafe.Pointer(file)), uintptr(op.Number), uintptr(op.Flags))
	if errno != 0 && errno != syscall.EEXIST {
		return "", errno
	}
	if errno == syscall.EEXIST {
		if errno = sameNode(dir, name, op); errno != 0 {
			return "", errno
		}
	}
	if len(op.Strings) == 0 {
		return "", 0
	}
	owner, errno := numbers(op.Strings)
	if errno != 0 || len(owner) != 2 {
		return "", syscall.EINVAL
	}
	_, errno = call(syscall.SYS_FCHOWNAT, uintptr(dir), uintptr(unsafe.Pointer(file)), uintptr(owner[0]), uintptr(owner[1]), atNoFollow)
	return "", errno
}

// sameNode accepts an entry that is already what the operation asks for.
func sameNode(dir int, name string, op *launch.Op) syscall.Errno {
	fd, errno := openat2(dir, name, oPath|syscall.O_NOFOLLOW, 0, resolveBeneath|resolveNoMagiclinks)
	if errno != 0 {
		return errno
	}
	defer closeFd(fd)
	info, errno := stat(fd)
	if errno == 0 && (!info.is(uint32(op.Number)&syscall.S_IFMT) || info.rdev != op.Flags) {
		errno = syscall.EEXIST
	}
	return errno
}

// numbers reads decimal ids.
func numbers(list []string) ([]uint32, syscall.Errno) {
	ids := make([]uint32, len(list))
	for i, s := range list {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return nil, syscall.EINVAL
		}
		ids[i] = uint32(n)
	}
	return ids, 0
}
