package podsandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/selinux"
)

// streams are the descriptors of one container's output, input and log, made here and handed to the keeper,
// which gives duplicates to the anchor. The caller closes all after the hand-over.
//
// They are FIFOs with names, so that a keeper that starts after both its predecessors died can take them up
// again; and they belong to the workload's user, so that a program may reopen /dev/stdout.
type streams struct {
	stdin, stdout, stderr              *os.File // the workload's ends
	stdinWrite, stdoutRead, stderrRead *os.File // the keeper's ends
	log                                *os.File // nil without a log path
}

func (s *streams) close() {
	for _, f := range []*os.File{s.stdin, s.stdout, s.stderr, s.stdinWrite, s.stdoutRead, s.stderrRead, s.log} {
		if f != nil {
			f.Close()
		}
	}
}

// openStreams makes the FIFOs in dir, which exists and is the container's alone, and opens the log file. A
// terminal needs no FIFO; without stdin the workload reads /dev/null. FIFOs get the SELinux label, where there is one: a
// workload that may not use one finds /dev/null in its place.
func openStreams(dir string, uid, gid int, terminal, stdin bool, label, logDir, logPath string) (*streams, error) {
	s := &streams{}
	err := s.open(dir, uid, gid, terminal, stdin, label)
	if err == nil && logPath != "" {
		s.log, err = openLog(logDir, logPath)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *streams) open(dir string, uid, gid int, terminal, stdin bool, label string) (err error) {
	if terminal {
		return nil
	}
	if s.stdoutRead, s.stdout, err = fifo(filepath.Join(dir, "stdout"), uid, gid, label); err != nil {
		return err
	}
	if s.stderrRead, s.stderr, err = fifo(filepath.Join(dir, "stderr"), uid, gid, label); err != nil {
		return err
	}
	if !stdin {
		s.stdin, err = os.OpenFile(os.DevNull, os.O_RDONLY, 0)
		return err
	}
	s.stdin, s.stdinWrite, err = fifo(filepath.Join(dir, "stdin"), uid, gid, label)
	return err
}

// fifo makes path and opens both of its ends: blocking ones for the workload, which knows no EAGAIN. The
// read end is opened first and without blocking, so that neither open waits for the other (fifo(7)).
func fifo(path string, uid, gid int, label string) (read, write *os.File, err error) {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, nil, fmt.Errorf("make fifo %s: %w", path, err)
	}
	if err := unix.Lchown(path, uid, gid); err != nil {
		return nil, nil, fmt.Errorf("chown fifo %s: %w", path, err)
	}
	if err := selinux.SetFile(path, label); err != nil {
		return nil, nil, err
	}
	readFd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open fifo %s: %w", path, err)
	}
	writeFd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		unix.Close(readFd)
		return nil, nil, fmt.Errorf("open fifo %s: %w", path, err)
	}
	// Status flags belong to the open file description, which the workload's end of stdin shares with nobody.
	if err := unix.SetNonblock(readFd, false); err != nil {
		unix.Close(readFd)
		unix.Close(writeFd)
		return nil, nil, fmt.Errorf("open fifo %s: %w", path, err)
	}
	return os.NewFile(uintptr(readFd), path), os.NewFile(uintptr(writeFd), path), nil
}

// openLog opens or makes the log file, appending. log_path is relative to the sandbox's log directory and never
// leaves it, not through ".." and not through a link that somebody put there (CVE-2025-0750, B36).
func openLog(logDir, logPath string) (*os.File, error) {
	if logDir == "" {
		return nil, kindf(ErrInvalid, "log_path %q: the sandbox has no log_directory", logPath)
	}
	dir, err := os.OpenFile(logDir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(logDir, 0o755); err == nil {
			dir, err = os.OpenFile(logDir, unix.O_PATH|unix.O_DIRECTORY, 0)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open log directory: %w", err)
	}
	defer dir.Close()
	if parent := filepath.Dir(logPath); parent != "." {
		if err := makeBeneath(dir, parent); err != nil {
			return nil, fmt.Errorf("log_path %q in %s: %w", logPath, logDir, err)
		}
	}
	file, err := openLogFile(int(dir.Fd()), logPath, unix.O_CREAT)
	if err != nil {
		return nil, fmt.Errorf("log %q in %s: %w", logPath, logDir, err)
	}
	return file, nil
}

// resolveLog is how a path below the log directory is resolved.
const resolveLog = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// openLogFile opens path below dir for appending.
func openLogFile(dir int, path string, more uint64) (*os.File, error) {
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{
		Flags: unix.O_WRONLY | unix.O_APPEND | unix.O_CLOEXEC | unix.O_NONBLOCK | more, Mode: logMode(more), Resolve: resolveLog,
	})
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	// O_NONBLOCK kept a FIFO without a reader from hanging the open; only a regular file is a log.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, kindf(ErrInvalid, "it is no regular file")
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open: %w", err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// logMode is 0 where no file is made: openat2(2) takes no other then.
func logMode(flags uint64) uint64 {
	if flags&unix.O_CREAT == 0 {
		return 0
	}
	return 0o640
}

// makeBeneath makes the directories of path below dir, following no link.
func makeBeneath(dir *os.File, path string) error {
	at := int(dir.Fd())
	for _, name := range strings.Split(filepath.Clean(path), "/") {
		if err := unix.Mkdirat(at, name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return closeUnless(at, dir, &os.PathError{Op: "mkdir", Path: name, Err: err})
		}
		next, err := unix.Openat2(at, name, &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
		})
		if err != nil {
			return closeUnless(at, dir, &os.PathError{Op: "open", Path: name, Err: err})
		}
		closeUnless(at, dir, nil)
		at = next
	}
	return closeUnless(at, dir, nil)
}

// closeUnless closes fd unless it is dir's own, which stays the caller's; err is handed through.
func closeUnless(fd int, dir *os.File, err error) error {
	if fd != int(dir.Fd()) {
		unix.Close(fd)
	}
	return err
}
