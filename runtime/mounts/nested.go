package mounts

import (
	"io"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
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
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer table.Close()
	return tmpfsBelow(table, path)
}

func tmpfsBelow(table io.Reader, path string) ([]TmpfsMount, error) {
	all, err := mountinfo.GetMountsFromReader(table, mountinfo.FSTypeFilter("tmpfs"))
	if err != nil {
		return nil, err
	}
	var found []TmpfsMount
	elsewhere := map[uint64]bool{}
	for _, m := range all {
		dev := unix.Mkdev(uint32(m.Major), uint32(m.Minor))
		if m.Root == "/" && strings.HasPrefix(m.Mountpoint, strings.TrimSuffix(path, "/")+"/") {
			found = append(found, TmpfsMount{Path: m.Mountpoint, Dev: dev})
		} else {
			elsewhere[dev] = true
		}
	}
	return slices.DeleteFunc(found, func(t TmpfsMount) bool { return elsewhere[t.Dev] }), nil
}
