package initproc

import (
	"syscall"

	"github.com/podwright/podwright/runtime/launch"
)

// nullDevice is /dev/null's device number, char 1:3.
const nullDevice = 1<<8 | 3

// existing opens path; ok is false without an error when it does not exist.
func (r *runner) existing(path string) (fd int, ok bool, errno syscall.Errno) {
	fd, errno = r.open(path, 0)
	if errno == syscall.ENOENT || errno == syscall.ENOTDIR {
		return -1, false, 0
	}
	return fd, errno == 0, errno
}

func mask(r *runner, op *launch.Op) (string, syscall.Errno) {
	target, ok, errno := r.existing(op.Path)
	if !ok {
		return "", errno
	}
	defer closeFd(target)
	info, errno := stat(target)
	if errno != 0 {
		return "", errno
	}
	if info.is(syscall.S_IFDIR) {
		return "", r.hideDirectory(target, op.Strings)
	}
	null, path, errno := r.nullFile()
	if errno != 0 {
		return path, errno
	}
	return "", coverWith(null, target)
}

// coverWith mounts a copy of the attached mount or file source on target.
func coverWith(source, target int) syscall.Errno {
	copied, errno := openTree(source, 0)
	if errno != 0 {
		return errno
	}
	defer closeFd(copied)
	return moveMount(copied, target)
}

// hideDirectory lays an empty read-only directory over target: the same one each time, since only an attached
// mount can be copied before Linux 6.15.
func (r *runner) hideDirectory(target int, more []string) syscall.Errno {
	if r.empty >= 0 {
		return coverWith(r.empty, target)
	}
	const attributes = mountAttrReadonly | mountAttrNosuid | mountAttrNodev | mountAttrNoexec
	fd, errno := r.newMount("tmpfs", append([]string{"ro", "mode=755", "nr_blocks=1", "nr_inodes=2"}, more...), attributes)
	if errno != 0 {
		return errno
	}
	r.empty = fd
	return moveMount(fd, target)
}

// nullFile gives the container's /dev/null, looked up without following any link and known by its device
// number: a link or file in its place would be laid over the masked paths instead (CVE-2025-31133).
func (r *runner) nullFile() (int, string, syscall.Errno) {
	const path = "/dev/null"
	if r.null >= 0 {
		return r.null, "", 0
	}
	fd, errno := r.open(path, resolveNoSymlinks)
	if errno != 0 {
		return -1, path, errno
	}
	info, errno := stat(fd)
	if errno == 0 && (!info.is(syscall.S_IFCHR) || info.rdev != nullDevice) {
		errno = syscall.ENODEV
	}
	if errno != 0 {
		closeFd(fd)
		return -1, path, errno
	}
	r.null = fd
	return fd, "", 0
}

func readonlyPath(r *runner, op *launch.Op) (string, syscall.Errno) {
	target, ok, errno := r.existing(op.Path)
	if !ok {
		return "", errno
	}
	defer closeFd(target)
	copied, errno := openTree(target, atRecursive)
	if errno != 0 {
		return "", errno
	}
	defer closeFd(copied)
	if errno = setMountAttr(copied, atRecursive, mountAttrReadonly); errno != 0 {
		return "", errno
	}
	return "", moveMount(copied, target)
}

func mountAttr(r *runner, op *launch.Op) (string, syscall.Errno) {
	fd, errno := r.open(op.Path, 0)
	if errno != 0 {
		return "", errno
	}
	defer closeFd(fd)
	flags := uintptr(0)
	if op.Number == 1 {
		flags = atRecursive
	}
	return "", setMountAttr(fd, flags, op.Flags)
}
