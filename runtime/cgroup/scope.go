package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
	"github.com/podwright/podwright/runtime/systemd"
)

// Scopes
//
// With the systemd driver each sandbox has one scope in its pod's slice, and below it podwright works as it does with
// cgroupfs: systemd hands the scope's group over (Delegate) and writes nothing in it any more, whatever is reloaded, so
// that limits need no properties, and a container's start, exec, update or end no call over D-Bus.
//
//	kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice    the kubelet's, with the pod's limits
//	  podwright-<sandbox>.scope     systemd's, no limits: Delegate=yes, TasksMax=infinity, MemoryMin=MemoryLow=infinity
//	    hold                        the holder
//	    <container>                 its limits, its processes, its devices program
//
// A scope exists for as long as there is a process in it, and its group goes with the last one, together with the
// counters that tell why that ended. Therefore a process that does nothing stays in it, the holder, until the sandbox is
// stopped. The steps, and what is left where the daemon dies after each:
//
//  1. start the holder, in the daemon's group      it reads the end of its pipe, and ends
//  2. start the scope around it                    it ends, and the scope with it
//  3. move it into hold: a group with processes
//     of its own may not give controllers away     it ends, and the scope with it
//  4. let it stay                                  sandbox and scope, as a new daemon finds them
//
// A holder that somebody ended is replaced by the next start of a container; until then the containers keep the scope.
const (
	holdGroup = "hold"
	// scopeTimeout bounds the making of a scope, whoever waits for it.
	scopeTimeout = time.Minute
	// scopePatience is how long systemd may take to remove an empty scope by itself before it is asked to.
	scopePatience = 2 * time.Second
	// DefaultStopTimeout is what processes have from systemd's SIGTERM to its SIGKILL, where podwright did not stop them.
	DefaultStopTimeout = 30 * time.Second
)

// Units is what the service manager does for scopes; *systemd.Conn.
type Units interface {
	StartScope(ctx context.Context, s systemd.Scope) error
	StopUnit(ctx context.Context, name string) error
}

// scopes makes and removes scopes, of either driver's manager: the driver may have been changed.
type scopes struct {
	manager     *Manager
	tree        *mountedTree
	units       Units // nil without systemd
	program     string
	stopTimeout time.Duration
	flights     singleflight.Group

	mu      sync.Mutex // guards holders
	holders map[string]*os.Process
}

// ensure makes the scope that a container's group is in, if it is in one.
func (s *scopes) ensure(ctx context.Context, container string) error {
	scope := path.Dir(container)
	if !isScope(scope) || s.held(scope) {
		return nil
	}
	if s.units == nil {
		return fmt.Errorf("scope %s: systemd does not run here: %w", path.Base(scope), ErrNotSupported)
	}
	done := s.flights.DoChan(scope, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), scopeTimeout)
		defer cancel()
		if s.held(scope) {
			return nil, nil
		}
		return nil, s.start(ctx, scope)
	})
	select {
	case result := <-done:
		return result.Err
	case <-ctx.Done():
		return fmt.Errorf("scope %s: still starting: %w", path.Base(scope), ctx.Err())
	}
}

// held says whether the scope is there and stays.
func (s *scopes) held(scope string) bool {
	events, err := readFlatKeyed(filepath.Join(s.tree.root, scope, holdGroup, "cgroup.events"))
	return err == nil && events["populated"] == 1
}

// start takes the steps above.
func (s *scopes) start(ctx context.Context, scope string) error {
	h, err := startHolder(s.program)
	if err != nil {
		return fmt.Errorf("scope %s: start its first process: %w", path.Base(scope), err)
	}
	if err = s.enter(ctx, scope, h.process.Pid); err == nil {
		err = s.hold(scope, h.process.Pid)
	}
	if err == nil {
		err = h.stay()
	}
	if err != nil {
		h.end()
		return err
	}
	s.reap(scope, h.process)
	return nil
}

