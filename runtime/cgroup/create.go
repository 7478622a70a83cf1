package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/runtime/sys"
)

// wantedV2 are the controllers that groups get on v2. systemd does not delegate
// hugetlb and leaves it to whoever wants it, so the whole path is enabled by hand.
var wantedV2 = []string{"cpuset", "cpu", "io", "memory", "pids", "hugetlb"}

// Create makes the group and what is missing above it and writes its limits;
// called again it writes them again. Nothing is made if the resources make no
// sense, and what was made is removed if the kernel refuses one. res may be nil.
func (m *Manager) Create(ctx context.Context, path string, res *specs.LinuxResources) error {
	g, err := m.group(path)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("create cgroup %s: %w", path, err)
	}
	host := m.host(res)
	p, err := compile(res, host, freshGroup())
	if err != nil {
		return fmt.Errorf("create cgroup %s: %w", path, err)
	}
	var made []string
	if err = m.scopes.ensure(ctx, path); err == nil {
		made, err = g.make(p)
	}
	if err == nil {
		fresh := g.madeAll(made)
		if !fresh {
			p, err = compile(res, host, g.present())
		}
		if err == nil {
			err = g.apply(p, fresh)
		}
	}
	if err != nil {
		removeMade(made)
		return fmt.Errorf("create cgroup %s: %w", path, err)
	}
	for _, n := range p.notes {
		klog.FromContext(ctx).V(4).Info("Limit is not enforced", "cgroup", path, "field", n.Field, "reason", n.Reason)
	}
	return nil
}

// Notes lists what of res this host accepts and can't enforce.
func (m *Manager) Notes(res *specs.LinuxResources) ([]Note, error) {
	p, err := compile(res, m.host(res), freshGroup())
	return p.notes, err
}

// make makes the directories and returns those it made, top down.
func (g group) make(p plan) ([]string, error) {
	if g.version == 2 {
		return g.makeUnified(p)
	}
	var made []string
	for _, h := range g.hierarchies {
		dirs, err := mkdirAll(h.MountPoint, g.path)
		made = append(made, dirs...)
		if err == nil && slices.Contains(h.Controllers, "cpuset") {
			err = fillCpuset(h.MountPoint, g.path)
		}
		if err != nil {
			return made, err
		}
	}
	return made, nil
}

// mkdirAll tries the leaf first: its parent is there in all but the first call.
// A concurrent failed Create may take a common parent away again, hence tries.
func mkdirAll(mount, path string) ([]string, error) {
	var made []string
	leaf := filepath.Join(mount, path)
	for try := 0; ; try++ {
		err := unix.Mkdir(leaf, 0o755)
		if err == nil {
			return append(made, leaf), nil
		}
		if errors.Is(err, unix.EEXIST) {
			return made, nil
		}
		if !errors.Is(err, unix.ENOENT) || try == 10 {
			return made, &fs.PathError{Op: "mkdir", Path: leaf, Err: err}
		}
		above := ancestors(path)
		for _, a := range above[:len(above)-1] {
			dir := filepath.Join(mount, a)
			if isScope(a) { // systemd's alone to make: it was there, and ended meanwhile
				return made, &fs.PathError{Op: "mkdir", Path: leaf, Err: err}
			}
			err := unix.Mkdir(dir, 0o755)
			if err == nil && !slices.Contains(made, dir) {
				made = append(made, dir)
			} else if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOENT) {
				return made, &fs.PathError{Op: "mkdir", Path: dir, Err: err}
			}
		}
	}
}

// fillCpuset gives a v1 cpuset and the empty ones above it their parent's CPUs
// and memory nodes: a process can't join a cpuset that has none (ENOSPC).
func fillCpuset(mount, path string) error {
	dir := filepath.Join(mount, path)
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		text, err := readTrimmed(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		if text != "" {
			continue
		}
		if parent := filepath.Dir(path); parent != "/" {
			if err := fillCpuset(mount, parent); err != nil {
				return err
			}
		}
		if text, err = readTrimmed(filepath.Join(filepath.Dir(dir), file)); err != nil {
			return err
		}
		if err := sys.WriteKernelFile(filepath.Join(dir, file), text); err != nil {
			return err
		}
	}
	return nil
}

func (g group) makeUnified(p plan) ([]string, error) {
	var wanted []string
	for _, c := range wantedV2 {
		if g.has(c) {
			wanted = append(wanted, c)
		}
	}
	for _, w := range p.writes { // those that only who asks by name gets: misc, rdma
		if w.Controller != "cgroup" && !slices.Contains(wanted, w.Controller) {
			wanted = append(wanted, w.Controller)
		}
	}
	leaf := g.unified()
	made, err := mkdirAll(g.root, g.path)
	if err != nil {
		return made, err
	}
	have, err := readWords(filepath.Join(leaf, "cgroup.controllers"))
	if err != nil || containsAll(have, wanted) {
		return made, err
	}
	refused := enableControllers(g.root, g.path, wanted)
	if have, err = readWords(filepath.Join(leaf, "cgroup.controllers")); err != nil {
		return made, err
	}
	// A controller that could not be had matters only if a limit needs it.
	for _, w := range p.writes {
		if w.Controller != "cgroup" && !slices.Contains(have, w.Controller) {
			cause := refused[w.Controller]
			if cause == nil {
				cause = ErrNotSupported
			}
			return made, fmt.Errorf("%s: controller %s can't be enabled: %w", w.File, w.Controller, cause)
		}
	}
	return made, nil
}

// enableControllers enables wanted from the root down to the parent of path and
// returns, by controller, why one could not be. EBUSY: a group on the way has
// processes of its own ("no internal processes").
func enableControllers(root, path string, wanted []string) map[string]error {
	refused := map[string]error{}
	above := ancestors(path)
	for _, a := range append([]string{"/"}, above[:len(above)-1]...) {
		dir := filepath.Join(root, a)
		available, err := readWords(filepath.Join(dir, "cgroup.controllers"))
		if err != nil {
			continue
		}
		enabled, err := readWords(filepath.Join(dir, "cgroup.subtree_control"))
		if err != nil {
			continue
		}
		var missing []string
		for _, c := range wanted {
			if slices.Contains(available, c) && !slices.Contains(enabled, c) {
				missing = append(missing, c)
			}
		}
		if len(missing) == 0 {
			continue
		}
		file := filepath.Join(dir, "cgroup.subtree_control")
		if sys.WriteKernelFile(file, "+"+strings.Join(missing, " +")) == nil {
			continue
		}
		for _, c := range missing {
			if err := sys.WriteKernelFile(file, "+"+c); err != nil {
				refused[c] = err
			}
		}
	}
	return refused
}

// madeAll reports whether the group's own directories are all new.
func (g group) madeAll(made []string) bool {
	for _, dir := range g.dirs(g.path) {
		if !slices.Contains(made, dir) {
			return false
		}
	}
	return true
}

// removeMade is the way back of a failed Create. A directory that another call
// has put a group into meanwhile stays (EBUSY).
func removeMade(made []string) {
	for _, dir := range slices.Backward(made) {
		_ = unix.Rmdir(dir)
	}
}

func containsAll(have, want []string) bool {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}
