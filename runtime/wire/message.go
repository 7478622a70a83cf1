// Package wire owns the keeper's protocol: the messages between daemon, keeper and anchor, and how they travel as
// packets with descriptors on a SOCK_SEQPACKET unix socket. It holds data and one send and one receive; it decides
// nothing, opens nothing and keeps no connection.
// Source: DESIGN "What the keeper promises"; unix(7), SCM_RIGHTS.
package wire

import (
	"fmt"
	"syscall"
	"time"
)

// Version is the protocol's; a packet of another version is malformed. Fields may be added to messages without
// a new version: a reader ignores what it doesn't know.
const Version = 1

// Op says what a message asks for, or what it tells.
type Op string

// Requests of the daemon; each is answered by a message with the same Seq and Op.
const (
	OpHello      Op = "hello"      // answered by Hello; only who said hello gets events
	OpLaunch     Op = "launch"     // ID, Launch, descriptors → Process
	OpSignal     Op = "signal"     // ID, Signal, Group
	OpReopenLog  Op = "reopenLog"  // ID, one descriptor "log"
	OpCloseStdin Op = "closeStdin" // ID
	OpAttach     Op = "attach"     // ID, Stdin, descriptors "socket" and "output", which carry frames
	OpExit       Op = "exit"       // ID → Exit, nil while it runs. Unasked (Seq 0): ID has exited
	OpForget     Op = "forget"     // ID; Kill: also when it runs or is being launched
	OpList       Op = "list"       // → Children
	OpAdopt      Op = "adopt"      // ID, Child, descriptors → Process
	OpUpgrade    Op = "upgrade"    // descriptors "binary" and "init"
	OpShutdown   Op = "shutdown"   // ends keeper and anchor; refused while there are children
)

// Messages between keeper and anchor; none is answered except OpHandover.
const (
	OpHold     Op = "hold"     // ID, Process (PID 0: reaped), descriptors to hold beside those held already
	OpDrop     Op = "drop"     // ID; Role: only that descriptor, none: everything
	OpHandover Op = "handover" // all that is held comes as OpHold messages, then OpEnd; one descriptor: to there
	OpEnd      Op = "end"      // end of the hand-over; Clean: the keeper before left no log line unfinished
	OpBinary   Op = "binary"   // descriptors "binary" and "init", for the next keeper
	OpQuit     Op = "quit"     // the anchor ends when its keeper does
)

// Role says what a descriptor is for. Roles are listed in the order of the descriptors.
type Role string

// The descriptors of a launch. The standard streams are the process's own ends; the keeper reads, writes and hands
// to the anchor the other ends. RoleTable comes once per entry of the plan's table, in order, the one at JoinIndex left out.
const (
	RolePlan       Role = "plan"
	RoleCgroup     Role = "cgroup" // cgroup v2 directory the process is born in
	RoleStdin      Role = "stdin"
	RoleStdout     Role = "stdout"
	RoleStderr     Role = "stderr"
	RoleTable      Role = "table"
	RoleStdoutRead Role = "stdoutRead"
	RoleStderrRead Role = "stderrRead"
	RoleStdinWrite Role = "stdinWrite"
	RoleLog        Role = "log"
	RoleConsole    Role = "console" // the terminal's master
	RolePidfd      Role = "pidfd"
	RoleBinary     Role = "binary"
	RoleInit       Role = "init"
	RoleSocket     Role = "socket"
	RoleOutput     Role = "output" // of an attached client
)

// Kind is what a child is to the daemon.
type Kind string

// The kinds of children. The keeper treats them alike but for the terminal of an exec, whose master goes to the daemon.
const (
	KindContainer Kind = "container"
	KindExec      Kind = "exec"
	KindReaper    Kind = "reaper"
)

// Message is one request, answer or event. Which fields count is said at its Op.
type Message struct {
	Seq      uint64   `json:"seq,omitempty"`
	Op       Op       `json:"op"`
	ID       string   `json:"id,omitempty"`
	Roles    []Role   `json:"roles,omitempty"` // of the descriptors that come with it
	Role     Role     `json:"role,omitempty"`
	Error    *Error   `json:"error,omitempty"`
	Hello    *Hello   `json:"hello,omitempty"`
	Launch   *Launch  `json:"launch,omitempty"`
	Process  *Process `json:"process,omitempty"`
	Child    *Child   `json:"child,omitempty"`
	Children []Child  `json:"children,omitempty"`
	Exit     *Exit    `json:"exit,omitempty"`
	Signal   int      `json:"signal,omitempty"`
	Group    bool     `json:"group,omitempty"`
	Kill     bool     `json:"kill,omitempty"`
	Stdin    bool     `json:"stdin,omitempty"`
	Clean    bool     `json:"clean,omitempty"`
}

