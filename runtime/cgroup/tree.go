package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// List names the groups directly below parent ("/" is the root), over all
// hierarchies: a group that is left in one of them counts. An absent parent has
// none.
func (m *Manager) List(parent string) ([]string, error) {
	if parent != "/" {
		if err := checkPath(parent); err != nil {
			return nil, err
		}
	}
	var names []string
	for _, dir := range m.dirs(parent) {
		children, err := childDirs(dir)
		if err != nil {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
		for _, child := range children {
			names = append(names, filepath.Base(child))
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Pids are the processes of the group and all below it, ascending, over all
// hierarchies; none if the group is gone. A process of an outer PID namespace
// shows as 0.
func (m *Manager) Pids(path string) ([]int, error) {
	g, err := m.group(path)
	if err != nil {
		return nil, err
	}
	return g.pids()
}

// Processes are those of Pids as one hierarchy knows them: enough to count, and a
// ninth of the price on v1.
func (m *Manager) Processes(path string) ([]int, error) {
	g, err := m.group(path)
	if err != nil {
		return nil, err
	}
	at := g.topOf("pids").fd()
	return listPids(at, func(fn func(dir string) error) error { return walkDirsAt(at, path[1:], fn) })
}

func (g group) pids() ([]int, error) { return listPids(unix.AT_FDCWD, g.eachDir) }

// listPids lists what is in directories that are relative to the directory at.
func listPids(at int, eachDir func(func(dir string) error) error) ([]int, error) {
	var pids []int
	err := eachDir(func(dir string) error {
		text, err := sys.ReadKernelListAt(at, dir+"/cgroup.procs", listFile)
		// EOPNOTSUPP: a threaded v2 group; its processes are listed at the top of the
		// threaded subtree. ENODEV: removed between open and read.
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, field := range strings.Fields(text) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return fmt.Errorf("%s/cgroup.procs: %w", dir, err)
			}
			pids = append(pids, pid)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup: %w", err)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// Populated reports whether any live process is in the group or below it. An
// absent group is empty.
func (m *Manager) Populated(path string) (bool, error) {
	g, err := m.group(path)
	if err != nil {
		return false, err
	}
	return g.populated()
}

func (g group) populated() (bool, error) {
	if g.version == 2 {
		events, err := readFlatKeyed(filepath.Join(g.unified(), "cgroup.events"))
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
			return false, nil
		}
		return events["populated"] == 1, err
	}
	pids, err := g.pids()
	return len(pids) > 0, err
}

// Remove removes the group and all below it in every hierarchy. Absent is done.
// EBUSY is retried until ctx ends: the last process may still be on its way out.
func (m *Manager) Remove(ctx context.Context, path string) error {
	g, err := m.group(path)
	if err != nil {
		return err
	}
	for pause := newPause(); ; {
		busy, err := g.remove()
		if err != nil || !busy {
			return err
		}
		if err := pause.wait(ctx); err != nil {
			return fmt.Errorf("remove cgroup %s: %w: %w", path, ErrBusy, err)
		}
	}
}

// RemoveEmpty removes the group if nothing is in or below it, else ErrBusy; for
// parents that a Create made on the way and whoever comes last takes away. A slice is
// systemd's to keep or remove.
func (m *Manager) RemoveEmpty(path string) error {
	if strings.HasSuffix(path, sliceSuffix) && m.driver == DriverSystemd {
		return nil
	}
	g, err := m.group(path)
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range g.dirs(path) {
		err := unix.Rmdir(dir)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
		case errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY):
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, ErrBusy))
		default:
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

func (g group) remove() (busy bool, err error) {
	var errs []error
	for _, dir := range g.dirs(g.path) {
		left, err := removeTree(dir)
		busy = busy || left
		if err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return busy, errors.Join(errs...)
}

// removeTree tries the directory itself first, because most have no children.
func removeTree(dir string) (busy bool, err error) {
	for range 2 {
		err := unix.Rmdir(dir)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			return false, nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY):
			return false, &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		children, err := childDirs(dir)
		if err != nil || len(children) == 0 {
			return true, err
		}
		for _, child := range children {
			left, err := removeTree(child)
			if err != nil || left {
				return left, err
			}
		}
	}
	return true, nil
}

// eachDir calls fn for the group's directory in every hierarchy and for all
// below them, parents first.
func (g group) eachDir(fn func(dir string) error) error {
	for _, dir := range g.dirs(g.path) {
		if err := walkDirs(dir, fn); err != nil {
			return err
		}
	}
	return nil
}

func walkDirs(dir string, fn func(dir string) error) error { return walkDirsAt(unix.AT_FDCWD, dir, fn) }

func walkDirsAt(at int, dir string, fn func(dir string) error) error {
	if err := fn(dir); err != nil {
		return err
	}
	children, err := childDirsAt(at, dir)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := walkDirsAt(at, child, fn); err != nil {
			return err
		}
	}
	return nil
}

func childDirs(dir string) ([]string, error) { return childDirsAt(unix.AT_FDCWD, dir) }

// childDirsAt are the directories in dir, which is relative to the directory at; none if it is gone. kernfs counts them
// in st_nlink, so that the usual leaf costs one stat and not a listing of its files.
func childDirsAt(at int, dir string) ([]string, error) {
	var st unix.Stat_t
	err := unix.Fstatat(at, dir, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if st.Nlink == 2 {
		return nil, nil
	}
	fd, err := unix.Openat(at, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, dir+"/"+e.Name())
		}
	}
	return out, nil
}

// pause waits between looks at the kernel, from 0.2 ms growing to 20 ms.
type pause struct{ next time.Duration }

func newPause() *pause { return &pause{next: 200 * time.Microsecond} }

func (p *pause) wait(ctx context.Context) error {
	timer := time.NewTimer(p.next)
	defer timer.Stop()
	p.next = min(2*p.next, 20*time.Millisecond)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
