package isolation

import (
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// table is the process's mount table and root directory.
type table struct {
	p      *process
	mounts []*mountinfo.Info
}

// restricting are the mount options that take rights away.
var restricting = []string{"ro", "nosuid", "nodev", "noexec"}

// mounts compares the root file system, every mount of the spec, and the hidden and read-only paths.
func mounts(p *process, s *specs.Spec) ([]Finding, error) {
	text, err := p.read("mountinfo", mountTable)
	if err != nil {
		return nil, err
	}
	list, err := mountinfo.GetMountsFromReader(strings.NewReader(text), nil)
	if err != nil {
		return nil, err
	}
	t := table{p: p, mounts: list}
	root := specs.Mount{Destination: "/"}
	if s.Root != nil && s.Root.Readonly {
		root.Options = []string{"ro"}
	}
	out := []Finding{t.flags("root file system", root)}
	for _, m := range s.Mounts {
		out = append(out, t.flags("mount "+m.Destination, m))
	}
	for _, at := range s.Linux.MaskedPaths {
		out = append(out, t.masked(at))
	}
	for _, at := range s.Linux.ReadonlyPaths {
		out = append(out, t.readOnly(at))
	}
	return out, nil
}

// topmost is the mount that is seen at exactly that path; nil without one.
func (t table) topmost(at string) *mountinfo.Info {
	for _, m := range slices.Backward(t.mounts) {
		if m.Mountpoint == path.Clean(at) {
			return m
		}
	}
	return nil
}

// covering is the mount that a path lies on.
func (t table) covering(at string) *mountinfo.Info {
	for at = path.Clean(at); ; at = path.Dir(at) {
		if m := t.topmost(at); m != nil || at == "/" || at == "." {
			return m
		}
	}
}

// flags compares what a mount's options take away.
func (t table) flags(aspect string, m specs.Mount) Finding {
	var asked []string
	for _, o := range restricting {
		if slices.Contains(m.Options, o) || o == "ro" && slices.Contains(m.Options, "rro") {
			asked = append(asked, o)
		}
	}
	f := Finding{Aspect: aspect, Asked: orNone(strings.Join(asked, ","))}
	has := t.topmost(m.Destination)
	if has == nil {
		has = t.resolved(m.Destination)
	}
	if has == nil {
		f.Enforced, f.Differs = "not mounted", true
		return f
	}
	var enforced []string
	for _, o := range restricting {
		if hasOption(has, o) {
			enforced = append(enforced, o)
		} else if slices.Contains(asked, o) {
			f.Differs = true
		}
	}
	f.Enforced = orNone(strings.Join(enforced, ","))
	if slices.Contains(m.Options, "rro") {
		for _, below := range t.mounts {
			if strings.HasPrefix(below.Mountpoint, strings.TrimSuffix(has.Mountpoint, "/")+"/") && !hasOption(below, "ro") {
				f.Differs = true
				f.Enforced += ", but " + below.Mountpoint + " is writable"
			}
		}
	}
	return f
}

// hasOption looks at the mount's own options; "ro" may be the file system's too.
func hasOption(m *mountinfo.Info, option string) bool {
	return slices.Contains(strings.Split(m.Options, ","), option) || option == "ro" && slices.Contains(strings.Split(m.VFSOptions, ","), "ro")
}

// masked wants an empty read-only directory or /dev/null there, or nothing at all.
func (t table) masked(at string) Finding {
	f := Finding{Aspect: "masked path " + at, Asked: "hidden", Enforced: "hidden"}
	m := t.topmost(at)
	switch {
	case m != nil && (m.Root == "/null" || m.FSType == "tmpfs" && hasOption(m, "ro")):
	case m == nil && t.missing(at):
		f.Enforced = "does not exist"
	default:
		f.Enforced, f.Differs = "visible", true
	}
	return f
}

func (t table) readOnly(at string) Finding {
	f := Finding{Aspect: "read-only path " + at, Asked: "ro", Enforced: "ro"}
	m := t.covering(at)
	switch {
	case m != nil && hasOption(m, "ro"):
	case t.topmost(at) == nil && t.missing(at):
		f.Enforced = "does not exist"
	default:
		f.Enforced, f.Differs = "writable", true
	}
	return f
}

// local are the file systems that answer by themselves.
var local = []string{"proc", "sysfs", "tmpfs", "devtmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "overlay", "ext4", "xfs", "btrfs"}

// look opens a path of the process's root; nothing is looked up where a server could let us wait.
func (t table) look(at string) (found *mountinfo.Info, exists bool) {
	if !isLocal(t.covering(at)) {
		return nil, true
	}
	root, err := sys.Openat2(t.p.dir, "root", unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC})
	if err != nil {
		return nil, true
	}
	defer root.Close()
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS}
	target, err := sys.Openat2(root, strings.TrimPrefix(at, "/"), how)
	if errors.Is(err, unix.ELOOP) && !slices.ContainsFunc(t.mounts, func(m *mountinfo.Info) bool { return !isLocal(m) }) {
		how.Resolve &^= unix.RESOLVE_NO_SYMLINKS // which may lead anywhere in the container
		target, err = sys.Openat2(root, strings.TrimPrefix(at, "/"), how)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, false
	}
	if err != nil {
		return nil, true
	}
	defer target.Close()
	var info unix.Statx_t
	if err := unix.Statx(int(target.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &info); err != nil {
		return nil, true
	}
	if info.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return nil, true
	}
	for _, m := range t.mounts {
		if uint64(m.ID) == info.Mnt_id {
			return m, true
		}
	}
	return nil, true
}

func isLocal(m *mountinfo.Info) bool { return m != nil && slices.Contains(local, m.FSType) }

func (t table) missing(at string) bool {
	_, exists := t.look(at)
	return !exists
}

// resolved is the mount at a path that leads through links of the image.
func (t table) resolved(at string) *mountinfo.Info {
	m, _ := t.look(at)
	return m
}
