package mounts

import (
	"context"
	"fmt"
	"os"
)

// slot is the right to resolve one source. Resolving can hang for good (a dead
// NFS server, a FUSE daemon that does not answer) and can't be interrupted, so
// it runs on a goroutine of its own that may outlive its caller.
type slot struct {
	turn    chan struct{} // holds one token while nobody is resolving
	waiters int           // callers that hold or want the token; guarded by Opener.mu
}

// guarded runs open for key and waits for it no longer than ctx. At most one
// goroutine per key is ever inside open: a retry on a hung source waits for its
// turn, and its ctx, instead of hanging a second thread.
func (o *Opener) guarded(ctx context.Context, key string, open func() (*os.File, error)) (*os.File, error) {
	s := o.enter(key)
	select {
	case <-s.turn:
	case <-ctx.Done():
		o.leave(key, s)
		return nil, fmt.Errorf("%s does not answer, an earlier attempt is still waiting for it: %w", key, ctx.Err())
	}
	// The token may have been there together with the end of ctx.
	if err := ctx.Err(); err != nil {
		s.turn <- struct{}{}
		o.leave(key, s)
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	type answer struct {
		file *os.File
		err  error
	}
	answers := make(chan answer) // unbuffered: who loses the race below closes the file
	// Owned by this call; ends when the kernel answers, which nobody waits for after
	// ctx is done. It gives the token back itself, so the next attempt starts then.
	go func() {
		file, err := open()
		s.turn <- struct{}{}
		o.leave(key, s)
		select {
		case answers <- answer{file, err}:
		case <-ctx.Done():
			if file != nil {
				file.Close()
			}
		}
	}()
	select {
	case a := <-answers:
		return a.file, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%s does not answer: %w", key, ctx.Err())
	}
}

// Look runs look, which looks at path on the host, and waits for it no longer than ctx, with the same promise: at most one
// goroutine per path hangs. One that is left behind goes on writing to what look has; it is the caller's only where Look
// returns look's own answer.
func (o *Opener) Look(ctx context.Context, path string, look func() error) error {
	_, err := o.guarded(ctx, path, func() (*os.File, error) { return nil, look() })
	return err
}

func (o *Opener) enter(key string) *slot {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.opening[key]
	if s == nil {
		s = &slot{turn: make(chan struct{}, 1)}
		s.turn <- struct{}{}
		o.opening[key] = s
	}
	s.waiters++
	return s
}

// leave forgets the slot with its last user.
func (o *Opener) leave(key string, s *slot) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if s.waiters--; s.waiters == 0 {
		delete(o.opening, key)
	}
}
