package spec

import (
	"encoding/binary"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/wire"
)

// Launchable is a plan and what must be opened before it can be sent.
type Launchable struct {
	Plan   *launch.Plan
	Needs  []Need // Needs[i] is to become plan table entry i
	NewPID bool   // the keeper clones init with CLONE_NEWPID
	// User is the user namespace that init is started in; nil is the keeper's own.
	User     *wire.User
	Terminal bool
	// JoinIndex is the table entry the keeper fills with the container's pidfd; -1 except for Exec.
	JoinIndex int
	Notes     []string // what was asked for and is weaker than asked, for the isolation report
}

// NeedKind says what a Need is.
type NeedKind int

// What a plan can need. The zero kind is invalid.
const (
	_ NeedKind = iota
	// NeedCgroupTasks is the tasks file of the container's group in hierarchy Name (v1 only).
	NeedCgroupTasks
	// NeedNamespace is the namespace file Path of type Name (network, ipc, uts, pid).
	NeedNamespace
	// NeedRoot is the container's root file system as a detached mount.
	NeedRoot
	// NeedBind is Bind as a detached mount. Whether it is a directory goes into SetDirectory.
	NeedBind
	// NeedImage is Image as a detached mount; otherwise as NeedBind.
	NeedImage
	// NeedContainer is the container's pidfd, which the keeper fills in; leave the entry nil.
	NeedContainer
)

// Need is one thing to open.
type Need struct {
	Kind  NeedKind
	Name  string // hierarchy directory or namespace type
	Path  string // namespace file
	Bind  Bind
	Image ImageMount
}

// ImageMount is an image that is mounted beside the container's own.
type ImageMount struct {
	ID      string
	SubPath string // in the image; "" is all of it
	Target  string // in the container
	NoExec  bool
}

// Propagation is how mounts travel between a bind and its source, as mount_setattr(2) sets it.
type Propagation int

// Ordered by how much they let through.
const (
	PropagationPrivate Propagation = iota
	PropagationSlave
	PropagationShared
)

// Bind is one bind mount of a host path. What it does not ask for stays as it is at the source: nothing makes
// writable what the node's owner mounted read-only.
type Bind struct {
	Source            string // on the host, symbolic links followed
	Target            string // in the container
	Recursive         bool   // with the mounts below it
	ReadOnly          bool   // of the mount itself; those below keep theirs
	RecursiveReadOnly bool   // of those below too
	Propagation       Propagation
	NoSuid            bool
	NoDev             bool
	NoExec            bool
	// Mappings of user and group ids, both or none, for the mount itself; with MapBelow for those below too.
	UIDs, GIDs []specs.LinuxIDMapping
	MapBelow   bool
}

// SetDirectory records whether the opened source of Needs[i] is a directory or a file: init makes a
// missing target accordingly.
func (l *Launchable) SetDirectory(i int, directory bool) {
	for n := range l.Plan.Ops {
		op := &l.Plan.Ops[n]
		if op.Code != launch.OpMountFd || op.Fd != i {
			continue
		}
		op.Number = 0
		if directory {
			op.Number = 1
		}
	}
}

// SetConsoleSize gives the terminal a size before the workload sees it. The plan is written; its list of operations,
// which may be shared, is not.
func (l *Launchable) SetConsoleSize(columns, rows uint16) {
	l.Plan.Ops = slices.Clone(l.Plan.Ops)
	for i := range l.Plan.Ops {
		if op := &l.Plan.Ops[i]; op.Code == launch.OpConsole {
			op.Data = binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, columns), rows)
		}
	}
}

// CompileInput is what a container's plan needs besides its spec.
type CompileInput struct {
	ID          string
	Node        Node
	Filter      []byte // compiled seccomp filter; nil where the spec has no profile
	FilterFlags uint64 // for seccomp(2)
}

// ExecInput is a process to start in a running container.
type ExecInput struct {
	ID          string      // the container's
	Spec        *specs.Spec // the container's
	Args        []string
	Terminal    bool
	Node        Node
	Filter      []byte
	FilterFlags uint64
}

// ReaperInput is the reaping PID 1 of a sandbox with a shared PID namespace.
type ReaperInput struct {
	ID                        string // the sandbox's
	Node                      Node
	NetPath, IPCPath, UTSPath string // as in SandboxInput
	UserPath                  string
	User                      *UserMapping // nil for the host's
	AppArmor                  string       // the profile it runs under; "" for none
	ProcessLabel, MountLabel  string       // the sandbox's
}
