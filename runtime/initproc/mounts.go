package initproc

import (
	"strings"
	"syscall"
	"unsafe"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/spawn"
)

// attachRoot attaches the container's root in the new mount namespace, first of all mounts: mounting onto a
// still detached tree needs Linux 6.15.
func attachRoot(r *runner, op *launch.Op) (string, syscall.Errno) {
	r.propagate = uintptr(op.Flags)
	return r.attach(r.fd(op))
}

// attach makes the detached mount fd the root to be.
func (r *runner) attach(fd int) (string, syscall.Errno) {
	// What init mounts may not travel back along the copied mounts, and pivot_root(2) refuses a shared parent.
	if errno := propagation("/", syscall.MS_REC|syscall.MS_PRIVATE); errno != 0 {
		return "/", errno
	}
	_, errno := call(sysMoveMount, uintptr(fd), uintptr(unsafe.Pointer(text(""))),
		fdcwd, uintptr(unsafe.Pointer(text(launch.RootMountpoint))), moveFromEmpty)
	if errno != 0 {
		return launch.RootMountpoint, errno
	}
	r.root = fd
	r.rootInfo, errno = stat(fd)
	return "/", errno
}

func propagation(path string, flags uintptr) syscall.Errno {
	_, errno := call(syscall.SYS_MOUNT, 0, uintptr(unsafe.Pointer(text(path))), 0, flags, 0)
	return errno
}

func mountFd(r *runner, op *launch.Op) (string, syscall.Errno) {
	mode := uint32(fileMode)
	if op.Number == 1 {
		mode = dirMode
	}
	target, errno := r.target(op.Path, op.Number == 1, mode)
	if errno != 0 {
		return "", errno
	}
	defer closeFd(target)
	return "", moveMount(r.fd(op), target)
}

func mountNew(r *runner, op *launch.Op) (string, syscall.Errno) {
	target, errno := r.target(op.Path, true, modeOr(op.Number, dirMode))
	if errno != 0 {
		return "", errno
	}
	defer closeFd(target)
	if op.Arg == "proc" || op.Arg == "sysfs" {
		// A link could bring them where an earlier mount is expected (CVE-2019-19921).
		direct, errno := r.open(op.Path, resolveNoSymlinks)
		if errno != 0 {
			return "", errno
		}
		closeFd(direct)
	}
	mount, errno := r.newMount(op.Arg, op.Strings, op.Flags)
	if errno != 0 {
		return "", errno
	}
	defer closeFd(mount)
	if len(op.Data) > 0 {
		if errno = labelRoot(mount, op.Data); errno != 0 {
			return "", errno
		}
	}
	if errno = moveMount(mount, target); errno != 0 {
		return "", errno
	}
	if strings.Trim(op.Path, "/") == "dev" {
		info, errno := stat(mount)
		r.device = info.dev
		return "", errno
	}
	return "", 0
}

// labelRoot labels the root of a detached mount, which a descriptor of the mount itself can't: it is a path only.
func labelRoot(mount int, label []byte) syscall.Errno {
	root, errno := openat2(mount, ".", syscall.O_RDONLY|syscall.O_DIRECTORY, 0, resolveBeneath)
	if errno != 0 {
		return errno
	}
	defer closeFd(root)
	_, errno = call(syscall.SYS_FSETXATTR, uintptr(root), uintptr(unsafe.Pointer(text("security.selinux"))),
		uintptr(unsafe.Pointer(&label[0])), uintptr(len(label)), 0)
	return errno
}

func modeOr(number int64, missing uint32) uint32 {
	if number == 0 {
		return missing
	}
	return uint32(number)
}

// newMount makes a detached mount of a new instance of the file system.
func (r *runner) newMount(fs string, options []string, attributes uint64) (int, syscall.Errno) {
	ctx, errno := r.newInstance(fs)
	if errno != 0 {
		return -1, errno
	}
	defer closeFd(ctx)
	configure := func(command uintptr, key, value *byte) syscall.Errno {
		_, errno := call(sysFsconfig, uintptr(ctx), command, uintptr(unsafe.Pointer(key)), uintptr(unsafe.Pointer(value)), 0)
		return errno
	}
	configure(fsconfigSetString, text("source"), text(fs)) // only a name in mountinfo
	for _, option := range options {
		key, value, valued := strings.Cut(option, "=")
		if valued {
			errno = configure(fsconfigSetString, text(key), text(value))
		} else {
			errno = configure(fsconfigSetFlag, text(key), nil)
		}
		if errno != 0 {
			return -1, errno
		}
	}
	if errno = configure(fsconfigCreate, nil, nil); errno != 0 {
		return -1, errno
	}
	return call(sysFsmount, uintptr(ctx), fsmountCloexec, uintptr(attributes))
}

