package anchor

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"

	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// reap records and reaps the ended children: keeper, what a dead keeper left, and orphans.
func (a *anchor) reap() {
	a.stuck = false
	for {
		pid, exit, ok := Peek(unix.P_ALL, 0)
		if !ok {
			return
		}
		if !a.reapOne(pid, exit) {
			break
		}
	}
	// What can't be recorded stays a zombie, and waitid shows it again and again: look for the others by pid.
	a.stuck = true
	pids := []int{a.keeper}
	for _, h := range a.held {
		pids = append(pids, h.PID)
	}
	for _, pid := range pids {
		if pid == 0 {
			continue
		}
		if _, exit, ok := Peek(unix.P_PID, pid); ok {
			a.reapOne(pid, exit)
		}
	}
}

func (a *anchor) reapOne(pid int, exit wire.Exit) bool {
	if pid == a.keeper {
		if !a.quit {
			a.log.Error("Keeper ended", "pid", pid, "exitCode", exit.Code)
		}
		a.keeper = 0
		if a.socket >= 0 {
			unix.Close(a.socket)
			a.socket = -1
		}
		a.inbox.Drop()
	}
	for _, h := range a.held {
		if h.PID != pid {
			continue
		}
		// Not by pid alone: the keeper may have reaped the child that had it, and not told us yet, or died.
		if _, _, ended := Peek(unix.P_PIDFD, h.fd(wire.RolePidfd)); !ended {
			continue
		}
		if err := RecordExit(h.ID, exit); err != nil {
			a.log.Error("Exit was not recorded, the child stays a zombie", "containerID", h.ID, "pid", pid, "err", err)
			return false
		}
		h.PID = 0
	}
	Reap(unix.P_PID, pid)
	return true
}

// Peek looks for an ended child by waitid's idType and id and leaves it a zombie.
func Peek(idType, id int) (pid int, exit wire.Exit, ok bool) {
	// Of 128 bytes; x/sys leaves the fields of SIGCHLD out, see sigaction(2).
	var info struct {
		signo, errno, code, _ int32
		pid                   int32
		uid                   uint32
		status                int32
		_                     [100]byte
	}
	err := unix.Waitid(idType, id, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT|unix.WNOHANG|syscall.WALL, nil)
	if err != nil || info.pid == 0 {
		return 0, wire.Exit{}, false
	}
	exit = wire.Exit{Code: int(info.status), Time: time.Now()}
	const exited = 1 // CLD_EXITED; else killed or dumped, and status is the signal
	if info.code != exited {
		exit.Signal, exit.Code = int(info.status), 128+int(info.status)
	}
	return int(info.pid), exit, true
}

// Reap lets an ended child go.
func Reap(idType, id int) {
	for unix.Waitid(idType, id, nil, unix.WEXITED|unix.WNOHANG|syscall.WALL, nil) == unix.EINTR {
	}
}

// RecordExit makes an exit durable. It comes before Reap: a child whose code nobody wrote down stays a zombie.
func RecordExit(id string, exit wire.Exit) error {
	return Write(wire.ExitsDir+"/"+id, exit)
}

// Write replaces a file below the run directory by the JSON of value, at once or not at all.
func Write(name string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	temporary := name + ".tmp" // no id has a dot
	fd, err := unix.Openat(wire.RunDirFd, temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("create %s: %w", temporary, err)
	}
	n, err := unix.Write(fd, text)
	unix.Close(fd)
	if err == nil && n < len(text) {
		err = unix.ENOSPC
	}
	if err == nil {
		err = unix.Renameat(wire.RunDirFd, temporary, wire.RunDirFd, name)
	}
	if err != nil {
		unix.Unlinkat(wire.RunDirFd, temporary, 0)
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// Read reads what Write wrote.
func Read(name string, value any) error {
	fd, err := unix.Openat(wire.RunDirFd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	defer unix.Close(fd)
	text, err := ReadAll(fd)
	if err == nil {
		err = json.Unmarshal(text, value)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// maxFileBytes bounds what is read back; a state of 10,000 children has less.
const maxFileBytes = 8 << 20

// ReadAll reads a file, which stays the caller's, from its start.
func ReadAll(fd int) ([]byte, error) {
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFileBytes))
}
