package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/runtime/keeper"
)

// Attachable gives the id of the running container that id, or its beginning, names, if it can be attached to so.
func (m *streamManager) Attachable(id string, stdin, terminal bool) (string, error) {
	c, err := m.attachable(id, stdin, terminal)
	if err != nil {
		return "", err
	}
	return c.id, nil
}

func (m *streamManager) attachable(id string, stdin, terminal bool) (*container, error) {
	c, err := m.containers.find("container", id)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	phase := c.record().Phase
	switch {
	case phase != record.ContainerRunning:
		return nil, kindf(ErrPrecondition, "attach to container %s: %w", c.id, notRunning(phase))
	case terminal != c.config.GetTty():
		return nil, kindf(ErrInvalid, "attach to container %s: tty is %t, and must be %t as when the container was created", c.id, terminal, c.config.GetTty())
	case stdin && !c.config.GetStdin():
		return nil, kindf(ErrInvalid, "attach to container %s: stdin is true, and the container was created without", c.id)
	}
	return c, m.Ready()
}

// Attach connects a client with the container's own streams until the container ends or, with ctx, the client leaves. One
// that reads more slowly than the container writes is let go: nobody waits for it. With stdin_once the end of the first
// client's input is the end of the container's (B33). One read of session.Stdin may still be under way when Attach
// returns; the client's connection ends it.
func (m *streamManager) Attach(ctx context.Context, id string, session Session) error {
	c, err := m.attachable(id, session.Stdin != nil, session.Terminal)
	if err != nil {
		return err
	}
	return m.ops.during(ctx, kindAttachSession, containerName(m.core, c), c.id, func(op *Operation) error {
		if err := m.attachSession(ctx, op, c, session); err != nil {
			return fmt.Errorf("attach to container %s: %w", c.id, err)
		}
		return nil
	})
}

func (m *streamManager) attachSession(ctx context.Context, op *Operation, c *container, session Session) error {
	op.at("attach")
	attachment, err := m.keeper.Load().Attach(ctx, c.id, session.Stdin != nil)
	if err != nil {
		return attachError(err)
	}
	defer attachment.Close()
	defer context.AfterFunc(ctx, func() { attachment.Close() })()
	if session.Stdin != nil {
		// Owner: the client's connection, whose end ends it; nobody waits, for a client may send nothing for hours. What
		// the container does not read any more is read all the same: sizes come on the same connection.
		go func() {
			if attachment.Input(session.Stdin) != nil {
				io.Copy(io.Discard, session.Stdin)
			}
		}()
	}
	if session.Resize != nil {
		// Owner: the session; ends with its context or when the client's stream of sizes ends. Nobody waits: it touches
		// nothing but the attachment, which may be closed.
		go followSizes(ctx, session.Resize, attachment)
	}
	op.at("copy streams")
	op.on(Wait{For: WaitEnd, PID: c.record().PID})
	err = attachment.Output(session.Stdout, session.Stderr)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("its client left: %w", context.Cause(ctx))
	}
	return attachError(err)
}

// followSizes takes sizes whether they count or not: one that nobody takes holds up what else the client sends (B30).
func followSizes(ctx context.Context, sizes <-chan TerminalSize, attachment *keeper.Attachment) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			if size.Columns > 0 && size.Rows > 0 { // no window has another, and programs divide by it
				attachment.Resize(size.Columns, size.Rows)
			}
		case <-ctx.Done():
			return
		}
	}
}

// attachError gives what the keeper says its kind.
func attachError(err error) error {
	switch {
	case err == nil:
		return nil
	case isGone(err):
		return kindf(ErrPrecondition, "%w", err)
	case errors.Is(err, keeper.ErrLimit), errors.Is(err, keeper.ErrSlow):
		return kindf(ErrResourceLimit, "%w", err)
	case errors.Is(err, keeper.ErrDisconnected):
		return kindf(ErrUnavailable, "%w", err)
	}
	return err
}