// newInstance gives a file system context. A procfs shows the PID namespace that the caller of fsopen(2) is
// in; init is not in the one it joined for the workload.
func (r *runner) newInstance(fs string) (int, syscall.Errno) {
	if fs != "proc" || !r.joined {
		return call(sysFsopen, uintptr(unsafe.Pointer(text(fs))), fsopenCloexec)
	}
	ctx, errno := call(sysFsopen, uintptr(unsafe.Pointer(text(fs))), fsopenCloexec)
	if errno != 0 {
		return -1, errno
	}
	// Linux 6.17 takes the namespace as an option, in the form of its own file.
	_, errno = call(sysFsconfig, uintptr(ctx), fsconfigSetFd, uintptr(unsafe.Pointer(text("pidns"))), 0, uintptr(r.pidns))
	if errno == 0 {
		return ctx, 0
	}
	return ctx, r.procFromInside(ctx)
}

// procFromInside replaces ctx by a procfs context that a child made inside the joined PID namespace. The child
// shares the table of descriptors but no memory, and makes two system calls. (The context's first descriptor
// stays open in init until the last step.)
func (r *runner) procFromInside(ctx int) syscall.Errno {
	p := spawn.NewProgram(launch.StatusFd)
	op := &r.plan.Ops[r.at]
	p.Step(op.Step, op.Path)
	open := p.Call(sysFsopen, p.Text("proc"), fsopenCloexec)
	dup := p.Call(syscall.SYS_DUP3, 0, uintptr(ctx), syscall.O_CLOEXEC)
	p.Feed(open, dup, 0)
	pid, err := p.Clone(cloneFlagFiles, 0)
	if err != nil {
		errno, _ := err.(syscall.Errno)
		return errno
	}
	status := new(uint32)
	if _, errno := call(syscall.SYS_WAIT4, uintptr(pid), uintptr(unsafe.Pointer(status)), waitAll, 0); errno != 0 {
		return errno
	}
	if *status != 0 {
		exit(1) // the child has reported why
	}
	return 0
}

// pivot makes the attached root the root directory and drops the keeper's mounts.
func pivot(r *runner, op *launch.Op) (string, syscall.Errno) {
	if _, errno := call(syscall.SYS_FCHDIR, uintptr(r.root)); errno != 0 {
		return "/", errno
	}
	dot := text(".")
	if _, errno := call(syscall.SYS_PIVOT_ROOT, uintptr(unsafe.Pointer(dot)), uintptr(unsafe.Pointer(dot))); errno != 0 {
		return "/", errno
	}
	// The old root is now mounted over the new one, and the working directory is the old one's (pivot_root(2)).
	if _, errno := call(syscall.SYS_UMOUNT2, uintptr(unsafe.Pointer(dot)), syscall.MNT_DETACH); errno != 0 {
		return "/", errno
	}
	if _, errno := call(syscall.SYS_CHDIR, uintptr(unsafe.Pointer(text("/")))); errno != 0 {
		return "/", errno
	}
	if r.propagate&syscall.MS_SHARED != 0 {
		if errno := propagation("/", r.propagate); errno != 0 {
			return "/", errno
		}
	}
	return "/", r.verifyRoot()
}

// verifyRoot proves that the root directory is the attached mount and nothing lies over it.
func (r *runner) verifyRoot() syscall.Errno {
	for _, path := range []string{"/", ".", ".."} {
		fd, errno := openat2(workingDir, path, oPath|syscall.O_DIRECTORY, 0, 0)
		if errno != 0 {
			return errno
		}
		info, errno := stat(fd)
		closeFd(fd)
		if errno != 0 {
			return errno
		}
		if info.mountID != r.rootInfo.mountID || info.ino != r.rootInfo.ino {
			return syscall.EXDEV
		}
	}
	return 0
}
