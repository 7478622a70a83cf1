package initproc

import (
	"strings"
	"syscall"
	"unsafe"
)

// Every path here is looked up in the container's root by openat2(2) with RESOLVE_IN_ROOT: an absolute link or
// a ".." of the image leads to another place in the image, and never out of it (CVE-2019-18837,
// CVE-2021-30465). Magic links of procfs are never followed.

const (
	inRoot   = resolveInRoot | resolveNoMagiclinks
	maxLinks = 40 // the kernel's own limit (path_resolution(7))
	dirMode  = 0o755
	fileMode = 0o644
)

// open gives an O_PATH descriptor of an existing path.
func (r *runner) open(path string, resolve uint64) (int, syscall.Errno) {
	if r.root < 0 {
		return -1, syscall.EBADF
	}
	return openat2(r.root, path, oPath, 0, inRoot|resolve)
}

// linkless are the directories whose place decides what later steps reach through them: a link there is
// refused rather than followed (CVE-2023-27561; CVE-2026-41579 and CVE-2026-47766, where an image's /dev
// link led device nodes out of the container).
func linkless(path string) uint64 {
	switch strings.Trim(path, "/") {
	case "dev", "proc", "sys":
		return resolveNoSymlinks
	}
	return 0
}

// target opens what a mount goes on, made with the mode where it is missing: a directory or an empty file.
// The root itself is refused, and so is a link into procfs (CVE-2019-16884).
func (r *runner) target(path string, directory bool, mode uint32) (int, syscall.Errno) {
	resolve := linkless(path)
	fd, errno := r.open(path, resolve)
	if errno == syscall.ENOENT {
		fd, errno = r.create(path, directory, mode, resolve == 0)
	}
	if errno != 0 {
		return -1, errno
	}
	if errno = r.mayMountOn(fd, path, directory); errno != 0 {
		closeFd(fd)
		return -1, errno
	}
	return fd, 0
}

// mayMountOn refuses what would change more than the path named in the plan.
func (r *runner) mayMountOn(fd int, path string, directory bool) syscall.Errno {
	info, errno := stat(fd)
	switch {
	case errno != 0:
		return errno
	case info.is(syscall.S_IFLNK):
		return syscall.ELOOP
	case directory && !info.is(syscall.S_IFDIR):
		return syscall.ENOTDIR
	case !directory && info.is(syscall.S_IFDIR):
		return syscall.EISDIR
	}
	if info.mountID == r.rootInfo.mountID && info.ino == r.rootInfo.ino {
		return syscall.EBUSY
	}
	magic, errno := fsType(fd)
	if errno == 0 && magic == procMagic && !strings.HasPrefix(path, "/proc/") && path != "/proc" {
		return syscall.EXDEV
	}
	return errno
}

// create makes path, and the directories that lead to it, and gives its descriptor.
func (r *runner) create(path string, directory bool, mode uint32, follow bool) (int, syscall.Errno) {
	parent, name, errno := r.parent(path, follow)
	if errno != 0 {
		return -1, errno
	}
	defer closeFd(parent)
	if directory {
		errno = makeDirectory(parent, name, mode)
	} else {
		errno = makeFile(parent, name, mode)
	}
	if errno != 0 && errno != syscall.EEXIST {
		return -1, errno
	}
	return openat2(parent, name, oPath|syscall.O_NOFOLLOW, 0, resolveBeneath|resolveNoMagiclinks)
}

// parent walks to the directory that holds the last component of path, component by component, makes what is
// missing on the way and gives that directory and the last component's name. Links are expanded as the kernel
// does, but against the container's root, which makes dangling ones usable (/etc/resolv.conf of many images).
// With follow the last component is no link when parent returns.
func (r *runner) parent(path string, follow bool) (dir int, name string, errno syscall.Errno) {
	w := walk{r: r, rest: path}
	if errno = w.restart(""); errno != 0 {
		return -1, "", errno
	}
	for {
		done, errno := w.next(follow)
		if errno != 0 {
			closeFd(w.dir)
			return -1, "", errno
		}
		if done {
			return w.dir, w.name, 0
		}
	}
}

