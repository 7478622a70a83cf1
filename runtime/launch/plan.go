// Package launch owns the plan: the complete, serialisable order that the daemon gives to init
// for one process. It holds data and its encoding, no decisions and no system calls; keeper and
// init never see OCI or CRI types. podsandbox/spec compiles plans, runtime/initproc walks them.
// Source: DESIGN "Spec, then plan" and "The plan is data".
package launch

// Version is the plan encoding's version; init refuses every other one.
const Version = 1

// The descriptors a spawned init finds at fixed numbers. Everything else it needs is in the
// plan's fd table, which starts at FirstFd: table index i is descriptor FirstFd+i.
const (
	PlanFd   = 3 // a sealed memfd with the encoded Plan, read by init from offset 0
	StatusFd = 4 // one end of a SOCK_SEQPACKET pair; init writes encoded Status messages
	FirstFd  = 5
)

// RootMountpoint is the empty directory of the keeper's mount namespace on which OpRoot attaches the root.
const RootMountpoint = "/r"

// Plan is what init walks top to bottom. Nothing is decided after the fork, except what only
// the container's own file system can answer (PATH look-up, the terminal's name).
type Plan struct {
	Fds  []string // what each table entry is, for errors and printing; its length is the table's
	Ops  []Op
	Args []string // argv of the workload; Args[0] is looked up in PATH of Env unless it holds a slash
	Env  []string // KEY=value, final
}

// Op is one step. Which fields count is said at its Code; the others stay zero.
type Op struct {
	Code    Code
	Step    string   // the name an error carries, e.g. "mount /proc"
	Fd      int      // index in the fd table; -1 when unused
	Path    string   // a path inside the container's root, resolved with RESOLVE_IN_ROOT
	Arg     string   // a file system type, link target, label
	Flags   uint64   // bits; their meaning is at the Code
	Number  int64    // a mode, resource number, value
	Strings []string // options, groups in decimal
	Data    []byte   // BPF, capability sets
}

// Code names an operation of init.
type Code uint16

