package spec

import (
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/wire"
)

// planner collects operations and needs; the first error ends it.
type planner struct {
	out    *Launchable
	node   Node
	spec   *specs.Spec
	id     string
	bound  []string // targets of binds: whatever is made below one is made on the host
	shared []string // those among them whose mounts reach the host as well
}

func newPlanner(id string, s *specs.Spec, node Node) *planner {
	return &planner{out: &Launchable{Plan: &launch.Plan{}, JoinIndex: -1}, node: node, spec: s, id: id}
}

// need adds a table entry and gives its index.
func (p *planner) need(n Need, called string) int {
	p.out.Needs = append(p.out.Needs, n)
	p.out.Plan.Fds = append(p.out.Plan.Fds, called)
	return len(p.out.Needs) - 1
}

// add appends an operation that uses no table entry.
func (p *planner) add(op launch.Op) {
	op.Fd = -1
	p.out.Plan.Ops = append(p.out.Plan.Ops, op)
}

// addFd appends an operation on table entry fd.
func (p *planner) addFd(fd int, op launch.Op) {
	op.Fd = fd
	p.out.Plan.Ops = append(p.out.Plan.Ops, op)
}

// Compile turns a spec, of Container or edited since, into a plan. What the spec asks for and no operation does is
// ErrUnsupported, never left out.
func Compile(s *specs.Spec, in CompileInput) (*Launchable, error) {
	if err := checkCompilable(s, in.Node); err != nil {
		return nil, err
	}
	p := newPlanner(in.ID, s, in.Node)
	p.out.Notes = Notes(s)
	p.joinCgroups()
	p.enterUser()
	p.oomScore(s.Process)
	if err := p.namespaces(); err != nil {
		return nil, err
	}
	p.addFd(p.need(Need{Kind: NeedRoot}, "root"), launch.Op{Code: launch.OpRoot, Step: "attach root", Flags: unix.MS_REC | unix.MS_PRIVATE})
	if err := p.mounts(); err != nil {
		return nil, err
	}
	p.devices()
	if err := p.finishRoot(); err != nil {
		return nil, err
	}
	p.add(launch.Op{Code: launch.OpPivot, Step: "pivot_root"})
	if err := p.process(in.Filter, in.FilterFlags); err != nil {
		return nil, err
	}
	return p.out, nil
}

// checkCompilable names what the native runtime would otherwise drop without a word.
func checkCompilable(s *specs.Spec, node Node) error {
	if s == nil || s.Process == nil || s.Root == nil || s.Linux == nil || len(s.Process.Args) == 0 {
		return fmt.Errorf("compile spec: no process, root or linux section: %w", ErrInvalid)
	}
	l, proc := s.Linux, s.Process
	for _, f := range []struct {
		set  bool
		name string
	}{
		{s.Hooks != nil, "hooks"}, {s.Domainname != "", "domainname"}, {s.Hostname != "", "hostname"},
		{len(l.Sysctl) > 0, "linux.sysctl"}, {len(l.UIDMappings)+len(l.GIDMappings) > 0 && userPath(l) == "", "linux.uidMappings without a user namespace's path"},
		{l.IntelRdt != nil, "linux.intelRdt"}, {l.Personality != nil, "linux.personality"}, {len(l.TimeOffsets) > 0, "linux.timeOffsets"},
		{len(l.NetDevices) > 0, "linux.netDevices"}, {l.MemoryPolicy != nil, "linux.memoryPolicy"},
		{proc.SelinuxLabel+l.MountLabel != "" && !node.SELinux, "process.selinuxLabel on a node where labels are off"}, {proc.SelinuxLabel == "" && node.SELinux, "process.selinuxLabel missing on a node where labels are on (the container was made without: make it anew)"}, {proc.ApparmorProfile != "" && !node.AppArmor, "process.apparmorProfile on a kernel without AppArmor"},
		{proc.Scheduler != nil, "process.scheduler"}, {proc.IOPriority != nil, "process.ioPriority"},
		{proc.ExecCPUAffinity != nil, "process.execCPUAffinity"}, {proc.ConsoleSize != nil, "process.consoleSize"},
	} {
		if f.set {
			return fmt.Errorf("compile spec: %s: %w", f.name, ErrUnsupported)
		}
	}
	return nil
}

// joinCgroups comes first: what follows is accounted to the container. On v2 the keeper clones into the group.
func (p *planner) joinCgroups() {
	if p.node.CgroupVersion == 2 {
		return
	}
	for _, h := range p.node.Hierarchies {
		fd := p.need(Need{Kind: NeedCgroupTasks, Name: h.Dir}, "tasks of "+h.Dir)
		p.addFd(fd, launch.Op{Code: launch.OpJoinCgroupV1, Step: "join cgroup " + h.Dir})
	}
}

