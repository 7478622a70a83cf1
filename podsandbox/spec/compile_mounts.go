package spec

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/launch"
)

func (p *planner) mounts() error {
	for _, m := range p.spec.Mounts {
		if !path.IsAbs(m.Destination) || path.Clean(m.Destination) == "/" || strings.ContainsRune(m.Destination+m.Source, 0) {
			return fmt.Errorf("compile spec: mount at %q: %w", m.Destination, ErrInvalid)
		}
		m.Destination = path.Clean(m.Destination)
		o, err := parseOptions(m)
		if err != nil {
			return err
		}
		switch {
		case o.bind:
			p.bind(m, o)
		case m.Type == imageType:
			if err := p.image(m, o); err != nil {
				return err
			}
		case m.Type == "cgroup" || m.Type == "cgroup2":
			if err := p.cgroupView(m, o); err != nil {
				return err
			}
		case m.Type == "proc" || m.Type == "sysfs" || m.Type == "tmpfs" || m.Type == "devpts" || m.Type == "mqueue":
			p.mountNew(m.Destination, m.Type, o.attr, o.data)
		default:
			return fmt.Errorf("mount %s: file system %q: %w", m.Destination, m.Type, ErrUnsupported)
		}
	}
	return nil
}

func (p *planner) mountNew(target, fsType string, attr uint64, data []string) {
	op := launch.Op{Code: launch.OpMountNew, Step: "mount " + fsType + " on " + target, Path: target, Arg: fsType, Flags: attr, Strings: p.labelled(fsType, data), Number: 0o755}
	if label := p.spec.Linux.MountLabel; fsType == "mqueue" && label != "" {
		op.Data = []byte(label) // it refuses context= and keeps a label of its root
	}
	p.add(op)
}

func (p *planner) bind(m specs.Mount, o mountOptions) {
	p.bound = append(p.bound, m.Destination)
	if o.propagation == PropagationShared {
		p.shared = append(p.shared, m.Destination)
	}
	fd := p.need(Need{Kind: NeedBind, Bind: Bind{
		Source: m.Source, Target: m.Destination, Recursive: o.recursive, Propagation: o.propagation,
		ReadOnly: o.attr&unix.MOUNT_ATTR_RDONLY != 0, RecursiveReadOnly: o.readOnlyBelow,
		NoSuid: o.attr&unix.MOUNT_ATTR_NOSUID != 0, NoDev: o.attr&unix.MOUNT_ATTR_NODEV != 0, NoExec: o.attr&unix.MOUNT_ATTR_NOEXEC != 0,
		UIDs: m.UIDMappings, GIDs: m.GIDMappings, MapBelow: o.mapBelow,
	}}, "bind "+m.Source)
	p.addFd(fd, launch.Op{Code: launch.OpMountFd, Step: "bind " + m.Destination, Path: m.Destination, Number: 1})
}

// cgroupView shows a container its own group: the cgroup namespace makes that the root of each mount.
func (p *planner) cgroupView(m specs.Mount, o mountOptions) error {
	private := false
	for _, ns := range p.spec.Linux.Namespaces {
		private = private || ns.Type == specs.CgroupNamespace
	}
	if !private {
		return fmt.Errorf("mount %s: the host's cgroup namespace: %w", m.Destination, ErrUnsupported)
	}
	if p.node.CgroupVersion == 2 {
		p.mountNew(m.Destination, "cgroup2", o.attr, o.data)
		return nil
	}
	// The directory is a tmpfs that only becomes read-only once it holds the mount points.
	p.mountNew(m.Destination, "tmpfs", o.attr&^unix.MOUNT_ATTR_RDONLY, []string{"mode=755"})
	for _, h := range p.node.Hierarchies {
		p.mountNew(path.Join(m.Destination, h.Dir), "cgroup", o.attr, h.Options)
	}
	for _, h := range p.node.Hierarchies {
		if !strings.Contains(h.Dir, ",") {
			continue
		}
		for _, controller := range strings.Split(h.Dir, ",") { // programs look for either controller alone
			at := path.Join(m.Destination, controller)
			p.add(launch.Op{Code: launch.OpSymlink, Step: "link " + at, Path: at, Arg: h.Dir})
		}
	}
	if o.attr&unix.MOUNT_ATTR_RDONLY != 0 {
		p.add(launch.Op{Code: launch.OpMountAttr, Step: "make " + m.Destination + " read-only", Path: m.Destination, Flags: unix.MOUNT_ATTR_RDONLY})
	}
	return nil
}

// devLinks are in every /dev (OCI runtime-spec, "Dev symbolic links"), and the multiplexer of the container's own devpts.
var devLinks = [...]struct{ at, to string }{
	{"/dev/fd", "/proc/self/fd"}, {"/dev/stdin", "/proc/self/fd/0"}, {"/dev/stdout", "/proc/self/fd/1"}, {"/dev/stderr", "/proc/self/fd/2"},
	{"/dev/ptmx", "pts/ptmx"}, {"/dev/core", "/proc/kcore"},
}

// devices makes nodes and links, unless the request brings its own /dev: that one is the host's and is left alone.
func (p *planner) devices() {
	var nodes []specs.LinuxDevice
	listed := map[string]bool{}
	for _, d := range p.spec.Linux.Devices {
		listed[d.Path] = true
	}
	for _, d := range defaultDevices {
		if !listed[d.Path] {
			nodes = append(nodes, specs.LinuxDevice{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor})
		}
	}
	made := map[string]bool{"/dev": true}
	for _, d := range append(nodes, p.spec.Linux.Devices...) {
		if within(d.Path, p.bound) {
			if listed[d.Path] {
				p.out.Notes = append(p.out.Notes, "device "+d.Path+" is not made: a volume is mounted there")
			}
			continue
		}
		if dir := path.Dir(d.Path); !made[dir] {
			made[dir] = true
			p.add(launch.Op{Code: launch.OpMkdir, Step: "make " + dir, Path: dir, Number: 0o755})
		}
		if p.out.User != nil { // nobody makes nodes in a user namespace: the node's own of that path (mknod(2))
			p.bind(specs.Mount{Destination: d.Path, Source: d.Path}, mountOptions{})
			continue
		}
		p.add(mknod(d))
	}
	for _, link := range devLinks {
		if !within(link.at, p.bound) {
			p.add(launch.Op{Code: launch.OpSymlink, Step: "link " + link.at, Path: link.at, Arg: link.to})
		}
	}
}

func mknod(d specs.LinuxDevice) launch.Op {
	mode := int64(0o666)
	if d.FileMode != nil {
		mode = int64(*d.FileMode & 0o777)
	}
	kind := int64(unix.S_IFCHR)
	if d.Type == "b" {
		kind = unix.S_IFBLK
	}
	owner := func(id *uint32) string {
		if id == nil {
			return "0"
		}
		return strconv.FormatUint(uint64(*id), 10)
	}
	return launch.Op{
		Code: launch.OpMknod, Step: "make " + d.Path, Path: d.Path, Number: kind | mode,
		Flags: unix.Mkdev(uint32(d.Major), uint32(d.Minor)), Strings: []string{owner(d.UID), owner(d.GID)},
	}
}
