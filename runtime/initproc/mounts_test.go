package initproc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podwright/podwright/runtime/launch"
	"golang.org/x/sys/unix"
)

func bindFile(path string) []launch.Op {
	return []launch.Op{{Code: launch.OpMountFd, Step: "mount " + path, Fd: 1, Path: path}}
}

func bindDirectory(path string) []launch.Op {
	return []launch.Op{{Code: launch.OpMountFd, Step: "mount " + path, Fd: 1, Path: path, Number: 1}}
}

// outside is a directory that nothing in a container may touch, with a detached mount of a file and a directory.
func outside(t *testing.T) (dir string, file, tree *os.File) {
	dir = t.TempDir()
	os.WriteFile(dir+"/file", []byte("from the host\n"), 0o644)
	os.Mkdir(dir+"/tree", 0o755)
	os.WriteFile(dir+"/tree/inside", []byte("volume\n"), 0o644)
	return dir, detached(t, dir+"/file"), detached(t, dir+"/tree")
}

func TestMountFdOnEveryKindOfTarget(t *testing.T) {
	for _, c := range []struct {
		name  string
		make  func(root string)
		path  string
		read  string // where the mounted content appears inside
		errno unix.Errno
	}{
		{"an existing file", func(root string) { os.WriteFile(root+"/etc/hosts", nil, 0o644) }, "/etc/hosts", "/etc/hosts", 0},
		{"a missing file in a missing directory", func(string) {}, "/a/b/c/hosts", "/a/b/c/hosts", 0},
		{"an absolute link out of the root", func(root string) { os.Symlink("/etc/passwd", root+"/etc/hosts") }, "/etc/hosts", "/etc/passwd", 0},
		{"a relative link out of the root", func(root string) { os.Symlink("../../../../../../../../etc/shadow", root+"/etc/hosts") }, "/etc/hosts", "/etc/shadow", 0},
		{"a dangling link with missing directories", func(root string) { os.Symlink("../run/a/b/resolv.conf", root+"/etc/resolv.conf") }, "/etc/resolv.conf", "/run/a/b/resolv.conf", 0},
		{"a directory link out of the root", func(root string) { os.Symlink("/../../../tmp", root+"/var") }, "/var/x/y", "/tmp/x/y", 0},
		{"dots in the path", func(string) {}, "/etc/../../../tmp/./f", "/tmp/f", 0},
		{"a missing directory with dots after it", func(string) {}, "/new/../tmp/g", "/tmp/g", 0},
		{"a chain of links", func(root string) {
			os.Symlink("/l2", root+"/l1")
			os.Symlink("etc/../l3", root+"/l2")
			os.Symlink("tmp/end", root+"/l3")
		}, "/l1", "/tmp/end", 0},
		{"a FIFO", func(root string) { unix.Mkfifo(root+"/etc/hosts", 0o600) }, "/etc/hosts", "/etc/hosts", 0},
		{"a very deep path", func(string) {}, strings.Repeat("/d", 1500) + "/f", strings.Repeat("/d", 1500) + "/f", 0},
		{"a link to itself", func(root string) { os.Symlink("loop", root+"/loop") }, "/loop", "", unix.ELOOP},
		{"a loop that grows", func(root string) { os.Symlink("loop/x", root+"/loop") }, "/loop", "", unix.ELOOP},
		{"a magic link", func(root string) { os.Symlink("/proc/1/root/etc/x", root+"/etc/hosts") }, "/etc/hosts", "", unix.ELOOP},
		{"a link into procfs", func(root string) { os.Symlink("/proc/sys/kernel/hostname", root+"/etc/hosts") }, "/etc/hosts", "", unix.EXDEV},
		{"a link to a missing file of procfs", func(root string) { os.Symlink("/proc/new", root+"/etc/hosts") }, "/etc/hosts", "", unix.ENOENT},
		{"a file where a directory should be", func(root string) { os.WriteFile(root+"/f", nil, 0o644) }, "/f/hosts", "", unix.ENOTDIR},
		{"a directory as target of a file", func(string) {}, "/etc", "", unix.EISDIR},
		{"the root", func(string) {}, "/", "", unix.EISDIR},
		{"a link to the root", func(root string) { os.Symlink("/", root+"/r") }, "/r", "", unix.EISDIR},
		{"a name too long", func(string) {}, "/" + strings.Repeat("n", 300), "", unix.ENAMETOOLONG},
	} {
		t.Run(c.name, func(t *testing.T) {
			newLab(t)
			dir, table := oneRoot(t)
			c.make(dir)
			host, file, _ := outside(t)
			table = append(table, file)
			if c.errno != 0 {
				mustFail(t, small("", bindFile(c.path)), table, "mount "+c.path, c.errno, c.path)
			} else {
				must(t, small("cat "+c.read, bindFile(c.path)), table, "from the host\nexit 0")
			}
			if names, _ := filepath.Glob(host + "/*"); len(names) != 2 {
				t.Errorf("outside the root: %v", names)
			}
		})
	}
}

