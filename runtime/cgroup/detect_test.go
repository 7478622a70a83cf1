package cgroup

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestDetectReadsMountTables(t *testing.T) {
	const tmpfs = "25 1 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
	cases := []struct {
		name, table string
		want        mountedTree
	}{
		{"unified", "30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
			mountedTree{version: 2, root: "/sys/fs/cgroup", nsDelegate: true}},
		{"unified without nsdelegate", "30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,memory_recursiveprot\n",
			mountedTree{version: 2, root: "/sys/fs/cgroup"}},
		{"hybrid with shared controllers", tmpfs +
			"26 25 0:21 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" +
			"27 25 0:22 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n" +
			"28 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n" +
			"29 25 0:24 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n" +
			"30 25 0:25 / /sys/fs/cgroup/elogind rw - cgroup cgroup rw,name=elogind\n",
			mountedTree{version: 1, hierarchies: []Hierarchy{
				{Name: "systemd", MountPoint: "/sys/fs/cgroup/systemd"},
				{Controllers: []string{"cpu", "cpuacct"}, MountPoint: "/sys/fs/cgroup/cpu,cpuacct"},
				{Controllers: []string{"freezer"}, MountPoint: "/sys/fs/cgroup/freezer"},
			}}},
		{"mounted twice, elsewhere, and over", "24 1 0:9 / /sys/fs/cgroup/freezer rw - cgroup old rw,memory\n" + tmpfs +
			"29 25 0:24 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n" +
			"31 25 0:24 / /sys/fs/cgroup/bound rw - cgroup cgroup rw,freezer\n" +
			"32 1 0:30 / /sys/fs/cgroup2 rw - cgroup2 cgroup2 rw\n" +
			"33 1 0:31 / /mnt/memory rw - cgroup cgroup rw,memory\n" +
			"34 25 0:32 / /sys/fs/cgroup/a\\040b rw - cgroup cgroup rw,pids\n",
			mountedTree{version: 1, hierarchies: []Hierarchy{
				{Controllers: []string{"freezer"}, MountPoint: "/sys/fs/cgroup/freezer"},
				{Controllers: []string{"pids"}, MountPoint: "/sys/fs/cgroup/a b"},
			}}},
	}
	for _, c := range cases {
		got, err := detect(strings.NewReader(c.table), "/sys/fs/cgroup")
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\ngot  %+v, %v\nwant %+v", c.name, got, err, c.want)
		}
	}
	for _, table := range []string{"", tmpfs, "rubbish\n - \n1 2 - x\n"} {
		if got, err := detect(strings.NewReader(table), "/sys/fs/cgroup"); !errors.Is(err, ErrNotSupported) {
			t.Errorf("detect(%q) = %+v, %v; want ErrNotSupported", table, got, err)
		}
	}
}

func FuzzDetect(f *testing.F) {
	f.Add("28 25 0:23 / /sys/fs/cgroup/cpu\\040x rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n")
	f.Add("30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
	f.Fuzz(func(t *testing.T, table string) {
		tree, err := detect(strings.NewReader(table), "/sys/fs/cgroup")
		if err == nil && tree.version != 1 && tree.version != 2 {
			t.Errorf("version %d from %q", tree.version, table)
		}
	})
}
