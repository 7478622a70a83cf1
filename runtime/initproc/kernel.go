package initproc

import (
	"syscall"
	"unsafe"
)

// Raw system calls. x/sys/unix has most of them, but what it imports (time, reflect, sort) takes 70 µs to
// initialise, a tenth of init's life, and its wrappers tell Go's scheduler about each call, which would start
// threads. A test compares the constants with x/sys.

// Call numbers from 424 on are the same on every architecture.
const (
	sysOpenTree     = 428
	sysMoveMount    = 429
	sysFsopen       = 430
	sysFsconfig     = 431
	sysFsmount      = 432
	sysCloseRange   = 436
	sysOpenat2      = 437
	sysMountSetattr = 442
)

const (
	oPath       = 0x200000
	workingDir  = -100 // AT_FDCWD
	fdcwd       = ^uintptr(99)
	atEmptyPath = 0x1000
	atNoFollow  = 0x100
	atRecursive = 0x8000

	resolveNoXdev       = 0x1
	resolveNoMagiclinks = 0x2
	resolveNoSymlinks   = 0x4
	resolveBeneath      = 0x8
	resolveInRoot       = 0x10
	openHowSize         = 24  // of struct open_how
	statfsSize          = 120 // of struct statfs
	pathMax             = 4096

	fsconfigSetFlag   = 0
	fsconfigSetString = 1
	fsconfigSetFd     = 5
	fsconfigCreate    = 6
	fsopenCloexec     = 1
	fsmountCloexec    = 1

	openTreeClone   = 1
	openTreeCloexec = syscall.O_CLOEXEC
	moveFromEmpty   = 0x4
	moveToEmpty     = 0x40

	mountAttrReadonly = 0x1
	mountAttrNosuid   = 0x2
	mountAttrNodev    = 0x4
	mountAttrNoexec   = 0x8

	statxBasic   = 0x7ff
	statxMountID = 0x1000

	closeRangeCloexec = 4
	lastFd            = 1<<32 - 1

	procMagic   = 0x9fa0
	devptsMagic = 0x1cd1
	procRootIno = 1

	waitAll         = 0x40000000 // __WALL
	cloneFlagParent = 0x8000
	cloneFlagFiles  = 0x400
)

// call is one system call outside Go's scheduler. Pointers converted in its argument list stay alive and in place.
//
//go:uintptrescapes
func call(nr uintptr, args ...uintptr) (int, syscall.Errno) {
	var a [6]uintptr
	copy(a[:], args)
	for {
		r, _, errno := syscall.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		if errno != syscall.EINTR {
			return int(r), errno
		}
	}
}

// text is s as a C string.
func text(s string) *byte {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return &b[0]
}

func closeFd(fd int) { syscall.RawSyscall(syscall.SYS_CLOSE, uintptr(fd), 0, 0) }

// openat2 opens path below dir. With RESOLVE_IN_ROOT or RESOLVE_BENEATH the kernel answers EAGAIN when a rename
// or mount anywhere on the machine raced with a ".." (openat2(2)); that ends after a few tries.
func openat2(dir int, path string, flags, mode, resolve uint64) (int, syscall.Errno) {
	how := &[3]uint64{flags | syscall.O_CLOEXEC, mode, resolve}
	name := text(path)
	for try := 0; ; try++ {
		fd, errno := call(sysOpenat2, uintptr(dir), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(how)), unsafe.Sizeof(*how))
		if errno != syscall.EAGAIN || try == 128 {
			return fd, errno
		}
	}
}

// fileInfo is what this package needs of struct statx.
type fileInfo struct {
	mode    uint32
	ino     uint64
	rdev    uint64 // as in Op.Flags: unix.Mkdev
	dev     uint64
	mountID uint64
}

func (f *fileInfo) is(kind uint32) bool { return f.mode&syscall.S_IFMT == kind }

// stat describes the file behind fd (statx(2), offsets of struct statx).
func stat(fd int) (fileInfo, syscall.Errno) {
	buffer := new([256]byte)
	_, errno := call(sysStatx, uintptr(fd), uintptr(unsafe.Pointer(text(""))), atEmptyPath|atNoFollow, statxBasic|statxMountID, uintptr(unsafe.Pointer(buffer)))
	half := func(at int) uint64 { return uint64(*(*uint32)(unsafe.Pointer(&buffer[at]))) }
	return fileInfo{
		mode:    uint32(*(*uint16)(unsafe.Pointer(&buffer[28]))),
		ino:     *(*uint64)(unsafe.Pointer(&buffer[32])),
		rdev:    device(half(128), half(132)),
		dev:     device(half(136), half(140)),
		mountID: *(*uint64)(unsafe.Pointer(&buffer[144])),
	}, errno
}

// device encodes a device number as mknod(2) takes it.
func device(major, minor uint64) uint64 {
	return major&0xfff<<8 | major&^0xfff<<32 | minor&0xff | minor&^0xff<<12
}

// fsType is the magic number of the file system behind fd (fstatfs(2)).
func fsType(fd int) (int64, syscall.Errno) {
	st := new(syscall.Statfs_t)
	_, errno := call(syscall.SYS_FSTATFS, uintptr(fd), uintptr(unsafe.Pointer(st)))
	return int64(st.Type), errno
}

// readlink reads the symbolic link behind the O_PATH descriptor fd.
func readlink(fd int) (string, syscall.Errno) {
	buffer := make([]byte, pathMax)
	n, errno := call(syscall.SYS_READLINKAT, uintptr(fd), uintptr(unsafe.Pointer(text(""))), uintptr(unsafe.Pointer(&buffer[0])), uintptr(len(buffer)))
	if errno != 0 {
		return "", errno
	}
	return string(buffer[:n]), 0
}

// moveMount attaches the detached mount fd on the file target.
func moveMount(fd, target int) syscall.Errno {
	empty := text("")
	_, errno := call(sysMoveMount, uintptr(fd), uintptr(unsafe.Pointer(empty)), uintptr(target), uintptr(unsafe.Pointer(empty)), moveFromEmpty|moveToEmpty)
	return errno
}

// openTree makes a detached copy of the mount at fd, with what is mounted below when flags holds atRecursive.
func openTree(fd int, flags uintptr) (int, syscall.Errno) {
	return call(sysOpenTree, uintptr(fd), uintptr(unsafe.Pointer(text(""))), flags|openTreeClone|openTreeCloexec|atEmptyPath)
}

// setMountAttr sets attributes on the mount whose root is fd (mount_setattr(2)).
func setMountAttr(fd int, flags uintptr, set uint64) syscall.Errno {
	attr := &[4]uint64{set} // struct mount_attr: set, clear, propagation, userns
	_, errno := call(sysMountSetattr, uintptr(fd), uintptr(unsafe.Pointer(text(""))), flags|atEmptyPath, uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
	return errno
}

func prctl(args ...uintptr) (int, syscall.Errno) { return call(syscall.SYS_PRCTL, args...) }

// write sends b whole, as the kernel does for sockets and for the small files of procfs and cgroupfs.
func write(fd int, b string) syscall.Errno {
	n, errno := call(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.StringData(b))), uintptr(len(b)))
	if errno == 0 && n != len(b) {
		return syscall.EIO
	}
	return errno
}
