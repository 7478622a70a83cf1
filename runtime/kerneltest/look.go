package kerneltest

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

func (s Scope) mounts(found Snapshot) error {
	lines, err := mountLines("self")
	for _, m := range lines {
		found.add("mount of %s on %s", m.fsType, m.point)
	}
	return err
}

type mountLine struct{ root, point, fsType, options string }

// mountLines reads /proc/<process>/mountinfo (proc_pid_mountinfo(5)).
func mountLines(process string) ([]mountLine, error) {
	text, err := os.ReadFile("/proc/" + process + "/mountinfo")
	if err != nil {
		return nil, err
	}
	var list []mountLine
	for line := range strings.Lines(string(text)) {
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 6 || len(rest) < 3 {
			return nil, fmt.Errorf("mountinfo of %s: line %q", process, line)
		}
		list = append(list, mountLine{root: fields[3], point: fields[4], fsType: rest[0], options: rest[2]})
	}
	return list, nil
}

// counters are the parts of firewall rules that change by use.
var counters = regexp.MustCompile(`counter packets \d+ bytes \d+|# handle \d+`)

func (s Scope) network(found Snapshot) error {
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range interfaces {
		found.add("interface %s", i.Name)
		addresses, err := i.Addrs()
		if err != nil { // it went meanwhile
			continue
		}
		for _, a := range addresses {
			// Link-local ones come by themselves, some time after the interface.
			if ip, ok := a.(*net.IPNet); !ok || !ip.IP.IsLinkLocalUnicast() {
				found.add("address %s of %s", a, i.Name)
			}
		}
	}
	nft, err := exec.LookPath("nft")
	if err != nil {
		return nil // then plugins can't have made rules by it either
	}
	rules, err := exec.Command(nft, "list", "ruleset").Output()
	if err != nil {
		return fmt.Errorf("nft list ruleset: %w", err)
	}
	for line := range strings.Lines(string(rules)) {
		found.add("firewall line %s", strings.TrimSpace(counters.ReplaceAllString(line, "")))
	}
	return nil
}

func (s Scope) cgroups(found Snapshot) error {
	lines, err := mountLines("self")
	if err != nil || s.Cgroup == "" {
		return err
	}
	for _, m := range lines {
		if m.fsType != "cgroup" && m.fsType != "cgroup2" {
			continue
		}
		if err := walk(filepath.Join(m.point, s.Cgroup), func(path string, entry fs.DirEntry) {
			if entry.IsDir() {
				found.add("cgroup %s", path)
			}
		}, nil); err != nil {
			return err
		}
	}
	return nil
}

func (s Scope) files(found Snapshot) error {
	for _, dir := range s.Dirs {
		if err := walk(dir, func(path string, entry fs.DirEntry) { found.add("file %s (%s)", path, entry.Type()) }, s.SkipFile); err != nil {
			return err
		}
	}
	return nil
}

// walk visits what is there; what goes meanwhile, and a root that isn't there, is nothing.
func walk(root string, visit func(string, fs.DirEntry), skip func(string) bool) error {
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case skip != nil && skip(path) && entry.IsDir():
			return fs.SkipDir
		case skip != nil && skip(path):
			return nil
		}
		visit(path, entry)
		return nil
	})
}
