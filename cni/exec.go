package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

const (
	maxStdoutBytes = 1 << 20 // a result; more is not one
	maxStderrBytes = 4 << 10
	maxSaidBytes   = 1 << 10 // of a plugin's words in an error
	// How long a plugin's output is waited for once it has exited: what it left
	// running may hold the pipe for ever.
	outputGrace = 2 * time.Second
)

// PluginError is a plugin that answered no, or that did not answer.
type PluginError struct {
	Plugin  string
	Command string // ADD, DEL, STATUS, GC, VERSION
	Code    uint   // the plugin's own, CNI specification section 5 "Error"; 0 is none
	Timeout bool   // it was killed at its deadline
	said    string // printable and bounded
	cause   error
}

func (e *PluginError) Error() string {
	parts := []string{"plugin " + e.Plugin}
	if e.cause != nil {
		parts = append(parts, e.cause.Error())
	}
	if e.said != "" {
		parts = append(parts, e.said)
	}
	return strings.Join(parts, ": ")
}

func (e *PluginError) Unwrap() error { return e.cause }

// runner executes plugins for libcni: one at a time per call, in a process group
// of its own that is killed when the plugin's time is up or the caller has left.
type runner struct {
	version.PluginDecoder
	timeout time.Duration
	running sync.Map // *Running -> true, of the plugins under way
}

var _ invoke.Exec = (*runner)(nil)

// FindInPath finds a plugin by its bare name.
func (r *runner) FindInPath(plugin string, dirs []string) (string, error) {
	if !pluginName.MatchString(plugin) {
		return "", fmt.Errorf("plugin type %.140q: not the bare name of an executable", plugin)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, plugin)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", &PluginError{Plugin: plugin, cause: fmt.Errorf("no such executable in %s: %w", strings.Join(dirs, ":"), fs.ErrNotExist)}
}

// ExecPlugin runs one plugin with one command to its end.
func (r *runner) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	perr := &PluginError{Plugin: filepath.Base(path), Command: commandOf(environ)}
	runCtx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	stdout, stderr := &bounds{limit: maxStdoutBytes}, &bounds{limit: maxStderrBytes}
	plugin := Running{Plugin: perr.Plugin, Command: perr.Command, SandboxID: variable(environ, "CNI_CONTAINERID")}
	plugin.Deadline, _ = runCtx.Deadline()
	err := r.run(runCtx, path, stdin, pluginEnv(environ), stdout, stderr, plugin)
	switch {
	case runCtx.Err() != nil && ctx.Err() == nil:
		perr.Timeout = true
		perr.cause = fmt.Errorf("%s: no answer within %s, killed: %w", perr.Command, r.timeout, context.DeadlineExceeded)
		perr.said = quoteSaid(stdout, stderr)
		return nil, perr
	case ctx.Err() != nil:
		perr.cause = fmt.Errorf("%s: killed: %w", perr.Command, ctx.Err())
		return nil, perr
	case err != nil:
		perr.explain(err, stdout, stderr)
		return nil, perr
	case stdout.overflowed():
		perr.cause = fmt.Errorf("%s: printed more than %d bytes", perr.Command, maxStdoutBytes)
		return nil, perr
	case perr.Command == "ADD" && checkResult(stdout.bytes()) != nil, perr.Command == "VERSION" && !isObject(stdout.bytes()):
		perr.cause = fmt.Errorf("%s: succeeded without a valid answer", perr.Command)
		perr.said = quoteSaid(stdout, stderr)
		return nil, perr
	}
	return stdout.bytes(), nil
}

// run starts the plugin and waits for its end.
func (r *runner) run(ctx context.Context, path string, stdin []byte, environ []string, stdout, stderr *bounds, plugin Running) error {
	for try := 0; ; try++ {
		cmd := exec.Command(path)
		cmd.Dir = "/"
		cmd.Env = environ
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), stdout, stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.WaitDelay = outputGrace
		err := cmd.Start()
		// ETXTBSY: an installer is still writing the file, or a child forked just
		// now holds it open for writing until its exec. Gone in a moment.
		if errors.Is(err, unix.ETXTBSY) && try < 10 && ctx.Err() == nil {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		plugin.PID = cmd.Process.Pid
		r.running.Store(&plugin, true)
		if !awaitExit(ctx, cmd.Process.Pid) {
			// Owner: nobody is left to wait; it ends when the kernel lets the process go.
			go func() {
				_ = cmd.Wait()
				r.running.Delete(&plugin)
			}()
			return errUnkillable
		}
		r.running.Delete(&plugin)
		if err := cmd.Wait(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
			return err
		}
		return nil
	}
}

var errUnkillable = errors.New("it hangs in the kernel and cannot be killed")

