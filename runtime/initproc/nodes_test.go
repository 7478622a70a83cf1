package initproc

import (
	"os"
	"testing"

	"github.com/podwright/podwright/runtime/launch"
	"golang.org/x/sys/unix"
)

func TestNodesLinksAndDirectories(t *testing.T) {
	newLab(t)
	_, table := oneRoot(t)
	ops := []launch.Op{
		{Code: launch.OpMkdir, Step: "mkdir", Fd: -1, Path: "/dev/net/deep", Number: 0o700},
		{Code: launch.OpMkdir, Step: "mkdir again", Fd: -1, Path: "/dev/net", Number: 0o711},
		{Code: launch.OpMknod, Step: "mknod", Fd: -1, Path: "/dev/net/tun", Number: unix.S_IFCHR | 0o640, Flags: 10<<8 | 200, Strings: []string{"1000", "50"}},
		{Code: launch.OpMknod, Step: "mknod block", Fd: -1, Path: "/dev/made/for/disk", Number: unix.S_IFBLK | 0o600, Flags: unix.Mkdev(300, 70000)},
		{Code: launch.OpMknod, Step: "mknod fifo", Fd: -1, Path: "/dev/fifo", Number: unix.S_IFIFO | 0o622},
		{Code: launch.OpMknod, Step: "mknod again", Fd: -1, Path: "/dev/null", Number: unix.S_IFCHR | 0o666, Flags: 1<<8 | 3},
		{Code: launch.OpSymlink, Step: "link again", Fd: -1, Path: "/dev/fd", Arg: "/elsewhere"},
		{Code: launch.OpSymlink, Step: "link", Fd: -1, Path: "/a/b/link", Arg: "../../etc"},
	}
	must(t, small("stat -c '%a %u %g %t:%T %F' /dev/net/tun /dev/made/for/disk /dev/fifo /dev/null; stat -c %a /dev/net /dev/net/deep /dev/made; readlink /dev/fd; readlink /a/b/link", ops), table,
		"640 1000 50 a:c8 character special file\n600 0 0 12c:11170 block special file\n622 0 0 0:0 fifo\n666 0 0 1:3 character special file\n755\n700\n755\n/proc/self/fd\n../../etc\nexit 0")
}

func TestNodesStayOnTheContainersDev(t *testing.T) { // CVE-2026-41579, CVE-2026-47766
	newLab(t)
	_, _, tree := outside(t)
	_, table := oneRoot(t)
	node := launch.Op{Code: launch.OpMknod, Step: "mknod", Fd: -1, Path: "/dev/volume/sda", Number: unix.S_IFBLK | 0o600, Flags: 8 << 8}
	mustFail(t, small("", append(bindDirectory("/dev/volume"), node)), append(table, tree), "mknod", unix.EXDEV, "/dev/volume/sda")

	dir, table := oneRoot(t)
	node.Path = "/etc/sda"
	mustFail(t, small("", []launch.Op{node}), table, "mknod", unix.EXDEV, "/etc/sda")
	if _, err := os.Lstat(dir + "/etc/sda"); err == nil {
		t.Error("the node was made in the image")
	}

	_, table = oneRoot(t)
	link := launch.Op{Code: launch.OpSymlink, Step: "link", Fd: -1, Path: "/dev/out", Arg: "/etc"}
	node.Path = "/dev/out/sda"
	mustFail(t, small("", []launch.Op{link, node}), table, "mknod", unix.EXDEV, "/dev/out/sda")
}

func TestNodeFailures(t *testing.T) {
	for name, c := range map[string]struct {
		op    launch.Op
		errno unix.Errno
	}{
		"another node is there":      {launch.Op{Code: launch.OpMknod, Path: "/dev/zero", Number: unix.S_IFCHR | 0o666, Flags: 1<<8 | 3}, unix.EEXIST},
		"a link is there":            {launch.Op{Code: launch.OpMknod, Path: "/dev/fd", Number: unix.S_IFCHR | 0o666, Flags: 1<<8 | 3}, unix.EEXIST},
		"an owner that is no number": {launch.Op{Code: launch.OpMknod, Path: "/dev/x", Number: unix.S_IFIFO | 0o666, Strings: []string{"root", "0"}}, unix.EINVAL},
		"half an owner":              {launch.Op{Code: launch.OpMknod, Path: "/dev/x", Number: unix.S_IFIFO | 0o666, Strings: []string{"1"}}, unix.EINVAL},
		"a directory over a file":    {launch.Op{Code: launch.OpMkdir, Path: "/bin/sh"}, unix.ENOTDIR},
		"a directory below a file":   {launch.Op{Code: launch.OpMkdir, Path: "/bin/sh/x"}, unix.ENOTDIR},
		"a directory in procfs":      {launch.Op{Code: launch.OpMkdir, Path: "/proc/x"}, unix.ENOENT},
		"a link below a file":        {launch.Op{Code: launch.OpSymlink, Path: "/bin/sh/x", Arg: "y"}, unix.ENOTDIR},
		"a link without a name":      {launch.Op{Code: launch.OpSymlink, Path: "/etc/..", Arg: "y"}, unix.EISDIR},
	} {
		t.Run(name, func(t *testing.T) {
			newLab(t)
			_, table := oneRoot(t)
			c.op.Step, c.op.Fd = "step", -1
			mustFail(t, small("", []launch.Op{c.op}), table, "step", c.errno, c.op.Path)
		})
	}
}
