package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// session is one connection; requests of any number of goroutines share it.
type session struct {
	socket  *os.File
	writing chan struct{} // 1-slot lock: a message's packets go out together
	ended   chan struct{} // closed when the reader has returned
	event   func(*wire.Message)

	mu      sync.Mutex // guards seq, pending, dead
	seq     uint64
	pending map[uint64]chan answer
	dead    bool
}

type answer struct {
	m   *wire.Message
	fds []int
}

// sendTimeout is for a keeper that takes nothing; what was sent in part can't be taken back, so the session ends.
const sendTimeout = 30 * time.Second

// newSession takes ownership of socket.
func newSession(socket *os.File, event func(*wire.Message)) *session {
	s := &session{socket: socket, writing: make(chan struct{}, 1), ended: make(chan struct{}), event: event, pending: map[uint64]chan answer{}}
	go s.read() // owned by the session, stopped by close, which waits for it
	return s
}

func (s *session) close() {
	s.socket.Close()
	<-s.ended
}

func (s *session) read() {
	defer s.end()
	var inbox wire.Inbox
	defer inbox.Drop()
	scratch := new(wire.Scratch)
	raw, err := s.socket.SyscallConn()
	if err != nil {
		return
	}
	for {
		var m *wire.Message
		var fds []int
		var receiveErr error
		err := raw.Read(func(fd uintptr) bool {
			m, fds, receiveErr = inbox.Receive(int(fd), scratch, unix.MSG_DONTWAIT)
			return !errors.Is(receiveErr, unix.EAGAIN)
		})
		if err != nil || receiveErr != nil {
			return
		}
		switch {
		case m == nil:
		case m.Seq == 0:
			wire.CloseAll(fds)
			if m.Op == wire.OpExit {
				s.event(m)
			}
		default:
			s.deliver(m, fds)
		}
	}
}

func (s *session) deliver(m *wire.Message, fds []int) {
	s.mu.Lock()
	waiting := s.pending[m.Seq]
	delete(s.pending, m.Seq)
	s.mu.Unlock()
	if waiting == nil { // whoever asked is gone
		wire.CloseAll(fds)
		return
	}
	waiting <- answer{m, fds} // has room for the one
}

func (s *session) end() {
	s.socket.Close()
	s.mu.Lock()
	s.dead = true
	for _, waiting := range s.pending {
		close(waiting)
	}
	s.pending = map[uint64]chan answer{}
	s.mu.Unlock()
	close(s.ended)
}

// call sends a request with descriptors, which stay the caller's, and waits for its answer, whose descriptors
// are the caller's.
func (s *session) call(ctx context.Context, m *wire.Message, fds []int) (*wire.Message, []int, error) {
	waiting, err := s.send(ctx, m, fds)
	if err != nil {
		return nil, nil, err
	}
	select {
	case a, ok := <-waiting:
		if !ok {
			return nil, nil, ErrDisconnected
		}
		if a.m.Error != nil {
			wire.CloseAll(a.fds)
			return nil, nil, failure(a.m.Error)
		}
		return a.m, a.fds, nil
	case <-ctx.Done():
		s.abandon(m.Seq, waiting)
		return nil, nil, ctx.Err()
	}
}

func (s *session) abandon(seq uint64, waiting chan answer) {
	s.mu.Lock()
	delete(s.pending, seq)
	s.mu.Unlock()
	select {
	case a := <-waiting: // it came at the same moment
		wire.CloseAll(a.fds)
	default:
	}
}

func (s *session) send(ctx context.Context, m *wire.Message, fds []int) (chan answer, error) {
	select {
	case s.writing <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.ended:
		return nil, ErrDisconnected
	}
	defer func() { <-s.writing }()
	waiting := make(chan answer, 1)
	s.mu.Lock()
	if s.dead {
		s.mu.Unlock()
		return nil, ErrDisconnected
	}
	s.seq++
	m.Seq = s.seq
	s.pending[m.Seq] = waiting
	s.mu.Unlock()
	if err := s.write(m, fds); err != nil {
		s.abandon(m.Seq, waiting)
		return nil, err
	}
	return waiting, nil
}

func (s *session) write(m *wire.Message, fds []int) error {
	packets, err := wire.Pack(m, fds)
	if err != nil {
		return err
	}
	raw, err := s.socket.SyscallConn()
	for i := 0; i < len(packets) && err == nil; i++ {
		var sendErr error
		s.socket.SetWriteDeadline(time.Now().Add(sendTimeout))
		err = raw.Write(func(fd uintptr) bool {
			sendErr = packets[i].Send(int(fd), unix.MSG_DONTWAIT)
			return !errors.Is(sendErr, unix.EAGAIN)
		})
		err = errors.Join(err, sendErr)
	}
	if err != nil {
		s.socket.Close()
		return fmt.Errorf("%w: %w", ErrDisconnected, err)
	}
	return nil
}
