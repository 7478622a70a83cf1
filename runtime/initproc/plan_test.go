package initproc

import (
	"os"
	"slices"
	"testing"

	"github.com/podwright/podwright/runtime/launch"
	"golang.org/x/sys/unix"
)

// The capabilities that container runtimes give by default.
const defaultCaps = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FSETID | 1<<unix.CAP_FOWNER | 1<<unix.CAP_MKNOD |
	1<<unix.CAP_NET_RAW | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETFCAP | 1<<unix.CAP_SETPCAP |
	1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_KILL | 1<<unix.CAP_AUDIT_WRITE

const quiet = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// The parts of a container's plan, in the order the spec compiler emits them.

func opsRoot() []launch.Op {
	return []launch.Op{
		{Code: launch.OpUnshare, Step: "unshare", Fd: -1, Flags: unix.CLONE_NEWNS},
		{Code: launch.OpRoot, Step: "attach root", Fd: 0, Flags: unix.MS_SLAVE | unix.MS_REC},
	}
}

func opsMounts() []launch.Op {
	return []launch.Op{
		{Code: launch.OpMountNew, Step: "mount /proc", Fd: -1, Path: "/proc", Arg: "proc", Flags: quiet},
		{Code: launch.OpMountNew, Step: "mount /dev", Fd: -1, Path: "/dev", Arg: "tmpfs", Flags: unix.MOUNT_ATTR_NOSUID, Strings: []string{"mode=755", "size=65536k"}},
		{Code: launch.OpMountNew, Step: "mount /dev/pts", Fd: -1, Path: "/dev/pts", Arg: "devpts", Flags: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Strings: []string{"newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Code: launch.OpMountNew, Step: "mount /dev/mqueue", Fd: -1, Path: "/dev/mqueue", Arg: "mqueue", Flags: quiet},
		{Code: launch.OpMountNew, Step: "mount /dev/shm", Fd: -1, Path: "/dev/shm", Arg: "tmpfs", Flags: quiet, Number: 0o1777, Strings: []string{"mode=1777", "size=65536k"}},
		{Code: launch.OpMountNew, Step: "mount /sys", Fd: -1, Path: "/sys", Arg: "sysfs", Flags: quiet | unix.MOUNT_ATTR_RDONLY},
	}
}

func opsDevices() (ops []launch.Op) {
	for _, d := range []struct {
		path  string
		minor uint64
		major uint64
	}{{"/dev/null", 3, 1}, {"/dev/zero", 5, 1}, {"/dev/full", 7, 1}, {"/dev/random", 8, 1}, {"/dev/urandom", 9, 1}, {"/dev/tty", 0, 5}} {
		ops = append(ops, launch.Op{Code: launch.OpMknod, Step: "make " + d.path, Fd: -1, Path: d.path, Number: unix.S_IFCHR | 0o666, Flags: d.major<<8 | d.minor})
	}
	for _, l := range [][2]string{{"/dev/fd", "/proc/self/fd"}, {"/dev/stdin", "/proc/self/fd/0"}, {"/dev/stdout", "/proc/self/fd/1"}, {"/dev/stderr", "/proc/self/fd/2"}, {"/dev/ptmx", "pts/ptmx"}} {
		ops = append(ops, launch.Op{Code: launch.OpSymlink, Step: "link " + l[0], Fd: -1, Path: l[0], Arg: l[1]})
	}
	return ops
}

func opsHide() (ops []launch.Op) {
	for _, path := range []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"} {
		ops = append(ops, launch.Op{Code: launch.OpMask, Step: "mask " + path, Fd: -1, Path: path})
	}
	for _, path := range []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"} {
		ops = append(ops, launch.Op{Code: launch.OpReadonlyPath, Step: "protect " + path, Fd: -1, Path: path})
	}
	return ops
}

var opPivot = launch.Op{Code: launch.OpPivot, Step: "pivot root", Fd: -1}

func opsSession() []launch.Op {
	return []launch.Op{
		{Code: launch.OpKeyring, Step: "join session keyring", Fd: -1, Arg: "podwright-test"},
		{Code: launch.OpSetsid, Step: "setsid", Fd: -1},
		{Code: launch.OpUmask, Step: "umask", Fd: -1, Number: 0o022},
		{Code: launch.OpChdir, Step: "chdir", Fd: -1, Path: "/"},
	}
}

func opsIdentity(uid uint64, caps, ambient uint64) []launch.Op {
	effective := caps
	if uid != 0 {
		effective = ambient
	}
	return []launch.Op{
		{Code: launch.OpBounding, Step: "bounding set", Fd: -1, Data: masks(caps)},
		{Code: launch.OpUser, Step: "set user", Fd: -1, Flags: uid, Number: int64(uid), Strings: []string{"10", "20"}},
		{Code: launch.OpCaps, Step: "set capabilities", Fd: -1, Data: masks(caps, effective, effective, ambient, ambient)},
	}
}

var opExec = launch.Op{Code: launch.OpExec, Step: "exec", Fd: -1}

// container is the plan of a whole ordinary container that runs the shell script as root.
func container(script string, extra ...launch.Op) *launch.Plan {
	ops := slices.Concat(opsRoot(), opsMounts(), opsDevices(), extra, opsHide(), []launch.Op{opPivot}, opsSession(), opsIdentity(0, defaultCaps, 0), []launch.Op{opExec})
	return &launch.Plan{Ops: ops, Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin", "A=b"}}
}

// small is the shortest plan that runs a script in a root file system: extra comes before the pivot, late after it.
func small(script string, extra []launch.Op, late ...launch.Op) *launch.Plan {
	ops := slices.Concat(opsRoot(), opsMounts()[:2], opsDevices(), extra, []launch.Op{opPivot}, late, []launch.Op{opExec})
	return &launch.Plan{Ops: ops, Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}}
}

// oneRoot is the table of a plan whose only entry is the root file system.
func oneRoot(t testing.TB) (string, []*os.File) {
	dir := rootfs(t)
	return dir, []*os.File{detached(t, dir)}
}
