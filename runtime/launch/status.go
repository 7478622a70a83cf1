package launch

import (
	"strconv"
	"syscall"
)

// StatusKind tells what init reports on StatusFd.
type StatusKind uint32

const (
	_ StatusKind = iota
	// StatusChild: the workload was cloned out of init; Pid is its id in the host's PID namespace.
	StatusChild
	// StatusConsole: one descriptor comes with the message, the terminal's master.
	StatusConsole
	// StatusExecNext is the last message before execve: end of file after it, and no error, means the workload runs.
	StatusExecNext
	// StatusError: a step failed and nothing runs; Step, Errno and Path say which and why. It may follow
	// StatusExecNext: then execve itself failed.
	StatusError
)

// Status is one message from init to the keeper.
type Status struct {
	Kind  StatusKind
	Pid   int
	Step  string
	Errno syscall.Errno
	Path  string
}

// Encode gives the message's bytes.
func (s *Status) Encode() []byte {
	e := &encoder{b: make([]byte, 0, 64)}
	e.short(uint32(s.Kind))
	e.number(uint64(s.Pid))
	e.text(s.Step)
	e.number(uint64(s.Errno))
	e.text(s.Path)
	return e.b
}

// StatusPidOffset is where Pid stands in an encoded status, as eight bytes.
const StatusPidOffset = 4

// StatusErrnoOffset is where Errno stands in an encoded status with this step. Code that runs where no Go may
// fills it into a finished message.
func StatusErrnoOffset(step string) int { return 4 + 8 + 4 + len(step) }

// DecodeStatus reads one message.
func DecodeStatus(b []byte) (Status, error) {
	d := &decoder{b: b}
	s := Status{Kind: StatusKind(d.short()), Pid: int(d.number()), Step: d.text(), Errno: syscall.Errno(d.number()), Path: d.text()}
	if d.bad || len(d.b) != 0 || s.Kind < StatusChild || s.Kind > StatusError {
		return Status{}, malformed("status of " + strconv.Itoa(len(b)) + " bytes")
	}
	return s, nil
}

// StepError says which step of a launch failed. It reaches the client as the reason of a failed start or exec.
type StepError struct {
	Step  string
	Errno syscall.Errno
	Path  string
}

func (e *StepError) Error() string {
	what := e.Step
	if e.Path != "" {
		what += " " + e.Path
	}
	if e.Errno == 0 {
		return what
	}
	return what + ": " + e.Errno.Error()
}

// Unwrap lets callers branch on the errno.
func (e *StepError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}