// awaitExit returns when the process has exited and is not yet reaped. When ctx
// ends first, the whole group is killed: a plugin's children (IPAM, iptables) must
// not go on behind its back. Signalling by number is safe for just as long as the
// unreaped leader keeps the number, hence WNOWAIT. False: even that did not end it.
func awaitExit(ctx context.Context, pid int) bool {
	exited := make(chan struct{})
	// Owner: this call, which waits for it unless the process can't be killed; it
	// stops when the process exits.
	go func() {
		defer close(exited)
		for {
			err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	select {
	case <-exited:
		return true
	case <-ctx.Done():
	}
	_ = unix.Kill(-pid, unix.SIGKILL) // can't be another group: the leader is unreaped
	select {
	case <-exited:
		return true
	case <-time.After(outputGrace):
		return false
	}
}

// explain reads what the CNI specification has a failing plugin print: an object
// with code, msg and details on stdout.
func (e *PluginError) explain(err error, stdout, stderr *bounds) {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		e.cause = fmt.Errorf("%s: %w", e.Command, err) // it did not even start
		return
	}
	var said types.Error
	if json.Unmarshal(stdout.bytes(), &said) == nil && (said.Msg != "" || said.Details != "") {
		e.Code = said.Code
		e.said = printable(strings.Trim(said.Msg+"; "+said.Details, "; "))
		return
	}
	e.cause = fmt.Errorf("%s: %s", e.Command, exit.ProcessState)
	e.said = quoteSaid(stdout, stderr)
}

// quoteSaid is what a plugin printed that is not in the specification's form.
func quoteSaid(stdout, stderr *bounds) string {
	var parts []string
	for _, stream := range []struct {
		name string
		buf  *bounds
	}{{"stdout", stdout}, {"stderr", stderr}} {
		text := strings.TrimSpace(string(stream.buf.bytes()))
		if text == "" {
			continue
		}
		if len(text) > maxSaidBytes/2 {
			text = text[:maxSaidBytes/2] + "..."
		}
		parts = append(parts, fmt.Sprintf("%s %q", stream.name, text))
	}
	if len(parts) == 0 {
		return "it printed nothing"
	}
	return "it printed " + strings.Join(parts, ", ")
}

// printable keeps a plugin from writing terminal sequences or lines of its own
// into a log.
func printable(text string) string {
	if len(text) > maxSaidBytes {
		text = text[:maxSaidBytes] + "..."
	}
	text = strings.ToValidUTF8(text, "?")
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
	return strings.Join(strings.Fields(text), " ")
}

// bounded is err with a bounded, printable text: libcni's errors can quote what
// a file or a plugin contained.
func bounded(err error) error {
	if err == nil {
		return nil
	}
	return &boundedError{err}
}

type boundedError struct{ cause error }

func (e *boundedError) Error() string { return printable(e.cause.Error()) }
func (e *boundedError) Unwrap() error { return e.cause }

// inPlugin reduces an error of libcni's to the plugin's own, where it is one:
// libcni says the same around it in other words.
func inPlugin(err error) error {
	if err == nil {
		return nil
	}
	var perr *PluginError
	if errors.As(err, &perr) {
		return perr
	}
	return bounded(err)
}

func isObject(data []byte) bool {
	data = bytes.TrimSpace(data)
	return len(data) > 0 && data[0] == '{' && json.Valid(data)
}

func commandOf(environ []string) string {
	if command := variable(environ, "CNI_COMMAND"); command != "" {
		return command
	}
	return "?"
}

func variable(environ []string, name string) string {
	for _, assignment := range environ {
		if value, ok := strings.CutPrefix(assignment, name+"="); ok {
			return value
		}
	}
	return ""
}

// defaultPath is for a daemon that was started without a PATH: plugins call
// iptables, nft and ip by name.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// pluginEnv takes away what systemd gave to the daemon alone: with NOTIFY_SOCKET
// a plugin could speak to it in the daemon's name (sd_notify(3), sd_listen_fds(3)).
func pluginEnv(environ []string) []string {
	own := []string{"NOTIFY_SOCKET=", "WATCHDOG_PID=", "WATCHDOG_USEC=", "LISTEN_PID=", "LISTEN_FDS=", "LISTEN_FDNAMES=", "CREDENTIALS_DIRECTORY="}
	out := make([]string, 0, len(environ)+1)
	hasPath := false
next:
	for _, variable := range environ {
		for _, prefix := range own {
			if strings.HasPrefix(variable, prefix) {
				continue next
			}
		}
		hasPath = hasPath || strings.HasPrefix(variable, "PATH=")
		out = append(out, variable)
	}
	if !hasPath {
		out = append(out, defaultPath)
	}
	return out
}

// bounds keeps the first limit bytes and swallows the rest, so that a plugin that
// prints without end is stopped by its deadline and not by a full pipe.
type bounds struct {
	limit int

	mu      sync.Mutex // guards what follows: an unkillable plugin is read from on
	buf     []byte
	dropped bool
}

func (b *bounds) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := p
	if room := b.limit - len(b.buf); len(p) > room {
		b.dropped = true
		kept = p[:room]
	}
	b.buf = append(b.buf, kept...)
	return len(p), nil
}

func (b *bounds) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf)
}

func (b *bounds) overflowed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dropped
}
