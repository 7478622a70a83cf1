package mounts

import (
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// TmpfsMount is a tmpfs that is mounted on Path. Dev is its number, which no other file system has at that time.
type TmpfsMount struct {
	Path string
	Dev  uint64
}

// TmpfsBelow finds what is mounted below the directory path and nowhere else in this mount namespace: each such tmpfs is
// part of what is there, as somebody put it there. There is no symlink in path. It reads the table of mounts and touches
// none of them.
func TmpfsBelow(path string) ([]TmpfsMount, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return tmpfsBelow(string(table), path), nil
}

func tmpfsBelow(table, path string) []TmpfsMount {
	var found []TmpfsMount
	elsewhere := map[uint64]bool{}
	for line := range strings.Lines(table) {
		before, after, _ := strings.Cut(line, " - ")
		fsType, _, _ := strings.Cut(after, " ")
		f := strings.Fields(before) // id, parent, device, root, mount point: proc_pid_mountinfo(5)
		if len(f) < 5 || fsType != "tmpfs" {
			continue
		}
		major, minor, _ := strings.Cut(f[2], ":")
		high, errHigh := strconv.ParseUint(major, 10, 32)
		low, errLow := strconv.ParseUint(minor, 10, 32)
		if errHigh != nil || errLow != nil {
			continue
		}
		dev, point := unix.Mkdev(uint32(high), uint32(low)), unescape.Replace(f[4])
		if f[3] == "/" && strings.HasPrefix(point, strings.TrimSuffix(path, "/")+"/") {
			found = append(found, TmpfsMount{Path: point, Dev: dev})
		} else {
			elsewhere[dev] = true
		}
	}
	return slices.DeleteFunc(found, func(t TmpfsMount) bool { return elsewhere[t.Dev] })
}

// unescape takes back what the kernel writes for characters that would divide fields (mangle_path).
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
