package podsandbox

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// procFigures are what only /proc tells of a container's processes.
type procFigures struct {
	descriptors, sockets uint64
	maxOpenFiles         uint64 // of the first process
	hasMaxOpenFiles      bool   // false where it is unlimited
}

// A container decides how many processes and files there are to look at. Beyond these there are no such figures.
const (
	maxCountedProcesses   = 256
	maxCountedDescriptors = 16 << 10
)

// lookAtProcesses is nil where there is too much to look at. Processes that end meanwhile are left out.
func lookAtProcesses(pids []int, first int) *procFigures {
	if len(pids) > maxCountedProcesses {
		return nil
	}
	out := &procFigures{}
	for _, pid := range pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
		names, err := readNames(dir, maxCountedDescriptors-int(out.descriptors))
		if errors.Is(err, errTooMany) {
			return nil
		}
		for _, name := range names {
			if to, err := os.Readlink(filepath.Join(dir, name)); err == nil && strings.HasPrefix(to, "socket:") {
				out.sockets++
			}
		}
		out.descriptors += uint64(len(names))
	}
	if raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(first), "limits")); err == nil {
		out.maxOpenFiles, out.hasMaxOpenFiles = softLimit(string(raw), "Max open files")
	}
	return out
}

var errTooMany = errors.New("too many entries")

// readNames gives the names in a directory, or errTooMany.
func readNames(dir string, most int) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(most + 1)
	switch {
	case len(names) > most:
		return nil, errTooMany
	case errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	return names, nil
}

// softLimit reads proc_pid_limits(5): "Max open files            1024                 524288               files".
func softLimit(text, name string) (uint64, bool) {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, name)
		if fields := strings.Fields(rest); ok && len(fields) > 0 {
			n, err := strconv.ParseUint(fields[0], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
