package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// hangUpGrace is how long a command may take to end by itself once its client has left: its streams are closed and its
// terminal hung up, so that a shell saves its history and a pipeline ends by SIGPIPE. Then it is killed.
const hangUpGrace = time.Second

// terminalGrace is how long output may follow the end of a command on a terminal: its last words are still on their way
// when it ends, and then end of file follows, unless another process has the terminal open.
const terminalGrace = 500 * time.Millisecond

// firstSizePatience is how long a command with a terminal waits for the size of its client's window: clients send it
// at once, and a program that asks before would draw for another.
const firstSizePatience = 100 * time.Millisecond

// Exec runs args in a running container with a client's streams, and gives its exit code when it ends. When ctx ends
// first the client has left: the command and all it started are ended, as at ExecSync's timeout. Peers leave such a
// command running, and nobody ever ends it (kubernetes #102498). One read of session.Stdin may still be under way when
// Exec returns; the client's connection ends it.
func (m *execManager) Exec(ctx context.Context, id string, args []string, session Session) (int32, error) {
	c, err := m.executable(id, args)
	if err != nil {
		return 0, err
	}
	var code int32
	err = m.ops.during(ctx, kindExecSession, containerName(m.core, c), c.id, func(op *Operation) (err error) {
		if code, err = m.execSession(ctx, op, c, args, session); err != nil {
			return fmt.Errorf("exec in container %s: %w", c.id, err)
		}
		return nil
	})
	return code, err
}

// RunningContainer gives the id of the running container that id, or its beginning, names.
func (m *execManager) RunningContainer(id string) (string, error) {
	c, err := m.running(id)
	if err != nil {
		return "", err
	}
	return c.id, nil
}

func (m *execManager) execSession(ctx context.Context, op *Operation, c *container, args []string, session Session) (int32, error) {
	op.at("prepare")
	template, err := m.execTemplate(c, session.Terminal)
	if err != nil {
		return 0, err
	}
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	client := &execClient{session: session, leave: leave, uid: template.uid, gid: template.gid}
	window := watchWindow(ctx, session.Resize)
	launchable := template.with(args)
	if session.Terminal {
		if size, known := window.first(ctx); known {
			launchable.SetConsoleSize(size.Columns, size.Rows)
		}
	}
	started, err := m.begin(ctx, op, c, launchable, client)
	if err != nil {
		return 0, err
	}
	defer m.forgetExec(ctx, started.id)
	window.of(started.console)
	client.start(started.console)
	op.at("run command")
	op.on(Wait{For: WaitEnd, PID: started.process.PID})
	select {
	case exit := <-started.exit:
		if !exit.Lost {
			noteKilledCommand(m.core, c, exit)
		}
		client.finish()
		if exit.Lost {
			return 0, lostExit(args)
		}
		return int32(exit.Code), nil
	case <-ctx.Done():
	}
	client.close()
	select {
	case exit := <-started.exit:
		started.exit <- exit // killTree looks at it too, and finds what the command left in its session
	case <-time.After(hangUpGrace):
	}
	m.killTree(c.record().CgroupPath, started.process, started.exit)
	client.copying.Wait()
	return 0, fmt.Errorf("command %q: its client left: %w", args[0], context.Cause(ctx))
}

// execClient is a command's streams on one side and its client's on the other.
type execClient struct {
	session  Session
	leave    context.CancelCauseFunc // called when the client takes no more output
	uid, gid int                     // who may reopen the streams by name

	stdin          *os.File // the end that is written
	stdout, stderr *os.File // the ends that are read; with a terminal stdout and stdin are its master
	copying        sync.WaitGroup
	ends           sync.Once
}