func TestMountFdOfDirectories(t *testing.T) {
	newLab(t)
	dir, table := oneRoot(t)
	os.Symlink("/../../data", dir+"/link")
	_, _, tree := outside(t)
	must(t, small("cat /data/inside; stat -c %a /data /link/", bindDirectory("/link")), append(table, tree), "volume\n755\n755\nexit 0")

	dir, table = oneRoot(t)
	os.Symlink("/", dir+"/r")
	_, _, tree = outside(t)
	mustFail(t, small("", bindDirectory("/r")), append(table, tree), "mount /r", unix.EBUSY, "/r")

	_, table = oneRoot(t)
	_, _, tree = outside(t)
	mustFail(t, small("", bindDirectory("/bin/sh")), append(table, tree), "mount /bin/sh", unix.ENOTDIR, "/bin/sh")
}

func TestMountInsideAnEarlierMount(t *testing.T) {
	newLab(t)
	dir, table := oneRoot(t)
	host, file, tree := outside(t)
	ops := append(bindDirectory("/data"), launch.Op{Code: launch.OpMountFd, Step: "second", Fd: 2, Path: "/data/sub/file"})
	must(t, small("cat /data/sub/file", ops), append(table, tree, file), "from the host\nexit 0")
	// The target was made in the volume, and nothing is mounted there any more.
	if info, err := os.Stat(host + "/tree/sub/file"); err != nil || info.Size() != 0 {
		t.Errorf("target in the volume: %v, %v", info, err)
	}
	if _, err := os.Stat(dir + "/data/sub"); err == nil {
		t.Error("the target was made under the volume")
	}
}

func TestHostileSystemDirectories(t *testing.T) { // CVE-2019-19921, 2023-27561, 2026-41579, 2026-47766
	for _, c := range []struct {
		name, path, link string
		step             string
	}{
		{"/proc is a link out", "/proc", "/../../etc", "mount /proc"},
		{"/dev is a link out", "/dev", "/../../../../dev", "mount /dev"},
		{"/dev is a link inside", "/dev", "/tmp", "mount /dev"},
		{"/dev is a dangling link", "/dev", "/new", "mount /dev"},
		{"/sys is a link", "/sys", "etc", "mount /sys"},
	} {
		t.Run(c.name, func(t *testing.T) {
			newLab(t)
			dir, table := oneRoot(t)
			os.Remove(dir + c.path)
			os.Symlink(c.link, dir+c.path)
			mustFail(t, container(""), table, c.step, unix.ELOOP, c.path)
			if _, err := os.Lstat(dir + "/new"); err == nil {
				t.Error("the target of the link was made")
			}
		})
	}
	t.Run("they are missing", func(t *testing.T) {
		newLab(t)
		dir, table := oneRoot(t)
		for _, path := range []string{"/proc", "/dev", "/sys"} {
			os.Remove(dir + path)
		}
		must(t, container("stat -c '%n %a %t' -f /proc /dev >/dev/null && echo ok"), table, "ok\nexit 0")
	})
	t.Run("/proc is a file", func(t *testing.T) {
		newLab(t)
		dir, table := oneRoot(t)
		os.Remove(dir + "/proc")
		os.WriteFile(dir+"/proc", nil, 0o644)
		mustFail(t, container(""), table, "mount /proc", unix.ENOTDIR, "/proc")
	})
}

func TestMountNewOptionsAndFailures(t *testing.T) {
	newLab(t)
	_, table := oneRoot(t)
	ops := []launch.Op{{Code: launch.OpMountNew, Step: "mount", Fd: -1, Path: "/scratch", Arg: "tmpfs", Number: 0o700,
		Strings: []string{"size=1m", "mode=1755", "noswap"}, Flags: unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOATIME}}
	l := start(t, small("grep /scratch /proc/self/mountinfo | head -n1; stat -c %a /scratch", ops), table, true)
	got := l.finish(t)
	for _, want := range []string{"noexec,noatime", "- tmpfs tmpfs ", "size=1024k", "\n1755\nexit 0"} {
		if !strings.Contains(got, want) {
			t.Errorf("got %q, without %q", got, want)
		}
	}
	for name, op := range map[string]launch.Op{
		"unknown file system": {Arg: "nosuchfs"},
		"unknown option":      {Arg: "tmpfs", Strings: []string{"colour=blue"}},
		"bad value":           {Arg: "tmpfs", Strings: []string{"size=lots"}},
	} {
		t.Run(name, func(t *testing.T) {
			op.Code, op.Step, op.Fd, op.Path = launch.OpMountNew, "mount", -1, "/scratch"
			errno := unix.EINVAL
			if op.Arg == "nosuchfs" {
				errno = unix.ENODEV
			}
			_, table := oneRoot(t)
			mustFail(t, small("", []launch.Op{op}), table, "mount", errno, "/scratch")
		})
	}
}

