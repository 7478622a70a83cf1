package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// end stops everything, the daemon first: it starts a keeper where it misses one. Nothing may run on the node any more,
// or the keeper refuses. What a daemon leaves for the next one by design is taken away here by name, so that whatever
// else there is gets found.
func (n *node) end() error {
	err := n.halt(unix.SIGTERM)
	_, keeperErr := n.podwright("keeper", "stop")
	err = errors.Join(err, keeperErr)
	for _, dir := range []string{"netns", "run/ns", "run/sandboxes"} {
		if mountErr := unix.Unmount(n.path(dir), 0); mountErr != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", n.path(dir), mountErr))
		}
	}
	exec.Command("ip", "link", "delete", n.name).Run() // the bridge; there is none where no pod had a network
	// Keeper and anchor leave their group a moment after they said goodbye.
	var groupErr error
	for range 100 {
		if groupErr = n.removeOwnGroups(); groupErr == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.Join(err, groupErr)
}

// removeOwnGroups removes the group of the keeper and the one above it.
func (n *node) removeOwnGroups() error {
	// The last one is shared with other nodes.
	return errors.Join(n.removeGroups(n.group+"/keeper"), n.removeGroups(n.group), ignoreBusy(n.removeGroups(filepath.Dir(n.group))))
}

func ignoreBusy(err error) error {
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

// removeGroups removes one group and those directly below it from every hierarchy.
func (n *node) removeGroups(group string) error {
	var errs []error
	for _, top := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, err := filepath.Glob(top + group)
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			entries, err := os.ReadDir(dir)
			for _, entry := range entries {
				if entry.IsDir() {
					errs = append(errs, ignoreAbsent(os.Remove(filepath.Join(dir, entry.Name()))))
				}
			}
			errs = append(errs, ignoreAbsent(err), ignoreAbsent(os.Remove(dir)))
		}
	}
	return errors.Join(errs...)
}

// ignoreAbsent: one hierarchy may be there by two names.
func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