// oomScore is always set: the keeper's own protects the keeper and must not be inherited.
func (p *planner) oomScore(process *specs.Process) {
	score := 0
	if process.OOMScoreAdj != nil {
		score = *process.OOMScoreAdj
	}
	if p.out.User != nil {
		p.out.User.OOMScore = score // inside the user namespace it could not be lowered
		return
	}
	p.add(launch.Op{Code: launch.OpOOMScore, Step: "set oom_score_adj", Number: int64(score)})
}

// userPath is the file of the user namespace that a container has, "" for the host's.
func userPath(l *specs.Linux) string {
	for _, ns := range l.Namespaces {
		if ns.Type == specs.UserNamespace {
			return ns.Path
		}
	}
	return ""
}

// enterUser makes the user namespace the keeper's to enter: init, like every program in Go, has threads, and only a
// process without may (setns(2)). The capabilities that init has are then those of that namespace.
func (p *planner) enterUser() {
	at := userPath(p.spec.Linux)
	if at == "" {
		return
	}
	p.out.User = &wire.User{Index: p.need(Need{Kind: NeedNamespace, Name: string(specs.UserNamespace), Path: at}, "user namespace")}
	for _, l := range p.spec.Process.Rlimits {
		if resource, ok := rlimitNumbers[l.Type]; ok {
			p.out.User.Hard = append(p.out.User.Hard, wire.HardLimit{Resource: int(resource), Hard: l.Hard})
		}
	}
}

// cloneFlag gives the clone(2) bit of an OCI namespace; 0 is none the native runtime handles.
func cloneFlag(kind specs.LinuxNamespaceType) uint64 {
	switch kind {
	case specs.NetworkNamespace:
		return unix.CLONE_NEWNET
	case specs.IPCNamespace:
		return unix.CLONE_NEWIPC
	case specs.UTSNamespace:
		return unix.CLONE_NEWUTS
	case specs.PIDNamespace:
		return unix.CLONE_NEWPID
	case specs.MountNamespace:
		return unix.CLONE_NEWNS
	case specs.CgroupNamespace:
		return unix.CLONE_NEWCGROUP
	}
	return 0
}

// namespaces joins those with a path, in the spec's order, and unshares mount and cgroup. The PID namespace is the
// keeper's to make: it has to be there before init is. One that is not listed is the host's.
func (p *planner) namespaces() error {
	var unshare uint64
	for _, ns := range p.spec.Linux.Namespaces {
		flag := cloneFlag(ns.Type)
		switch {
		case ns.Type == specs.UserNamespace && ns.Path != "": // see enterUser
		case flag == 0:
			return fmt.Errorf("compile spec: %s namespace: %w", ns.Type, ErrUnsupported)
		case ns.Path != "" && flag&(unix.CLONE_NEWNS|unix.CLONE_NEWCGROUP) == 0:
			p.join(ns.Type, ns.Path)
		case ns.Path == "" && flag == unix.CLONE_NEWPID:
			p.out.NewPID = true
		case ns.Path == "" && flag&(unix.CLONE_NEWNS|unix.CLONE_NEWCGROUP) != 0:
			unshare |= flag
		default:
			return fmt.Errorf("compile spec: %s namespace with path %q: %w", ns.Type, ns.Path, ErrUnsupported)
		}
	}
	if unshare&unix.CLONE_NEWNS == 0 {
		return fmt.Errorf("compile spec: no mount namespace of its own: %w", ErrUnsupported)
	}
	p.add(launch.Op{Code: launch.OpUnshare, Step: "unshare namespaces", Flags: unshare})
	return nil
}

func (p *planner) join(kind specs.LinuxNamespaceType, nsPath string) {
	fd := p.need(Need{Kind: NeedNamespace, Name: string(kind), Path: nsPath}, string(kind)+" namespace")
	p.addFd(fd, launch.Op{Code: launch.OpSetns, Step: "join " + string(kind) + " namespace", Flags: cloneFlag(kind)})
}

func (p *planner) finishRoot() error {
	for _, target := range slices.Concat(p.spec.Linux.ReadonlyPaths, p.spec.Linux.MaskedPaths) {
		if within(target, p.shared) {
			return fmt.Errorf("mask %s: it lies on a mount shared with the host, which would be masked too: %w", target, ErrInvalid)
		}
	}
	for _, target := range p.spec.Linux.ReadonlyPaths {
		p.add(launch.Op{Code: launch.OpReadonlyPath, Step: "make " + target + " read-only", Path: target})
	}
	// Masks come last, on top of what was bound to itself just now.
	for _, target := range p.spec.Linux.MaskedPaths {
		p.add(launch.Op{Code: launch.OpMask, Step: "mask " + target, Path: target, Strings: p.labelled("tmpfs", nil)})
	}
	// Made here, while the root can still be written.
	if cwd := p.spec.Process.Cwd; cwd != "/" {
		p.add(launch.Op{Code: launch.OpMkdir, Step: "make working directory", Path: cwd, Number: 0o755})
	}
	if p.spec.Root.Readonly {
		p.add(launch.Op{Code: launch.OpMountAttr, Step: "make root read-only", Path: "/", Flags: unix.MOUNT_ATTR_RDONLY})
	}
	return nil
}

