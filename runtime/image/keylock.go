package image

import (
	"context"
	"sync"
)

// keyLocks lets one pull at a time fetch a blob or unpack a snapshot; the
// others find it done. It is the unpacker's KeyedLocker.
type keyLocks struct {
	// mu guards held.
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	slot chan struct{} // full while locked
	refs int           // holder and waiters
}

func newKeyLocks() *keyLocks { return &keyLocks{held: map[string]*keyLock{}} }

func (k *keyLocks) Lock(ctx context.Context, key string) error {
	k.mu.Lock()
	lock := k.held[key]
	if lock == nil {
		lock = &keyLock{slot: make(chan struct{}, 1)}
		k.held[key] = lock
	}
	lock.refs++
	k.mu.Unlock()
	select {
	case lock.slot <- struct{}{}:
		return nil
	case <-ctx.Done():
		k.release(key, lock)
		return ctx.Err()
	}
}

func (k *keyLocks) Unlock(key string) {
	k.mu.Lock()
	lock := k.held[key]
	k.mu.Unlock()
	<-lock.slot
	k.release(key, lock)
}

func (k *keyLocks) release(key string, lock *keyLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if lock.refs--; lock.refs == 0 {
		delete(k.held, key)
	}
}
