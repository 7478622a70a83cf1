package sys

import (
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// noXattrAt: the kernel is older than Linux 6.13.
var noXattrAt atomic.Bool

// xattrArgs is struct xattr_args of linux/xattr.h.
type xattrArgs struct {
	value *byte
	_     [8 - unsafe.Sizeof(uintptr(0))]byte // 64 bits everywhere
	size  uint32
	flags uint32
}

// GetxattrAt reads an extended attribute of name in dir into dest, and gives its length; a symlink is not followed. name has no
// slash. It is getxattrat(2) where the kernel has it (Linux 6.13), else the same by /proc, which takes twice as long.
func GetxattrAt(dir *os.File, name, attr string, dest []byte) (int, error) {
	if !noXattrAt.Load() {
		n, err := xattrAt(unix.SYS_GETXATTRAT, dir, name, attr, dest)
		if err != unix.ENOSYS {
			return n, err
		}
		noXattrAt.Store(true)
	}
	return unix.Lgetxattr(FDPath(dir)+"/"+name, attr, dest)
}

// SetxattrAt writes one, as GetxattrAt reads it.
func SetxattrAt(dir *os.File, name, attr string, value []byte) error {
	if !noXattrAt.Load() {
		_, err := xattrAt(unix.SYS_SETXATTRAT, dir, name, attr, value)
		if err != unix.ENOSYS {
			return err
		}
		noXattrAt.Store(true)
	}
	return unix.Lsetxattr(FDPath(dir)+"/"+name, attr, value, 0)
}

func xattrAt(call uintptr, dir *os.File, name, attr string, value []byte) (int, error) {
	namePtr, err := unix.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	attrPtr, err := unix.BytePtrFromString(attr)
	if err != nil {
		return 0, err
	}
	args := xattrArgs{value: unsafe.SliceData(value), size: uint32(len(value))}
	n, _, errno := unix.Syscall6(call, dir.Fd(), uintptr(unsafe.Pointer(namePtr)), unix.AT_SYMLINK_NOFOLLOW,
		uintptr(unsafe.Pointer(attrPtr)), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
