package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// delegatable are the files that a group's new owner gets where the kernel does not list them.
var delegatable = []string{"cgroup.procs", "cgroup.threads", "cgroup.subtree_control"}

// Delegates says whether the hierarchy is v2 and holds cgroup namespaces to their roots (mount option nsdelegate): who is
// in one can neither move a process out of it nor, unless nested in a cgroup namespace of its own making, change its limits.
func Delegates(m *Manager) bool { return m.version == 2 && m.nsDelegate }

// Delegate gives the group to a user and a group of the host, who may then make groups below it: the directory and the
// files that the kernel names as safe to give away, no limit among them (cgroup-v2.rst, "Delegation"). v2 only.
func Delegate(m *Manager, path string, uid, gid int) error {
	g, err := m.group(path)
	if err != nil {
		return err
	}
	if g.version != 2 {
		return fmt.Errorf("delegate cgroup %s: cgroup v1: %w", path, ErrNotSupported)
	}
	files := delegatable
	if text, err := sys.ReadKernelFile("/sys/kernel/cgroup/delegate", smallFile); err == nil {
		files = strings.Fields(text)
	}
	dir, err := os.OpenRoot(g.unified())
	if err != nil {
		return fmt.Errorf("delegate cgroup: %w", err)
	}
	defer dir.Close()
	for _, name := range append([]string{"."}, files...) {
		// A file of a controller that is not enabled here is not there.
		if err := dir.Lchown(filepath.Base(name), uid, gid); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delegate cgroup %s: %w", path, err)
		}
	}
	return nil
}
