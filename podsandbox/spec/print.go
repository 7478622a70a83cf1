package spec

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/launch"
)

var needNames = map[NeedKind]string{
	NeedCgroupTasks: "cgroup-tasks", NeedNamespace: "namespace", NeedRoot: "root",
	NeedBind: "bind", NeedImage: "image", NeedContainer: "container",
}

func (k NeedKind) String() string { return needNames[k] }

func (p Propagation) String() string {
	return [...]string{"private", "slave", "shared"}[p]
}

type bitName struct {
	bit  uint64
	name string
}

var cloneNames = []bitName{
	{unix.CLONE_NEWNS, "mount"}, {unix.CLONE_NEWPID, "pid"}, {unix.CLONE_NEWNET, "network"}, {unix.CLONE_NEWIPC, "ipc"},
	{unix.CLONE_NEWUTS, "uts"}, {unix.CLONE_NEWCGROUP, "cgroup"},
}

var attrNames = []bitName{
	{unix.MOUNT_ATTR_RDONLY, "ro"}, {unix.MOUNT_ATTR_NOSUID, "nosuid"}, {unix.MOUNT_ATTR_NODEV, "nodev"}, {unix.MOUNT_ATTR_NOEXEC, "noexec"},
	{unix.MOUNT_ATTR_NOATIME, "noatime"}, {unix.MOUNT_ATTR_STRICTATIME, "strictatime"}, {unix.MOUNT_ATTR_NODIRATIME, "nodiratime"},
	{unix.MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"},
}

var propagationNames = []bitName{{unix.MS_PRIVATE, "private"}, {unix.MS_SLAVE, "slave"}, {unix.MS_SHARED, "shared"}, {unix.MS_REC, "recursive"}}

// bitText names the bits of v; what has no name is shown in hexadecimal.
func bitText(v uint64, names []bitName) string {
	var out []string
	for _, n := range names {
		if v&n.bit != 0 {
			out = append(out, n.name)
			v &^= n.bit
		}
	}
	if v != 0 {
		out = append(out, fmt.Sprintf("%#x", v))
	}
	return strings.Join(out, ",")
}

// Print shows a launchable, one line per need and step, for inspect and golden files.
func Print(l *Launchable) string {
	var b strings.Builder
	fmt.Fprintf(&b, "new-pid %t terminal %t join %d\n", l.NewPID, l.Terminal, l.JoinIndex)
	if u := l.User; u != nil {
		fmt.Fprintf(&b, "user fd=%d oom-score %d hard %v\n", u.Index, u.OOMScore, u.Hard)
	}
	for _, note := range l.Notes {
		fmt.Fprintf(&b, "note %s\n", note)
	}
	for i, n := range l.Needs {
		fmt.Fprintf(&b, "need %d %s\n", i, strings.TrimSpace(n.Kind.String()+" "+n.detail()))
	}
	for i := range l.Plan.Ops {
		op := &l.Plan.Ops[i]
		fmt.Fprintf(&b, "%-14s %q", op.Code, op.Step)
		if op.Fd >= 0 {
			fmt.Fprintf(&b, " fd=%d", op.Fd)
		}
		if op.Path != "" {
			fmt.Fprintf(&b, " path=%s", op.Path)
		}
		if op.Arg != "" {
			fmt.Fprintf(&b, " arg=%s", op.Arg)
		}
		b.WriteString(opDetail(op))
		if len(op.Strings) > 0 {
			fmt.Fprintf(&b, " %q", op.Strings)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "args %q\nenv %q\n", l.Plan.Args, l.Plan.Env)
	return b.String()
}

func (n Need) detail() string {
	if i := n.Image; n.Kind == NeedImage {
		text := fmt.Sprintf("%s -> %s", i.ID, i.Target)
		if i.SubPath != "" {
			text += fmt.Sprintf(" sub-path %q", i.SubPath)
		}
		if i.NoExec {
			text += " noexec"
		}
		return text
	}
	if n.Kind != NeedBind {
		return strings.TrimSpace(n.Name + " " + n.Path)
	}
	b := n.Bind
	text := fmt.Sprintf("%s -> %s %s", b.Source, b.Target, b.Propagation)
	if b.Recursive {
		text += " recursive"
	}
	for _, o := range []struct {
		set  bool
		name string
	}{{b.ReadOnly, "ro"}, {b.RecursiveReadOnly, "recursive-ro"}, {b.NoSuid, "nosuid"}, {b.NoDev, "nodev"}, {b.NoExec, "noexec"}} {
		if o.set {
			text += " " + o.name
		}
	}
	if len(b.UIDs) > 0 {
		text += fmt.Sprintf(" uids %v gids %v below %t", b.UIDs, b.GIDs, b.MapBelow)
	}
	return text
}

// opDetail shows Flags, Number and Data by what they mean at the code.
func opDetail(op *launch.Op) string {
	switch op.Code {
	case launch.OpSetns, launch.OpUnshare:
		return " " + bitText(op.Flags, cloneNames)
	case launch.OpRoot:
		return " " + bitText(op.Flags, propagationNames)
	case launch.OpMountNew, launch.OpMountAttr:
		text := " attr=" + bitText(op.Flags, attrNames)
		if len(op.Data) > 0 {
			text += " root-label=" + string(op.Data)
		}
		return text
	case launch.OpMkdir, launch.OpUmask:
		return fmt.Sprintf(" mode=%#o", op.Number)
	case launch.OpMknod:
		return fmt.Sprintf(" mode=%#o dev=%d:%d", op.Number, unix.Major(op.Flags), unix.Minor(op.Flags))
	case launch.OpRlimit:
		return fmt.Sprintf(" resource=%d soft=%d hard", op.Number, op.Flags)
	case launch.OpUser:
		return fmt.Sprintf(" uid=%d gid=%d groups", op.Flags, op.Number)
	case launch.OpConsole:
		return fmt.Sprintf(" uid=%d bind=%d", op.Flags, op.Number)
	case launch.OpOOMScore, launch.OpMountFd:
		return fmt.Sprintf(" %d", op.Number)
	case launch.OpBounding, launch.OpCaps:
		return " " + maskText(op.Data)
	case launch.OpSeccomp:
		return fmt.Sprintf(" flags=%#x %d instructions", op.Flags, len(op.Data)/8) // struct sock_filter is 8 bytes
	}
	return ""
}

func maskText(data []byte) string {
	var out []string
	for ; len(data) >= 8; data = data[8:] {
		out = append(out, fmt.Sprintf("%#x", binary.LittleEndian.Uint64(data)))
	}
	return strings.Join(out, " ")
}
