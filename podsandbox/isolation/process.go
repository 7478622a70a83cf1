package isolation

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

const (
	smallFile = 64 << 10
	// mountTable bounds what is read of a mount table: some hundred mounts are many, and a container with CAP_SYS_ADMIN
	// can make a hundred thousand (sysctl fs.mount-max).
	mountTable = 16 << 20
)

// process is the directory of one process in procfs: it stays that process's, whoever gets its number.
type process struct {
	pid    int
	start  uint64
	dir    *os.File
	status map[string]string
}

func openProcess(pid int, start uint64) (*process, error) {
	dir, err := os.OpenFile("/proc/"+strconv.Itoa(pid), unix.O_DIRECTORY|unix.O_CLOEXEC|os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		err = ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	p := &process{pid: pid, start: start, dir: dir}
	err = p.check()
	if err == nil {
		p.status, err = p.readStatus()
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return p, nil
}

func (p *process) close() { p.dir.Close() }

// check gives ErrGone when the process has ended or is another one than meant.
func (p *process) check() error {
	stat, err := p.read("stat", smallFile)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return ErrGone
	}
	if err != nil {
		return err
	}
	// The name in the second field may hold anything but is followed by the last parenthesis.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return ErrGone
	}
	// On its way out it runs no program any more, and loses its mounts and groups while it still counts as running.
	if flags, err := strconv.ParseUint(fields[6], 10, 64); err != nil || flags&sys.ProcessExiting != 0 {
		return ErrGone
	}
	if start, err := strconv.ParseUint(fields[19], 10, 64); err != nil || start != p.start {
		return ErrGone
	}
	return nil
}

// read gives a file of the process, of at most limit bytes.
func (p *process) read(name string, limit int64) (string, error) {
	f, err := sys.Openat2(p.dir, name, unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s is longer than %d bytes", name, limit)
	}
	return string(text), err
}

func (p *process) readStatus() (map[string]string, error) {
	text, err := p.read("status", smallFile)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			out[key] = strings.TrimSpace(value)
		}
	}
	return out, nil
}

// namespace gives the identity of one of the process's namespaces.
func (p *process) namespace(kind string) (string, error) {
	return readLink(p.dir, filepath.Join("ns", kind))
}

func readLink(dir *os.File, name string) (string, error) {
	buffer := make([]byte, 256)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buffer)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return string(buffer[:n]), nil
}