func TestMountNewLabelsItsRoot(t *testing.T) {
	newLab(t)
	dir, table := oneRoot(t)
	os.Link(lab.probe, dir+"/bin/probe")
	label := launch.Op{Code: launch.OpMountNew, Step: "mount", Fd: -1, Path: "/scratch", Arg: "tmpfs", Data: []byte("system_u:object_r:container_file_t:s0:c1,c2")}
	plan := small("", []launch.Op{label})
	plan.Args = []string{"/bin/probe", "label", "/scratch"}
	must(t, plan, table, `"system_u:object_r:container_file_t:s0:c1,c2" <nil>`+"\nexit 0")
}

func TestRootFailures(t *testing.T) {
	newLab(t)
	dir := rootfs(t)
	plain, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	// A directory that is no detached mount can't become the root.
	mustFail(t, container(""), []*os.File{plain}, "attach root", unix.EINVAL, launch.RootMountpoint)
	// A pivot without a root.
	plan := &launch.Plan{Ops: []launch.Op{opPivot, opExec}, Args: []string{"x"}}
	mustFail(t, plan, nil, "pivot root", unix.EBADF, "/")
}

func TestReadonlyRootAndSharedRoot(t *testing.T) {
	newLab(t)
	_, table := oneRoot(t)
	readonly := launch.Op{Code: launch.OpMountAttr, Step: "read-only root", Fd: -1, Path: "/", Flags: unix.MOUNT_ATTR_RDONLY}
	must(t, container("touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo shm", readonly), table, "refused\nshm\nexit 0")

	_, table = oneRoot(t)
	readonly.Number = 1
	must(t, container("touch /dev/shm/x 2>/dev/null || echo refused", readonly), table, "refused\nexit 0")

	_, table = oneRoot(t)
	readonly.Path = "/etc"
	mustFail(t, container("", readonly), table, "read-only root", unix.EINVAL, "/etc")

	_, table = oneRoot(t)
	plan := small("grep -c ' / rw.* shared:' /proc/self/mountinfo", nil)
	plan.Ops[1].Flags = unix.MS_SHARED
	must(t, plan, table, "1\nexit 0")
}

func TestHiddenPaths(t *testing.T) { // CVE-2025-31133
	newLab(t)
	dir, table := oneRoot(t)
	os.MkdirAll(dir+"/secret/dir", 0o755)
	os.WriteFile(dir+"/secret/file", []byte("secret\n"), 0o644)
	os.WriteFile(dir+"/secret/dir/file", []byte("secret\n"), 0o644)
	os.Symlink("/secret/file", dir+"/link")
	hide := func(code launch.Code, path string) launch.Op {
		return launch.Op{Code: code, Step: "hide " + path, Fd: -1, Path: path}
	}
	ops := []launch.Op{hide(launch.OpMask, "/secret/dir"), hide(launch.OpMask, "/link"), hide(launch.OpMask, "/bin/true"),
		hide(launch.OpMask, "/no/such"), hide(launch.OpMask, "/bin/sh/no"), hide(launch.OpMask, "/tmp"), hide(launch.OpReadonlyPath, "/etc"), hide(launch.OpReadonlyPath, "/none")}
	must(t, small("cat /secret/file; ls -a /secret/dir; touch /secret/dir/x || touch /tmp/x || touch /etc/x || echo read-only; stat -c '%t:%T' /bin/true; touch /ok && echo ok", ops),
		table, ".\n..\ntouch: /secret/dir/x: Read-only file system\ntouch: /tmp/x: Read-only file system\ntouch: /etc/x: Read-only file system\nread-only\n1:3\nok\nexit 0")

	for name, replace := range map[string]launch.Op{
		"/dev/null is a link": {Code: launch.OpSymlink, Path: "/dev/null", Arg: "/bin/sh"},
		"/dev/null is zero":   {Code: launch.OpMknod, Path: "/dev/null", Number: unix.S_IFCHR | 0o666, Flags: 1<<8 | 5},
		"/dev/null is a file": {Code: launch.OpMknod, Path: "/dev/null", Number: unix.S_IFREG | 0o666},
	} {
		t.Run(name, func(t *testing.T) {
			_, table := oneRoot(t)
			replace.Step, replace.Fd = "replace", -1
			plan := &launch.Plan{Ops: append(append(opsRoot(), opsMounts()[:2]...), replace, hide(launch.OpMask, "/bin/true"), opPivot, opExec), Args: []string{"true"}}
			errno := unix.ENODEV
			if replace.Code == launch.OpSymlink {
				errno = unix.ELOOP
			}
			mustFail(t, plan, table, "hide /bin/true", errno, "/dev/null")
		})
	}
}
