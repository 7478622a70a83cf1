package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/utils/exec"

	"github.com/podwright/podwright/podsandbox"
)

var errTooMany = fmt.Errorf("%d stream URLs are given out and not used; one becomes free in %s at most", maxTokens, tokenLife)

// asked are the streams a request asked for.
type asked struct{ stdin, stdout, stderr, terminal bool }

// check refuses what no session can serve.
func (a asked) check(rpc string) error {
	switch {
	case a.terminal && a.stderr:
		return invalid("%s: tty and stderr are both true: a terminal has one output, stdout", rpc)
	case !a.stdin && !a.stdout && !a.stderr:
		return invalid("%s: none of stdin, stdout and stderr is true", rpc)
	}
	return nil
}

func (a asked) options() *remotecommand.Options {
	return &remotecommand.Options{Stdin: a.stdin, Stdout: a.stdout, Stderr: a.stderr, TTY: a.terminal}
}

func invalid(format string, args ...any) error {
	return &podsandbox.Error{Kind: podsandbox.ErrInvalid, Err: fmt.Errorf(format, args...)}
}

// Exec gives the URL of a command to be run in a container.
func (s *Server) Exec(req *criv1.ExecRequest) (string, error) {
	a := asked{req.GetStdin(), req.GetStdout(), req.GetStderr(), req.GetTty()}
	if err := a.check("exec"); err != nil {
		return "", err
	}
	if err := podsandbox.CheckCommand(req.GetCmd()); err != nil {
		return "", fmt.Errorf("exec in container %q: %w", req.GetContainerId(), err)
	}
	id, err := s.cfg.Objects.RunningContainer(req.GetContainerId())
	if err != nil {
		return "", fmt.Errorf("exec: %w", err)
	}
	args := req.GetCmd()
	return s.url("exec", func(s *Server, w http.ResponseWriter, r *http.Request) {
		remotecommand.ServeExec(w, r, &execution{s.cfg.Runtime, a}, "", "", id, args, a.options(), s.cfg.IdleTimeout, createTimeout, remotecommand.SupportedStreamingProtocols)
	})
}

// Attach gives the URL of a session with a container's own streams.
func (s *Server) Attach(req *criv1.AttachRequest) (string, error) {
	a := asked{req.GetStdin(), req.GetStdout(), req.GetStderr(), req.GetTty()}
	if err := a.check("attach"); err != nil {
		return "", err
	}
	id, err := s.cfg.Objects.Attachable(req.GetContainerId(), a.stdin, a.terminal)
	if err != nil {
		return "", err
	}
	return s.url("attach", func(s *Server, w http.ResponseWriter, r *http.Request) {
		remotecommand.ServeAttach(w, r, &attachment{s.cfg.Runtime, a}, "", "", id, a.options(), s.cfg.IdleTimeout, createTimeout, remotecommand.SupportedStreamingProtocols)
	})
}

// url gives out a token for a session.
func (s *Server) url(kind string, serve session) (string, error) {
	token, err := s.tokens.give(kind, serve)
	if err != nil {
		return "", err
	}
	u := s.base
	u.Path = "/" + kind + "/" + token
	return u.String(), nil
}

// execution is an exec as the library calls it.
type execution struct {
	runtime Runtime
	asked   asked
}

// ExecInContainer tells an exit code other than 0 by the error that the library looks for.
func (e *execution) ExecInContainer(ctx context.Context, _, _, id string, args []string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	begin := time.Now()
	code, err := e.runtime.Exec(ctx, id, args, e.asked.session(ctx, in, out, errOut, resize))
	logEnd(ctx, "exec", id, begin, err)
	if err != nil {
		return unlessGone(ctx, err)
	}
	if code != 0 {
		return exec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: int(code)}
	}
	return nil
}

// attachment is an attach as the library calls it.
type attachment struct {
	runtime Runtime
	asked   asked
}

// AttachContainer ends with the container, the client, or an error that becomes text on the session's error stream.
func (a *attachment) AttachContainer(ctx context.Context, _, _, id string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	begin := time.Now()
	err := a.runtime.Attach(ctx, id, a.asked.session(ctx, in, out, errOut, resize))
	logEnd(ctx, "attach", id, begin, err)
	return unlessGone(ctx, err)
}

// logEnd is the session's line in the log; the RPC's came when it began.
func logEnd(ctx context.Context, kind, id string, begin time.Time, err error) {
	klog.FromContext(ctx).V(2).Info("Ended session", "kind", kind, "containerID", id, "duration", time.Since(begin), "clientLeft", ctx.Err() != nil, "err", err)
}

// unlessGone is err where there is a client to read it: the library logs it as well, and that somebody left is no error.
func unlessGone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// session has the streams that were asked for and no others: a WebSocket has all of them, and the end of input that
// nobody sends would close a container's.
func (a asked) session(ctx context.Context, in io.Reader, out, errOut io.WriteCloser, resize <-chan remotecommand.TerminalSize) podsandbox.Session {
	session := podsandbox.Session{Terminal: a.terminal, Resize: sizes(ctx, resize)}
	if a.stdin && in != nil {
		session.Stdin = in
	}
	if a.stdout && out != nil {
		session.Stdout = out
	}
	if a.stderr && errOut != nil {
		session.Stderr = errOut
	}
	return session
}

// sizes hands on what the library decodes; nil where the client sends none.
func sizes(ctx context.Context, from <-chan remotecommand.TerminalSize) <-chan podsandbox.TerminalSize {
	if from == nil {
		return nil
	}
	to := make(chan podsandbox.TerminalSize)
	// Owner: the session; ends with the client's stream of sizes or its connection. Nobody waits: it only hands on.
	go func() {
		defer close(to)
		for {
			select {
			case size, ok := <-from:
				if !ok {
					return
				}
				select {
				case to <- podsandbox.TerminalSize{Columns: size.Width, Rows: size.Height}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return to
}

var errPanic = errors.New("internal error: the session panicked, see podwright's log")
