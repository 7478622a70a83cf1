package sys

import (
	"errors"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// openat2Tries bounds how often an EAGAIN is retried: a container that renames
// directories in a loop can keep a RESOLVE_IN_ROOT walk from ever succeeding.
const openat2Tries = 256

// Openat2 is openat2(2) relative to dir, which stays the caller's. O_CLOEXEC is
// always added. EINTR is retried, and so is EAGAIN, which means that a rename
// or mount anywhere on the system raced a walk with "..", up to a bound.
func Openat2(dir *os.File, path string, how unix.OpenHow) (*os.File, error) {
	fd, err := openat2(dir, path, how)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// OpenDirAt opens the directory name in dir, "." for dir itself, to be listed.
// resolve are RESOLVE_*; a symlink called name is never followed. The File is
// named by its descriptor: where a file system doesn't say of what kind an entry
// is, ReadDir looks at it by that name, and so in this very directory.
func OpenDirAt(dir *os.File, name string, resolve uint64) (*os.File, error) {
	fd, err := openat2(dir, name, unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW, Resolve: resolve})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "/proc/self/fd/"+strconv.Itoa(fd)), nil
}

func openat2(dir *os.File, path string, how unix.OpenHow) (int, error) {
	how.Flags |= unix.O_CLOEXEC
	for tries := 0; ; {
		fd, err := unix.Openat2(int(dir.Fd()), path, &how)
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN) && tries < openat2Tries:
			tries++
		default:
			return -1, &fs.PathError{Op: "openat2", Path: path, Err: err}
		}
	}
}

// Reopen opens the file behind an O_PATH descriptor for real. It goes through
// /proc/self/fd, so that what is opened is the inode that was looked at and no
// name is resolved a second time. f stays the caller's.
func Reopen(f *os.File, flags int) (*os.File, error) {
	fd, err := openRetry(unix.AT_FDCWD, FDPath(f), flags|unix.O_CLOEXEC)
	if err != nil {
		return nil, &fs.PathError{Op: "reopen", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// FDPath names f for calls that take only a path; valid while f is open.
func FDPath(f *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
}