// Hello is the keeper's answer to a new client.
type Hello struct {
	KeeperPID int    `json:"keeperPID"`
	AnchorPID int    `json:"anchorPID"`
	Build     string `json:"build,omitempty"`
}

// Launch asks for one process.
type Launch struct {
	Kind      Kind   `json:"kind"`
	Container string `json:"container,omitempty"` // the owner of an exec
	NewPID    bool   `json:"newPID,omitempty"`    // init becomes PID 1 of a new PID namespace
	Terminal  bool   `json:"terminal,omitempty"`
	StdinOnce bool   `json:"stdinOnce,omitempty"`
	JoinIndex int    `json:"joinIndex"` // table entry the keeper fills with Container's pidfd; -1: none
	User      *User  `json:"user,omitempty"`
}

// User is the user namespace that init is started in, root of it and of nothing else.
type User struct {
	Index    int         `json:"index"` // the table entry that is its file
	OOMScore int         `json:"oomScore"`
	Hard     []HardLimit `json:"hard,omitempty"`
}

// HardLimit is what the hard limit of a resource (getrlimit(2)) has to be at least: only outside can it be raised.
type HardLimit struct {
	Resource int    `json:"resource"`
	Hard     uint64 `json:"hard"`
}

// Process identifies a process beyond the reuse of its pid.
type Process struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime,omitempty"` // clock ticks since boot, field 22 of /proc/<pid>/stat
}

// Child is one entry of the keeper's table, as listed, as adopted, and as written to children/<id>.
type Child struct {
	ID        string  `json:"id"`
	Container string  `json:"container,omitempty"`
	Kind      Kind    `json:"kind"`
	Terminal  bool    `json:"terminal,omitempty"`
	Process   Process `json:"process"`
	Exit      *Exit   `json:"exit,omitempty"`
	LostLines uint64  `json:"lostLines,omitempty"` // log lines that could not be written

	StdinOnce  bool `json:"stdinOnce,omitempty"`  // the first client's end of stdin is the child's
	StdinTaken bool `json:"stdinTaken,omitempty"` // that client has come
}

// Exit is how a process ended, as sent and as written to exits/<id>.
type Exit struct {
	Code   int       `json:"code"` // as a shell says it: 128+Signal for a killed process
	Signal int       `json:"signal,omitempty"`
	Time   time.Time `json:"time"`
	OOM    bool      `json:"oom,omitempty"`  // left to the daemon, who reads it from the cgroup
	Lost   bool      `json:"lost,omitempty"` // nobody could learn the code; Code is 255
}

// ErrorCode lets the client branch on an answer's error.
type ErrorCode string

// The codes of an Error.
const (
	CodeFailed  ErrorCode = ""        // see Text
	CodeUnknown ErrorCode = "unknown" // no such child
	CodeExists  ErrorCode = "exists"  // the id is taken
	CodeState   ErrorCode = "state"   // the child is not in the state this needs
	CodeLimit   ErrorCode = "limit"   // there are as many as there may be
	CodeStep    ErrorCode = "step"    // a launch.StepError: Text is its Step, Errno and Path its own
)

// Error is a failed request's answer.
type Error struct {
	Code  ErrorCode     `json:"code,omitempty"`
	Text  string        `json:"text"`
	Errno syscall.Errno `json:"errno,omitempty"`
	Path  string        `json:"path,omitempty"`
}

// Error is the text, for logs.
func (e *Error) Error() string {
	if e.Errno != 0 {
		return e.Text + " " + e.Path + ": " + e.Errno.Error()
	}
	return e.Text
}

// maxIDBytes keeps an id with a suffix below NAME_MAX.
const maxIDBytes = 128

// CheckID refuses what could be anything but one plain file name: ids name files in exits/ and children/.
func CheckID(id string) error {
	if id == "" || len(id) > maxIDBytes {
		return fmt.Errorf("id of %d bytes: %w", len(id), ErrMalformed)
	}
	for i := 0; i < len(id); i++ {
		c := id[i]
		plain := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !plain && (i == 0 || c != '-' && c != '_') {
			return fmt.Errorf("id %q: %w", id, ErrMalformed)
		}
	}
	return nil
}
