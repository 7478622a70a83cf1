package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/runtime/keeper"
)

// streamManager has what is done to the streams of a container that runs.
type streamManager struct{ *core }

// reopenDeadline is how long a keeper that died may take to be another one.
const reopenDeadline = 15 * time.Second

// ReopenLog makes a running container's output go on in the file at its log path, which the kubelet has renamed: not
// one line is lost or doubled (B38). When it fails, it leaves no file that it made.
func (m *streamManager) ReopenLog(ctx context.Context, id string) error {
	c, err := m.containers.find("container", id)
	if err != nil {
		return fmt.Errorf("reopen log: %w", err)
	}
	return toItsEnd(ctx, m.core, c, kindReopenLog, "reopen log of container", reopenDeadline, func(ctx context.Context, op *Operation) error { return m.reopenLog(ctx, op, c) })
}

func (m *streamManager) reopenLog(ctx context.Context, op *Operation, c *container) error {
	rec := c.record()
	if rec.Phase != record.ContainerRunning {
		return notRunning(rec.Phase)
	}
	s, err := m.sandboxes.find("sandbox", rec.SandboxID)
	if err != nil {
		return err
	}
	if rec.LogPath == "" {
		return kindf(ErrPrecondition, "it has no log_path, or its sandbox no log_directory")
	}
	op.at("open log")
	log, err := openNextLog(s.config.GetLogDirectory(), c.config.GetLogPath())
	if err != nil {
		return err
	}
	defer log.close()
	op.at("hand to keeper")
	if err := m.handLog(ctx, c, log.file); err != nil {
		return errors.Join(err, log.undo())
	}
	return nil
}

// handLog gives the keeper a container's new log. One that died before it answered may have taken it or not, and one
// that is new may not know the container yet: both are asked again.
func (m *streamManager) handLog(ctx context.Context, c *container, log *os.File) error {
	for {
		err := m.keeper.Load().ReopenLog(ctx, c.id, log)
		if err == nil {
			return nil
		}
		if phase := c.record().Phase; phase != record.ContainerRunning {
			return notRunning(phase)
		}
		if errors.Is(err, keeper.ErrState) {
			return kindf(ErrPrecondition, "%w", err)
		}
		if !errors.Is(err, keeper.ErrDisconnected) && !errors.Is(err, keeper.ErrUnknown) {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return kindf(ErrUnavailable, "%w", err)
		}
	}
}

func notRunning(phase record.ContainerPhase) error {
	return kindf(ErrPrecondition, "it is %s, not running", phase)
}

// nextLog is the log file that a container goes on in.
type nextLog struct {
	file *os.File
	dir  int // the directory it is in
	name string
	made bool // by us
}

// openNextLog opens a log file, or makes one where it was renamed, by the rules of openLog but for one: it makes no
// directory. The kubelet renames the file back where this fails.
func openNextLog(logDir, logPath string) (*nextLog, error) {
	root, err := unix.Open(logDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, kindf(ErrPrecondition, "open log directory %s: %w", logDir, err)
	}
	defer unix.Close(root)
	dir, err := unix.Openat2(root, filepath.Dir(logPath), &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolveLog})
	if err != nil {
		return nil, kindf(ErrPrecondition, "open directory of log %q in %s: %w", logPath, logDir, err)
	}
	n := &nextLog{dir: dir, name: filepath.Base(logPath)}
	// Who made the file decides who may remove it, and somebody else may make it between the two.
	for try := 0; try < 10; try++ {
		if n.file, err = openLogFile(dir, n.name, 0); !errors.Is(err, unix.ENOENT) {
			break
		}
		if n.file, err = openLogFile(dir, n.name, unix.O_CREAT|unix.O_EXCL); !errors.Is(err, unix.EEXIST) {
			n.made = err == nil
			break
		}
	}
	if err != nil {
		n.close()
		return nil, kindf(ErrPrecondition, "log %q in %s: %w", logPath, logDir, err)
	}
	return n, nil
}

// undo removes the file if it was made here and is still the one of that name.
func (n *nextLog) undo() error {
	if !n.made {
		return nil
	}
	var ours, there unix.Stat_t
	if err := unix.Fstat(int(n.file.Fd()), &ours); err != nil {
		return fmt.Errorf("look at log %s: %w", n.name, err)
	}
	err := unix.Fstatat(n.dir, n.name, &there, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && ours.Dev == there.Dev && ours.Ino == there.Ino {
		err = unix.Unlinkat(n.dir, n.name, 0)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove log %s: %w", n.name, err)
	}
	return nil
}

func (n *nextLog) close() {
	if n.file != nil {
		n.file.Close()
	}
	unix.Close(n.dir)
}
