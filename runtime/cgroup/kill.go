package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// freezePatience is how long Kill on v1 waits for all tasks to be frozen before
// it signals anyway: one in uninterruptible sleep never gets there.
const freezePatience = 50 * time.Millisecond

// Kill ends every process in the group and below it and returns when none is
// left or ctx ends. An absent or empty group is done.
func (m *Manager) Kill(ctx context.Context, path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	for pause := newPause(); ; {
		populated, err := m.Populated(path)
		if err == nil && populated {
			err = m.killOnce(ctx, path)
		}
		if err != nil {
			return fmt.Errorf("kill cgroup %s: %w", path, err)
		}
		if !populated {
			return nil
		}
		if err := pause.wait(ctx); err != nil {
			return m.killTimedOut(path, err)
		}
	}
}

// killTimedOut names what is left, so that a process in D state can be found.
func (m *Manager) killTimedOut(path string, err error) error {
	left, _ := m.Pids(path)
	if len(left) == 0 {
		return nil
	}
	return fmt.Errorf("kill cgroup %s: %d processes left, first pid %d: %w: %w", path, len(left), left[0], ErrBusy, err)
}

func (m *Manager) killOnce(ctx context.Context, path string) error {
	if m.version == 2 {
		// Kills frozen processes too, and what is forked meanwhile.
		err := sys.WriteKernelFile(filepath.Join(m.root, path, "cgroup.kill"), "1")
		if errors.Is(err, unix.ENOENT) {
			if _, statErr := os.Lstat(filepath.Join(m.root, path)); statErr == nil {
				return fmt.Errorf("cgroup.kill needs Linux 5.14: %w", ErrNotSupported)
			}
			return nil
		}
		return err
	}
	return m.killV1(ctx, path)
}

// killV1 freezes, signals, thaws. Frozen processes can't fork, and can't die, so
// that a pid read from the list still means the same process when it is opened.
func (m *Manager) killV1(ctx context.Context, path string) error {
	freezeCtx, cancel := context.WithTimeout(ctx, freezePatience)
	defer cancel()
	// An error or a timeout here makes the kill less certain, not impossible: the
	// caller loops until the group is empty.
	_ = m.Freeze(freezeCtx, path)
	pids, err := m.Pids(path)
	var errs []error
	if err != nil {
		errs = append(errs, err)
	}
	if slices.Contains(pids, os.Getpid()) {
		pids = nil
		errs = append(errs, errors.New("this process is in it"))
	}
	for _, pid := range pids {
		err := sys.SignalPid(pid, unix.SIGKILL)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, err)
		}
	}
	// On v1 SIGKILL takes effect when the task is thawed, so this must not be
	// skipped, and it includes children that were frozen by themselves.
	errs = append(errs, m.thawV1(path))
	return errors.Join(errs...)
}

// Freeze stops every process in the group and below it, and returns when the
// kernel says so. Frozen by an unfinished Freeze, a group stays so until Thaw.
func (m *Manager) Freeze(ctx context.Context, path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	dir, _ := m.controllerDir("freezer", path)
	file, word := filepath.Join(dir, "freezer.state"), "FROZEN"
	if m.version == 2 {
		file, word = filepath.Join(dir, "cgroup.freeze"), "1"
	}
	if err := sys.WriteKernelFile(file, word); err != nil {
		return fmt.Errorf("freeze cgroup: %w", err)
	}
	for pause := newPause(); ; {
		frozen, err := m.frozen(dir)
		if err != nil {
			return fmt.Errorf("freeze cgroup: %w", err)
		}
		if frozen {
			return nil
		}
		if err := pause.wait(ctx); err != nil {
			return fmt.Errorf("freeze cgroup %s: %w", path, err)
		}
		if m.version == 1 {
			// A task that was moved or forked while FREEZING is looked for only on a
			// write: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst.
			_ = sys.WriteKernelFile(file, word)
		}
	}
}

func (m *Manager) frozen(dir string) (bool, error) {
	if m.version == 2 {
		events, err := readFlatKeyed(filepath.Join(dir, "cgroup.events"))
		return events["frozen"] == 1, err
	}
	state, err := readTrimmed(filepath.Join(dir, "freezer.state"))
	return state == "FROZEN", err
}

// Thaw lets the group run again. An absent group is done.
func (m *Manager) Thaw(ctx context.Context, path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	if m.version == 1 {
		return m.thawV1(path)
	}
	err := sys.WriteKernelFile(filepath.Join(m.root, path, "cgroup.freeze"), "0")
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("thaw cgroup: %w", err)
	}
	for pause := newPause(); ; {
		frozen, err := m.frozen(filepath.Join(m.root, path))
		if errors.Is(err, unix.ENOENT) || err == nil && !frozen {
			return nil
		}
		if err != nil {
			return fmt.Errorf("thaw cgroup: %w", err)
		}
		if err := pause.wait(ctx); err != nil {
			return fmt.Errorf("thaw cgroup %s: %w", path, err)
		}
	}
}

// thawV1 also thaws children: each has a state of its own. A frozen ancestor
// keeps all of them frozen, which is told.
func (m *Manager) thawV1(path string) error {
	top, _ := m.controllerDir("freezer", path)
	err := walkDirs(top, func(dir string) error {
		err := sys.WriteKernelFile(filepath.Join(dir, "freezer.state"), "THAWED")
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("thaw cgroup: %w", err)
	}
	above, err := readTrimmed(filepath.Join(top, "freezer.parent_freezing"))
	if err == nil && strings.HasPrefix(above, "1") {
		return fmt.Errorf("thaw cgroup %s: a group above it is frozen: %w", path, ErrBusy)
	}
	return nil
}