// process emits everything after the root is entered, for a container's first process and for exec alike.
func (p *planner) process(filter []byte, filterFlags uint64) error {
	proc := p.spec.Process
	if (p.spec.Linux.Seccomp != nil) != (len(filter) > 0) {
		// Either way something would run with another filter than the spec shows.
		return fmt.Errorf("compile spec: seccomp profile and filter do not come together: %w", ErrInvalid)
	}
	p.keyring()
	p.add(launch.Op{Code: launch.OpSetsid, Step: "setsid"})
	if p.out.Terminal = proc.Terminal; proc.Terminal {
		op := launch.Op{Code: launch.OpConsole, Step: "open console", Flags: uint64(proc.User.UID)}
		if p.out.JoinIndex < 0 { // an exec leaves the container's own /dev/console alone
			op.Number = 1
		}
		p.add(op)
	}
	if err := p.rlimits(proc.Rlimits); err != nil {
		return err
	}
	umask := int64(workloadUmask)
	if proc.User.Umask != nil {
		umask = int64(*proc.User.Umask)
	}
	p.add(launch.Op{Code: launch.OpUmask, Step: "set umask", Number: umask})
	// As root: a directory only its owner may enter is a fine place to work in.
	p.add(launch.Op{Code: launch.OpChdir, Step: "enter working directory", Path: proc.Cwd})
	if err := p.privileges(filter, filterFlags); err != nil {
		return err
	}
	p.add(launch.Op{Code: launch.OpExec, Step: "exec"})
	p.out.Plan.Args, p.out.Plan.Env = slices.Clone(proc.Args), slices.Clone(proc.Env)
	return nil
}

func (p *planner) privileges(filter []byte, filterFlags uint64) error {
	proc := p.spec.Process
	caps := proc.Capabilities
	if caps == nil {
		caps = &specs.LinuxCapabilities{}
	}
	var data []byte
	for _, names := range [][]string{caps.Bounding, caps.Effective, caps.Permitted, caps.Inheritable, caps.Ambient} {
		mask, err := capabilityMask(names)
		if err != nil {
			return err
		}
		data = binary.LittleEndian.AppendUint64(data, mask)
	}
	p.execLabel()
	p.confine(proc.ApparmorProfile)
	seccomp := launch.Op{Code: launch.OpSeccomp, Step: "load seccomp filter", Flags: filterFlags, Data: filter}
	p.add(launch.Op{Code: launch.OpBounding, Step: "drop bounding capabilities", Data: data[:8:8]})
	// Without no_new_privs, seccomp(2) needs CAP_SYS_ADMIN, which the capabilities below may take away.
	if len(filter) > 0 && !proc.NoNewPrivileges {
		p.add(seccomp)
	}
	groups := make([]string, len(proc.User.AdditionalGids))
	for i, gid := range proc.User.AdditionalGids {
		groups[i] = strconv.FormatUint(uint64(gid), 10)
	}
	p.add(launch.Op{Code: launch.OpUser, Step: "set user", Flags: uint64(proc.User.UID), Number: int64(proc.User.GID), Strings: groups})
	if proc.User.UID != 0 { // done already, unless root was refused: on NFS it may be nobody
		p.add(launch.Op{Code: launch.OpChdir, Step: "enter working directory as the user", Path: proc.Cwd})
	}
	p.add(launch.Op{Code: launch.OpCaps, Step: "set capabilities", Data: data})
	if proc.NoNewPrivileges {
		p.add(launch.Op{Code: launch.OpNoNewPrivs, Step: "set no_new_privs"})
		if len(filter) > 0 {
			p.add(seccomp) // last, so that as few system calls as possible come after it
		}
	}
	return nil
}

var rlimitNumbers = map[string]int64{
	"RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4, "RLIMIT_RSS": 5, "RLIMIT_NPROC": 6,
	"RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9, "RLIMIT_LOCKS": 10, "RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12,
	"RLIMIT_NICE": 13, "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}

func (p *planner) rlimits(limits []specs.POSIXRlimit) error {
	for _, l := range limits {
		number, ok := rlimitNumbers[l.Type]
		if !ok || l.Soft > l.Hard {
			return invalid("process.rlimits", l.Type, "unknown resource, or soft above hard")
		}
		p.add(launch.Op{Code: launch.OpRlimit, Step: "set " + l.Type, Number: number, Flags: l.Soft, Strings: []string{strconv.FormatUint(l.Hard, 10)}})
	}
	return nil
}

// within says whether a path is one of tops or below one.
func within(target string, tops []string) bool {
	for dir := path.Clean(target); ; dir = path.Dir(dir) {
		if slices.Contains(tops, dir) {
			return true
		}
		if dir == "/" || dir == "." {
			return false
		}
	}
}
