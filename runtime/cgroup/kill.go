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
	g, err := m.group(path)
	if err != nil {
		return err
	}
	for pause := newPause(); ; {
		populated, err := g.populated()
		if err == nil && populated {
			err = g.killOnce(ctx)
		}
		if err != nil {
			return fmt.Errorf("kill cgroup %s: %w", path, err)
		}
		if !populated {
			return nil
		}
		if err := pause.wait(ctx); err != nil {
			return g.killTimedOut(err)
		}
	}
}

// killTimedOut names what is left, so that a process in D state can be found.
func (g group) killTimedOut(err error) error {
	left, _ := g.pids()
	if len(left) == 0 {
		return nil
	}
	return fmt.Errorf("kill cgroup %s: %d processes left, first pid %d: %w: %w", g.path, len(left), left[0], ErrBusy, err)
}

func (g group) killOnce(ctx context.Context) error {
	if g.version == 2 {
		// Kills frozen processes too, and what is forked meanwhile.
		err := sys.WriteKernelFile(filepath.Join(g.unified(), "cgroup.kill"), "1")
		if errors.Is(err, unix.ENOENT) {
			if _, statErr := os.Lstat(g.unified()); statErr == nil {
				return fmt.Errorf("cgroup.kill needs Linux 5.14: %w", ErrNotSupported)
			}
			return nil
		}
		return err
	}
	return g.killV1(ctx)
}

// killV1 freezes, signals, thaws. Frozen processes can't fork, and can't die, so
// that a pid read from the list still means the same process when it is opened.
func (g group) killV1(ctx context.Context) error {
	freezeCtx, cancel := context.WithTimeout(ctx, freezePatience)
	defer cancel()
	// An error or a timeout here makes the kill less certain, not impossible: the
	// caller loops until the group is empty.
	_ = g.freeze(freezeCtx)
	pids, err := g.pids()
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
	errs = append(errs, g.thawV1())
	return errors.Join(errs...)
}

// Freeze stops every process in the group and below it, and returns when the
// kernel says so. Frozen by an unfinished Freeze, a group stays so until Thaw.
func (m *Manager) Freeze(ctx context.Context, path string) error {
	g, err := m.group(path)
	if err != nil {
		return err
	}
	return g.freeze(ctx)
}

func (g group) freeze(ctx context.Context) error {
	dir, _ := g.dir("freezer")
	file, word := filepath.Join(dir, "freezer.state"), "FROZEN"
	if g.version == 2 {
		file, word = filepath.Join(dir, "cgroup.freeze"), "1"
	}
	if err := sys.WriteKernelFile(file, word); err != nil {
		return fmt.Errorf("freeze cgroup: %w", err)
	}
	for pause := newPause(); ; {
		frozen, err := g.frozen()
		if err != nil {
			return fmt.Errorf("freeze cgroup: %w", err)
		}
		if frozen {
			return nil
		}
		if err := pause.wait(ctx); err != nil {
			return fmt.Errorf("freeze cgroup %s: %w", g.path, err)
		}
		if g.version == 1 {
			// A task that was moved or forked while FREEZING is looked for only on a
			// write: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst.
			_ = sys.WriteKernelFile(file, word)
		}
	}
}

func (g group) frozen() (bool, error) {
	dir, _ := g.dir("freezer")
	if g.version == 2 {
		events, err := readFlatKeyed(filepath.Join(dir, "cgroup.events"))
		return events["frozen"] == 1, err
	}
	state, err := readTrimmed(filepath.Join(dir, "freezer.state"))
	return state == "FROZEN", err
}

// Thaw lets the group run again. An absent group is done.
func (m *Manager) Thaw(ctx context.Context, path string) error {
	g, err := m.group(path)
	if err != nil {
		return err
	}
	if g.version == 1 {
		return g.thawV1()
	}
	err = sys.WriteKernelFile(filepath.Join(g.unified(), "cgroup.freeze"), "0")
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("thaw cgroup: %w", err)
	}
	for pause := newPause(); ; {
		frozen, err := g.frozen()
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
func (g group) thawV1() error {
	top, _ := g.dir("freezer")
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
		return fmt.Errorf("thaw cgroup %s: a group above it is frozen: %w", g.path, ErrBusy)
	}
	return nil
}