// open makes the pipes that the client asked for; what it did not ask for is /dev/null. A terminal is init's to make.
func (e *execClient) open() (*streams, error) {
	s := &streams{}
	if e.session.Terminal {
		return s, nil
	}
	err := e.openPipes(s)
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (e *execClient) openPipes(s *streams) (err error) {
	if e.session.Stdin != nil {
		fds, err := pipe(1, e.uid, e.gid)
		if err != nil {
			return err
		}
		s.stdin, e.stdin = os.NewFile(uintptr(fds[0]), "exec input"), os.NewFile(uintptr(fds[1]), "exec input")
	}
	if e.session.Stdout != nil {
		if e.stdout, s.stdout, err = outputPipe(e.uid, e.gid); err != nil {
			return err
		}
	}
	if e.session.Stderr != nil {
		e.stderr, s.stderr, err = outputPipe(e.uid, e.gid)
	}
	return err
}

// lastWords: what init's own runtime says when it ends goes to the client.
func (e *execClient) lastWords() string {
	if e.stderr == nil {
		return ""
	}
	words := make([]byte, maxLastWords)
	n, _ := unread(e.stderr, words)
	return string(words[:n])
}

// start copies until finish or close; the terminal's master becomes the client's.
func (e *execClient) start(console *os.File) {
	if console != nil {
		e.stdout = console
		if e.session.Stdin != nil {
			e.stdin = console
		}
	}
	if e.stdin != nil {
		// Owner: the client's connection, whose end ends it; nobody waits, for a client may send nothing for hours.
		go e.copyIn()
	}
	for _, out := range []struct {
		from *os.File
		to   io.Writer
	}{{e.stdout, e.session.Stdout}, {e.stderr, e.session.Stderr}} {
		if out.from == nil {
			continue
		}
		to := out.to
		if to == nil {
			to = io.Discard // a terminal that nobody reads blocks who writes to it
		}
		e.copying.Add(1)
		// Owner: execSession; ends with the command's output, or with the client, whose writes fail then; finish waits.
		go e.copyOut(out.from, to)
	}
}

// copyIn hands the client's input on; its end is the command's end of file, but on a terminal, where only what is typed
// ends input. What the command does not read any more is read all the same: sizes come on the same connection.
func (e *execClient) copyIn() {
	_, err := io.Copy(e.stdin, e.session.Stdin)
	if !e.session.Terminal {
		e.stdin.Close()
	}
	if err != nil {
		io.Copy(io.Discard, e.session.Stdin)
	}
}

func (e *execClient) copyOut(from *os.File, to io.Writer) {
	defer e.copying.Done()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, writeErr := to.Write(buf[:n]); writeErr != nil {
				e.leave(fmt.Errorf("write to client: %w", writeErr))
				return
			}
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			e.copyRest(from, to, buf)
			return
		case err != nil: // end of file; of a terminal EIO
			return
		}
	}
}

// copyRest takes what is there now: the command ended before, and who still holds its output may write for ever.
func (e *execClient) copyRest(from *os.File, to io.Writer, buf []byte) {
	for left := buffered(from); left > 0; {
		n, err := unread(from, buf[:min(left, len(buf))])
		if n <= 0 || err != nil {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
		left -= n
	}
}

// finish brings the client what the command wrote before it ended, at the client's pace.
func (e *execClient) finish() {
	grace := drainGrace
	if e.session.Terminal {
		grace = terminalGrace
	}
	deadline := time.Now().Add(grace)
	for _, f := range []*os.File{e.stdout, e.stderr} {
		if f != nil {
			f.SetReadDeadline(deadline)
		}
	}
	e.copying.Wait()
	e.close()
}

// close lets go of the command's streams: it reads end of file, writes get EPIPE, a terminal hangs up.
func (e *execClient) close() {
	e.ends.Do(func() {
		for _, f := range []*os.File{e.stdin, e.stdout, e.stderr} {
			if f != nil {
				f.Close()
			}
		}
	})
}

// buffered is how many bytes can be read without waiting.
func buffered(f *os.File) (n int) {
	if raw, err := f.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	return n
}

// unread reads what is there, whatever f's deadline; EAGAIN where nothing is.
func unread(f *os.File, buf []byte) (n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(fd uintptr) { n, err = unix.Read(int(fd), buf) })
	return max(n, 0), errors.Join(controlErr, err)
}