// walk is the state of parent: dir is the directory reached, at its path without links, rest what is ahead.
type walk struct {
	r     *runner
	dir   int
	at    string
	name  string
	rest  string
	links int
}

// restart continues from the directory at below the root.
func (w *walk) restart(at string) syscall.Errno {
	if w.r.root < 0 {
		w.dir = -1
		return syscall.EBADF
	}
	dir, errno := openat2(w.r.root, "./"+at, oPath|syscall.O_DIRECTORY, 0, inRoot|resolveNoSymlinks)
	w.enter(dir, at)
	return errno
}

func (w *walk) enter(dir int, at string) {
	if w.dir > 0 {
		closeFd(w.dir)
	}
	w.dir, w.at = dir, at
}

// next goes one component further; done says that name is the last one.
func (w *walk) next(follow bool) (done bool, errno syscall.Errno) {
	w.name, w.rest = component(w.rest)
	switch w.name {
	case "":
		return false, syscall.EISDIR // the path ends in "..": there is nothing to make
	case "..":
		up := w.at[:max(strings.LastIndexByte(w.at, '/'), 0)]
		return false, w.restart(up)
	}
	fd, errno := openat2(w.dir, w.name, oPath|syscall.O_NOFOLLOW, 0, resolveBeneath|resolveNoMagiclinks)
	if errno == syscall.ENOENT {
		if w.rest == "" {
			return true, 0
		}
		if errno = makeDirectory(w.dir, w.name, dirMode); errno != 0 && errno != syscall.EEXIST {
			return false, errno
		}
		fd, errno = openat2(w.dir, w.name, oPath|syscall.O_NOFOLLOW, 0, resolveBeneath|resolveNoMagiclinks)
	}
	if errno != 0 {
		return false, errno
	}
	return w.arrive(fd, follow)
}

// arrive goes on from the existing file fd, called w.name.
func (w *walk) arrive(fd int, follow bool) (done bool, errno syscall.Errno) {
	info, errno := stat(fd)
	if errno != 0 {
		closeFd(fd)
		return false, errno
	}
	last := w.rest == ""
	switch {
	case info.is(syscall.S_IFLNK) && (!last || follow):
		link, errno := readlink(fd)
		closeFd(fd)
		if w.links++; errno == 0 && w.links > maxLinks {
			errno = syscall.ELOOP
		}
		if errno != 0 {
			return false, errno
		}
		w.rest = trimmed(link + "/" + w.rest)
		if strings.HasPrefix(link, "/") {
			return false, w.restart("")
		}
		return false, 0
	case last:
		closeFd(fd)
		return true, 0
	case !info.is(syscall.S_IFDIR):
		closeFd(fd)
		return false, syscall.ENOTDIR
	}
	w.enter(fd, w.at+"/"+w.name)
	return false, 0
}

// component splits the first name off path; rest is "" when no name follows.
func component(path string) (name, rest string) {
	path = trimmed(path)
	if i := strings.IndexByte(path, '/'); i >= 0 {
		return path[:i], trimmed(path[i:])
	}
	return path, ""
}

// trimmed drops leading slashes and "." components.
func trimmed(path string) string {
	for {
		switch {
		case strings.HasPrefix(path, "/"):
			path = path[1:]
		case path == ".":
			return ""
		case strings.HasPrefix(path, "./"):
			path = path[2:]
		default:
			return path
		}
	}
}

func makeDirectory(dir int, name string, mode uint32) syscall.Errno {
	_, errno := call(syscall.SYS_MKDIRAT, uintptr(dir), uintptr(unsafe.Pointer(text(name))), uintptr(mode))
	return errno
}

// makeFile makes an empty file. O_EXCL: whatever appeared meanwhile is not opened, a FIFO could block.
func makeFile(dir int, name string, mode uint32) syscall.Errno {
	fd, errno := call(syscall.SYS_OPENAT, uintptr(dir), uintptr(unsafe.Pointer(text(name))),
		syscall.O_CREAT|syscall.O_EXCL|syscall.O_WRONLY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, uintptr(mode))
	if errno == 0 {
		closeFd(fd)
	}
	return errno
}
