package keeper

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// ErrSlow: an attached client took less than the container wrote, and was let go.
var ErrSlow = errors.New("the client reads more slowly than the container writes")

// outputBytes is what a client may be behind: the most that a pipe holds without privilege (pipe(7), pipe-max-size).
const outputBytes = 1 << 20

// Attachment is a client's part in the streams of a container: all output from its beginning on, and input beside that
// of others.
type Attachment struct {
	socket *os.File // to the keeper
	output *os.File // from it
}

// Attach makes one. ErrState: the child has ended, or has no stdin any more; ErrLimit: there are as many as there may be.
func (c *Client) Attach(ctx context.Context, id string, stdin bool) (*Attachment, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(ends[1])
	a := &Attachment{socket: os.NewFile(uintptr(ends[0]), "attached input")}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		a.socket.Close()
		return nil, fmt.Errorf("pipe: %w", err)
	}
	defer unix.Close(pipe[1])
	a.output = os.NewFile(uintptr(pipe[0]), "attached output")
	// Where an operator has lowered that bound, a client has the 64 KiB of any pipe.
	unix.FcntlInt(uintptr(pipe[1]), unix.F_SETPIPE_SZ, outputBytes)
	m := &wire.Message{Op: wire.OpAttach, ID: id, Stdin: stdin, Roles: []wire.Role{wire.RoleSocket, wire.RoleOutput}}
	_, _, err = c.call(ctx, m, []int{ends[1], pipe[1]})
	if err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

// Output writes what the container writes; a nil writer takes nothing. It returns when the container has ended, and with
// ErrSlow, ErrDisconnected (the keeper was replaced), a writer's error, or that of an attachment that was closed.
func (a *Attachment) Output(stdout, stderr io.Writer) error {
	r := bufio.NewReaderSize(a.output, 32<<10)
	text := make([]byte, 0, 32<<10)
	for {
		kind, err := nextOutput(r, &text)
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("the keeper was replaced: %w", ErrDisconnected)
		case err != nil:
			return err
		case kind == wire.FrameEnd:
			return nil
		case kind == wire.FrameDropped:
			return ErrSlow
		}
		to := stdout
		if kind == wire.FrameStderr {
			to = stderr
		}
		if to != nil {
			if _, err := to.Write(text); err != nil {
				return fmt.Errorf("write to client: %w", err)
			}
		}
	}
}

// nextOutput reads a frame, and those of its kind that are there behind it: a client that is behind gets few and large
// pieces.
func nextOutput(r *bufio.Reader, text *[]byte) (kind byte, err error) {
	*text = (*text)[:0]
	for {
		header, err := r.Peek(wire.OutputHeader)
		if err != nil {
			return 0, err
		}
		kind = header[0]
		n, length := len(*text), int(binary.BigEndian.Uint16(header[1:]))
		if length > wire.OutputBytes {
			return 0, fmt.Errorf("output of %d bytes: %w", length, wire.ErrMalformed)
		}
		*text = (*text)[:n+length]
		r.Discard(wire.OutputHeader)
		if _, err := io.ReadFull(r, (*text)[n:]); err != nil {
			return 0, err
		}
		if r.Buffered() < wire.OutputHeader {
			return kind, nil
		}
		next, _ := r.Peek(wire.OutputHeader)
		more := int(binary.BigEndian.Uint16(next[1:]))
		if next[0] != kind || len(*text)+more > cap(*text) || r.Buffered() < wire.OutputHeader+more {
			return kind, nil
		}
	}
}

// Input copies from r until its end, which it hands on; it waits while the container takes nothing.
func (a *Attachment) Input(r io.Reader) error {
	frame := make([]byte, 1+wire.InputBytes)
	frame[0] = wire.FrameStdin
	for {
		n, err := r.Read(frame[1:])
		if n > 0 {
			if _, err := a.socket.Write(frame[:1+n]); err != nil {
				return err
			}
		}
		if err != nil { // of a client that leaves, too
			_, err = a.socket.Write([]byte{wire.FrameStdinEnd})
			return err
		}
	}
}

// Resize sets the size of the terminal. It comes behind the input before it.
func (a *Attachment) Resize(columns, rows uint16) error {
	_, err := a.socket.Write(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16([]byte{wire.FrameResize}, columns), rows))
	return err
}

// Close leaves, and ends an Output and an Input under way.
func (a *Attachment) Close() error { return errors.Join(a.socket.Close(), a.output.Close()) }