// enter brings the process into the scope.
func (s *scopes) enter(ctx context.Context, scope string, pid int) error {
	unit := systemd.Scope{
		Name: path.Base(scope), Slice: path.Base(path.Dir(scope)), PID: pid, StopTimeout: s.stopTimeout,
		// What podwright does when the node goes down comes first; the keeper writes logs until the last container has ended.
		Before: []string{systemd.PodsTarget}, After: []string{systemd.KeeperUnit},
		Description: "podwright sandbox " + strings.TrimSuffix(strings.TrimPrefix(path.Base(scope), scopePrefix), scopeSuffix),
	}
	g := group{s.tree, scope}
	for pause := newPause(); ; {
		// Its holder was ended and containers keep it.
		if populated, err := g.populated(); err == nil && populated {
			return nil
		}
		err := s.units.StartScope(ctx, unit)
		if err == nil || isIn(pid, scope) { // also where the answer was lost
			return nil
		}
		if !errors.Is(err, systemd.ErrExists) {
			return err
		}
		// It is empty, and about to go.
		if waitErr := pause.wait(ctx); waitErr != nil {
			return errors.Join(err, waitErr)
		}
	}
}

// hold moves the process into the scope's group for it.
func (s *scopes) hold(scope string, pid int) error {
	dir := filepath.Join(s.tree.root, scope, holdGroup)
	if err := unix.Mkdir(dir, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	if err := sys.WriteKernelFile(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
		return fmt.Errorf("move the first process of %s: %w", path.Base(scope), err)
	}
	return nil
}

// reap remembers a holder until its end can be collected, and collects the one before.
func (s *scopes) reap(scope string, next *os.Process) {
	s.mu.Lock()
	last := s.holders[scope]
	if next == nil {
		delete(s.holders, scope)
	} else {
		s.holders[scope] = next
	}
	s.mu.Unlock()
	if last != nil {
		_ = last.Kill() // another took its place, or the scope was killed; unless somebody moved it elsewhere, it has ended
		_, _ = last.Wait()
	}
}

// RemovePod ends what is left in a pod's scope and returns when systemd has removed it. "" and one that is gone are done.
func (s *scopes) RemovePod(ctx context.Context, scope string) error {
	if scope == "" {
		return nil
	}
	if !isScope(scope) {
		return fmt.Errorf("remove scope %s: %w", scope, ErrInvalid)
	}
	if err := s.manager.Kill(ctx, scope); err != nil {
		return err
	}
	s.reap(scope, nil)
	err := s.gone(ctx, scope, scopePatience)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if s.units != nil {
		if err := s.units.StopUnit(ctx, path.Base(scope)); err != nil {
			return fmt.Errorf("remove scope: %w", err)
		}
	}
	return s.manager.Remove(ctx, scope) // systemd knows of no such scope: what is left is a directory
}

// gone waits until the scope's group is no more. podwright may not remove it: systemd would miss that it is empty, and
// keep a unit without a group.
func (s *scopes) gone(ctx context.Context, scope string, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for pause := newPause(); ; {
		if _, err := os.Lstat(filepath.Join(s.tree.root, scope)); errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err := pause.wait(ctx); err != nil {
			return fmt.Errorf("remove scope %s: systemd has not done it in %v: %w", path.Base(scope), patience, ErrBusy)
		}
	}
}

// Find gives the group of a container of which only the default parent of its pod is known, or a path at which nothing is.
func (s *scopes) Find(parent, id string) string {
	names, _ := s.manager.List(parent)
	for _, name := range names {
		in := path.Join(parent, name)
		if !isScope(in) {
			continue
		}
		if _, err := os.Lstat(filepath.Join(s.tree.root, in, id)); err == nil {
			return path.Join(in, id)
		}
	}
	return path.Join(parent, id)
}

// isIn says whether the process is in the scope's own group.
func isIn(pid int, scope string) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	return err == nil && strings.HasSuffix(strings.TrimSpace(string(text)), scope)
}
