package sys

import (
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// WriteKernelFile writes value to a file of cgroupfs, procfs or sysfs with one
// open and one write. These files take one value per write(2) and report what
// is wrong with it as that call's errno; os.WriteFile would truncate, create,
// register with epoll, and split or repeat the write.
func WriteKernelFile(path, value string) error {
	fd, err := openRetry(unix.AT_FDCWD, path, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	data := []byte(value)
	for {
		n, err := unix.Write(fd, data)
		if err == unix.EINTR {
			continue
		}
		if err == nil && n != len(data) {
			err = fmt.Errorf("short write, %d of %d bytes", n, len(data))
		}
		if err != nil {
			return &fs.PathError{Op: "write", Path: path, Err: err}
		}
		return nil
	}
}

// ListEnds: a read of a list that procfs or cgroupfs makes line by line (seq_file, which fills a page at least before it stops)
// has given the last line if it gives fewer bytes than this, and the lines are shorter than the rest of a page.
const ListEnds = 4096 - 512

// ReadKernelFile reads a file of cgroupfs, procfs or sysfs whole, at most
// maxBytes; more is an error, never a silent cut.
func ReadKernelFile(path string, maxBytes int) (string, error) {
	return ReadKernelFileAt(unix.AT_FDCWD, path, maxBytes)
}

// ReadKernelFileAt is ReadKernelFile; a relative path is one from the directory dir (openat(2)).
func ReadKernelFileAt(dir int, path string, maxBytes int) (string, error) {
	return readKernelFileAt(dir, path, maxBytes, 1)
}

// ReadKernelListAt is ReadKernelFileAt of a list of short lines, for one read less (ListEnds).
func ReadKernelListAt(dir int, path string, maxBytes int) (string, error) {
	return readKernelFileAt(dir, path, maxBytes, ListEnds)
}

// readKernelFileAt takes a read of fewer than ends bytes, into room for more, for the last.
func readKernelFileAt(dir int, path string, maxBytes, ends int) (string, error) {
	fd, err := openRetry(dir, path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var page [4096]byte // most of these files are smaller, and there are many of them
	buf := page[:0:min(len(page), maxBytes+1)]
	for {
		if len(buf) > maxBytes {
			return "", &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("more than %d bytes", maxBytes)}
		}
		if len(buf) == cap(buf) {
			grown := make([]byte, len(buf), min(2*cap(buf), maxBytes+1))
			copy(grown, buf)
			buf = grown
		}
		room := buf[len(buf):cap(buf)]
		n, err := unix.Read(fd, room)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", &fs.PathError{Op: "read", Path: path, Err: err}
		}
		if buf = buf[:len(buf)+n]; n < min(ends, len(room)) {
			return string(buf), nil
		}
	}
}

// ReadKernelRecordAt is ReadKernelFile of a file that the kernel makes anew in one piece for every read at its beginning, as
// those of cgroupfs that are no lists (seq_file with one record, Documentation/filesystems/seq_file.rst): what one read
// leaves room after is all of it, and the read that would say so costs as much as the first. A relative path is one
// from the directory dir (openat(2)).
func ReadKernelRecordAt(dir int, path string, maxBytes int) (string, error) {
	fd, err := openRetry(dir, path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var page [4096]byte
	for {
		n, err := unix.Read(fd, page[:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return "", &fs.PathError{Op: "read", Path: path, Err: err}
		case n == len(page) || n > maxBytes:
			return ReadKernelFileAt(dir, path, maxBytes)
		}
		return string(page[:n]), nil
	}
}

func openRetry(dir int, path string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, path, flags, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