// Operations up to OpPivot run with the container's root attached but not yet entered.
const (
	_ Code = iota

	// OpJoinCgroupV1 writes "0" to the tasks file Fd. First of all: what follows is accounted there.
	OpJoinCgroupV1
	// OpSetns enters the namespaces of Fd selected by Flags (CLONE_NEW*): a namespace file or a pidfd
	// (setns(2)). With CLONE_NEWPID it takes effect for the workload, which is then cloned as a
	// child (OpExec clones whenever a plan holds such a step).
	OpSetns
	// OpUnshare unshares Flags (CLONE_NEWNS, CLONE_NEWCGROUP) (unshare(2)).
	OpUnshare
	// OpOOMScore writes Number to /proc/self/oom_score_adj; before the pivot, while /proc is the keeper's.
	OpOOMScore
	// OpRoot attaches the detached mount Fd as the root to be; its propagation was cut by the daemon,
	// Flags (MS_PRIVATE, MS_SLAVE or MS_SHARED, with MS_REC) is set on the new namespace's root.
	OpRoot
	// OpMountFd attaches the detached mount Fd on Path. Number 1: the source is a directory, 0: a file;
	// a missing target is created in the root (directories 0755, files 0644 empty), through dangling links too.
	// Refused are the root (EBUSY), links for /proc, /sys and /dev (ELOOP), and links into procfs (EXDEV).
	OpMountFd
	// OpMountNew makes a new instance of file system Arg (proc, sysfs, tmpfs, devpts, mqueue, cgroup,
	// cgroup2) with Strings as its options ("key" or "key=value", fsconfig(2)), mount attributes Flags
	// (MOUNT_ATTR_*), and attaches it on Path, created with mode Number (0755 when 0) where missing. Data, where given,
	// is the SELinux label of its root.
	OpMountNew
	// OpMkdir makes directory Path (and parents) with mode Number; an existing directory is left as it is.
	OpMkdir
	// OpSymlink makes Path a symbolic link to Arg; an existing entry is left as it is.
	OpSymlink
	// OpMknod makes the node Path: Number its mode with type bits, Flags its device number
	// (unix.Mkdev); Strings[0], Strings[1], where given, its owner and group in decimal. After an OpMountNew on
	// /dev, Path has to lie on that file system: EXDEV otherwise.
	OpMknod
	// OpMask hides Path: a directory under an empty read-only tmpfs, anything else under /dev/null of
	// the container's own /dev, verified to be char 1:3 (CVE-2025-31133). A missing path is skipped. Strings are more
	// options of the tmpfs; all masks of a plan have the same.
	OpMask
	// OpReadonlyPath makes Path read-only by a bind on itself, recursively, keeping its other
	// attributes. A missing path is skipped.
	OpReadonlyPath
	// OpMountAttr sets mount attributes Flags (MOUNT_ATTR_*) on the mount at Path; Number 1: recursively
	// (mount_setattr(2)). Used for the read-only root and /sys last.
	OpMountAttr
	// OpPivot makes the attached root the process's root and drops everything else (pivot_root(2)).
	OpPivot
	// OpConsole opens a terminal of the container's own devpts (TIOCGPTPEER), sends its master in a
	// StatusConsole message, binds the slave over /dev/console (Number 1), makes it the controlling
	// terminal and descriptors 0-2. Flags: the slave's owner uid. Data, where given: its size before anybody sees it,
	// columns and rows as little-endian uint16. Comes after OpPivot and OpSetsid.
	OpConsole
	// OpSetsid starts a session of the workload's own (setsid(2)).
	OpSetsid
	// OpKeyring joins a new session keyring named Arg (keyctl(2)); ENOSYS and EPERM are no error.
	OpKeyring
	// OpRlimit sets resource Number to soft limit Flags and the hard limit in Strings[0], decimal.
	OpRlimit
	// OpUmask sets the file mode creation mask to Number.
	OpUmask
	// OpChdir enters Path, made with mode 0755 where missing when Flags is 1, and verifies that the
	// new working directory lies inside the root (CVE-2024-21626). A plan may hold it twice for one path,
	// before OpUser and after it: the second is then needed only where the first was refused (EACCES, EPERM).
	OpChdir
	// OpExecLabel writes Arg to the LSM attribute file Path of this thread ("exec", "keycreate", "apparmor/exec";
	// below /proc/thread-self/attr of the keeper's procfs), before no_new_privs. With one of Path "exec" in the plan
	// nothing is executed while that attribute is empty (EPERM): it would run as whatever the policy makes of init.
	OpExecLabel
	// OpUser sets supplementary groups Strings (decimal), gid Number and uid Flags, keeping capabilities
	// for OpCaps.
	OpUser
	// OpCaps sets the capability sets in Data: five little-endian uint64 bit masks: bounding, effective,
	// permitted, inheritable, ambient (capabilities(7)). Plans hold it after OpUser.
	OpCaps
	// OpBounding drops every capability from the bounding set that is not in Data (one little-endian
	// uint64). Before OpUser, while CAP_SETPCAP is still there.
	OpBounding
	// OpNoNewPrivs sets no_new_privs (PR_SET_NO_NEW_PRIVS).
	OpNoNewPrivs
	// OpSeccomp loads the filter Data (an array of struct sock_filter) with Flags for seccomp(2).
	OpSeccomp
	// OpExec is last: closes every descriptor but 0-2, resets the signal mask and dispositions, writes
	// StatusExecNext and executes Args with Env, by the rules of execvp(3); the error's path is Args[0], or the
	// file that was found and is no program. Where the plan joined a PID namespace the workload is a clone
	// (CLONE_PARENT): it is reported by StatusChild, before or after its own StatusExecNext.
	OpExec
	// OpReap is last in the plan of a sandbox whose PID namespace is shared: init writes StatusExecNext, stays as
	// PID 1 in a mount namespace that holds nothing but itself and reaps; it ends when it gets SIGTERM, SIGINT
	// or SIGKILL. Plans for it join the sandbox's net, ipc and uts namespaces and have no OpRoot: the
	// sandbox's containers can enter what PID 1 is in. Strings are more options of the tmpfs with its program.
	OpReap

	codeEnd // one past the last code
)

var codeNames = [...]string{
	OpJoinCgroupV1: "join-cgroup-v1", OpSetns: "setns", OpUnshare: "unshare", OpOOMScore: "oom-score", OpRoot: "root",
	OpMountFd: "mount-fd", OpMountNew: "mount-new", OpMkdir: "mkdir", OpSymlink: "symlink", OpMknod: "mknod", OpMask: "mask",
	OpReadonlyPath: "readonly-path", OpMountAttr: "mount-attr", OpPivot: "pivot", OpConsole: "console", OpSetsid: "setsid",
	OpKeyring: "keyring", OpRlimit: "rlimit", OpUmask: "umask", OpChdir: "chdir", OpExecLabel: "exec-label", OpUser: "user",
	OpCaps: "caps", OpBounding: "bounding", OpNoNewPrivs: "no-new-privs", OpSeccomp: "seccomp", OpExec: "exec", OpReap: "reap",
}

// String is the code's name in printed plans and golden files.
func (c Code) String() string {
	if c == 0 || c >= codeEnd {
		return "invalid"
	}
	return codeNames[c]
}

// MarshalText makes printed plans readable.
func (c Code) MarshalText() ([]byte, error) { return []byte(c.String()), nil }
