package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// scorePasses bounds SetOOMScore in a group that forks all the time. A child has the score its parent had at the fork, so
// that a second look finds those that were being forked during the first.
const scorePasses = 4

// SetOOMScore gives every process of the group whose oom_score_adj is from the score to. One that has given itself
// another score keeps it. Below its own minimum a process can't be put without CAP_SYS_RESOURCE (proc(5)).
func (m *Manager) SetOOMScore(path string, from, to int) error {
	g, err := m.group(path)
	if err != nil {
		return err
	}
	for range scorePasses {
		pids, err := g.pids()
		if err != nil {
			return err
		}
		changed := false
		for _, pid := range pids {
			did, err := g.setOOMScore(pid, from, to)
			if err != nil {
				return fmt.Errorf("set oom_score_adj of process %d to %d: %w", pid, to, err)
			}
			changed = changed || did
		}
		if !changed {
			return nil
		}
	}
	return nil
}

// setOOMScore changes one process; one that is gone or no longer in the group is done. The open directory is that
// process's alone: who has the pid after it is not reached by it.
func (g group) setOOMScore(pid, from, to int) (changed bool, err error) {
	dir, err := openFile(filepath.Join("/proc", strconv.Itoa(pid)), unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close()
	groups, err := sys.ReadKernelFile(filepath.Join(sys.FDPath(dir), "cgroup"), smallFile)
	if err == nil && !inGroup(groups, g.path) {
		return false, nil
	}
	file := filepath.Join(sys.FDPath(dir), "oom_score_adj")
	var now string
	if err == nil {
		now, err = readTrimmed(file)
	}
	if err == nil && now == strconv.Itoa(from) {
		err, changed = sys.WriteKernelFile(file, strconv.Itoa(to)), true
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	return changed, err
}

// inGroup looks for a group, or one below it, in a process's cgroup file (cgroups(7)).
func inGroup(file, path string) bool {
	for line := range strings.Lines(file) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		_, at, _ := strings.Cut(rest, ":")
		if at == path || strings.HasPrefix(at, strings.TrimSuffix(path, "/")+"/") {
			return true
		}
	}
	return false
}
