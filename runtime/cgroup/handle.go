package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// Handle is what a new process needs to be born into a group or to join it.
type Handle struct {
	// Dir is the v2 directory (O_PATH), for CLONE_INTO_CGROUP; nil on v1.
	Dir *os.File
	// Tasks are the tasks files of all v1 hierarchies, open for writing: the child
	// writes "0" into each while it is single-threaded. nil on v2.
	Tasks []*os.File
}

// Close closes the files. A process that has them keeps its own.
func (h *Handle) Close() error {
	var errs []error
	if h.Dir != nil {
		errs = append(errs, h.Dir.Close())
	}
	for _, f := range h.Tasks {
		errs = append(errs, f.Close())
	}
	h.Dir, h.Tasks = nil, nil
	return errors.Join(errs...)
}

// Open opens an existing group for Launch. The caller closes the handle.
func (m *Manager) Open(path string) (*Handle, error) {
	g, err := m.group(path)
	if err != nil {
		return nil, err
	}
	if g.version == 2 {
		dir, err := openFile(g.unified(), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return nil, fmt.Errorf("open cgroup: %w", err)
		}
		return &Handle{Dir: dir}, nil
	}
	h := &Handle{}
	for _, dir := range g.dirs(path) {
		f, err := openFile(filepath.Join(dir, "tasks"), unix.O_WRONLY)
		if err != nil {
			h.Close()
			return nil, fmt.Errorf("open cgroup: %w", err)
		}
		h.Tasks = append(h.Tasks, f)
	}
	return h, nil
}

// OpenOf opens the group in which pid is, if that lies below path: a container that may write to its groups can have
// moved there, and its own takes no process any more once it gives controllers to those below (cgroup-v2.rst, "No
// Internal Process Constraint"). v2 only.
func OpenOf(m *Manager, path string, pid int) (*Handle, error) {
	if m.version != 2 {
		return nil, fmt.Errorf("group of process %d below %s: cgroup v1: %w", pid, path, ErrNotSupported)
	}
	text, err := sys.ReadKernelFile("/proc/"+strconv.Itoa(pid)+"/cgroup", smallFile)
	if err != nil {
		return nil, fmt.Errorf("group of process %d: %w", pid, err)
	}
	for line := range strings.Lines(text) {
		at, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		if !strings.HasPrefix(at, path+"/") {
			return nil, fmt.Errorf("process %d is in %s, not below %s: %w", pid, at, path, ErrInvalid)
		}
		return m.Open(at)
	}
	return nil, fmt.Errorf("process %d is in no group of v2: %w", pid, ErrNotSupported)
}

// openFile opens without os.OpenFile's attempt to register with epoll, which
// would leave the descriptor non-blocking in the child that gets it.
func openFile(name string, flags int) (*os.File, error) {
	for {
		fd, err := unix.Open(name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
	}
}
