package kerneltest

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// numbers are what differs between two of the same kind: inodes, ids.
var numbers = regexp.MustCompile(`\[\d+\]`)

// programs looks into the processes that serve the node.
func (s Scope) programs(found Snapshot) error {
	test, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(s.Programs)) {
		proc := fmt.Sprintf("/proc/%d", s.Programs[name])
		fds, err := links(proc+"/fd", "")
		if err != nil {
			return fmt.Errorf("look into %s: %w", name, err)
		}
		for _, target := range fds {
			found.add(openFile+"%s: %s", name, numbers.ReplaceAllString(target, ""))
		}
		if own, err := os.Readlink(proc + "/ns/mnt"); err == nil && own != test {
			lines, err := mountLines(strconv.Itoa(s.Programs[name]))
			if err != nil {
				return err
			}
			for _, m := range lines {
				found.add("mount of %s: %s on %s", name, m.fsType, m.point)
			}
		}
		if err := threads(found, name, proc); err != nil {
			return err
		}
	}
	return nil
}

// threads finds those that a namespace call left elsewhere: each keeps a namespace alive that nobody sees.
func threads(found Snapshot, name, proc string) error {
	tasks, err := os.ReadDir(proc + "/task")
	if err != nil {
		return fmt.Errorf("look into %s: %w", name, err)
	}
	for _, kind := range []string{"net", "ipc", "uts", "mnt"} {
		own, err := os.Readlink(proc + "/ns/" + kind)
		if err != nil {
			return err
		}
		for _, task := range tasks {
			if its, err := os.Readlink(filepath.Join(proc, "task", task.Name(), "ns", kind)); err == nil && its != own {
				found.add("thread of %s in another %s namespace", name, kind)
			}
		}
	}
	return nil
}

// links reads the symbolic links in dir, prefix before each.
func links(dir, prefix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, prefix+target)
	}
	return list, nil
}

func (s Scope) processes(found Snapshot) error {
	if s.Ancestor == 0 {
		return nil
	}
	names := map[int]string{}
	for name, pid := range s.Programs {
		names[pid] = name
	}
	list, err := Descendants(s.Ancestor)
	for _, p := range list {
		switch name := names[p.PID]; {
		case p.State == 'Z':
			found.add("zombie %s", p.Name)
		case name != "":
			found.add("process %s", name)
		default:
			found.add("process %s", p.Command())
		}
	}
	return err
}

// Process is one process as /proc/<pid>/stat shows it (proc_pid_stat(5)).
type Process struct {
	PID, Parent int
	Name        string // what it calls itself, at most 15 bytes
	State       byte   // 'Z' is a zombie
	Start       uint64 // clock ticks after boot; with PID it names a process for good
}

// Command is the command line, or the name where there is none.
func (p Process) Command() string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
	if line := strings.TrimSpace(strings.ReplaceAll(string(raw), "\x00", " ")); err == nil && line != "" {
		return line
	}
	return p.Name
}

// ReadProcess finds a process; fs.ErrNotExist says that there is none.
func ReadProcess(pid int) (Process, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, err
	}
	text := string(raw)
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	fields := strings.Fields(text[end+1:])
	if open < 0 || len(fields) < 20 {
		return Process{}, fmt.Errorf("stat of %d: %q", pid, text)
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return Process{}, err
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return Process{PID: pid, Parent: parent, Name: text[open+1 : end], State: fields[0][0], Start: start}, err
}

// Descendants gives the processes below ancestor, itself aside.
func Descendants(ancestor int) ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	all := map[int]Process{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if p, err := ReadProcess(pid); err == nil { // else it ended meanwhile
			all[pid] = p
		}
	}
	var list []Process
	for _, pid := range slices.Sorted(maps.Keys(all)) {
		for at, hops := all[pid].Parent, 0; at != 0 && hops <= len(all); at, hops = all[at].Parent, hops+1 {
			if at == ancestor {
				list = append(list, all[pid])
				break
			}
		}
	}
	return list, nil
}
