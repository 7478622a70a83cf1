package image

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"
)

// Removals come in bursts (the kubelet's image GC), so that a moment's wait
// makes one collection of them.
const collectDelay = 500 * time.Millisecond

// FsInfo is the disk space that images take.
type FsInfo struct {
	Mountpoint string
	UsedBytes  uint64
	InodesUsed uint64
	// At is when it was counted; it is counted again after every change.
	At time.Time
}

// FsInfo answers from memory.
func (s *Store) FsInfo(context.Context) (FsInfo, error) {
	return *s.usage.Load(), nil
}

// StartGC lets the collector run from now on, and once now: all holders have
// been restored, so that what nobody refers to is garbage, the leavings of a
// crash included.
func (s *Store) StartGC(ctx context.Context) error {
	ctx = libraryContext(ctx)
	unlock, err := s.change(ctx)
	if err != nil {
		return fmt.Errorf("start image collector: %w", err)
	}
	defer unlock()
	if err := s.disk.markDirty(ctx); err != nil {
		return fmt.Errorf("start image collector: %w", err)
	}
	s.gcAllowed.Store(true)
	s.dropUnused(ctx)
	return nil
}

func (s *Store) collectSoon() {
	select {
	case s.wake <- struct{}{}:
	default: // someone asked already
	}
}

// maintain writes through, collects garbage and counts disk usage after
// changes, until ctx ends.
func (s *Store) maintain(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(s.collectDelay):
		}
		s.sync(ctx)
		if s.gcAllowed.Load() {
			begin := time.Now()
			// Not to be cancelled: the library (2.4.2) then leaks a goroutine.
			if _, err := s.disk.metadata.GarbageCollect(context.WithoutCancel(ctx)); err != nil {
				klog.FromContext(ctx).Error(err, "Collect unused image content")
			}
			klog.FromContext(ctx).V(4).Info("Collected unused image content", "duration", time.Since(begin))
		}
		if usage, err := s.disk.measure(ctx); err == nil {
			s.usage.Store(usage)
		} else if ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Count disk usage of images")
		}
	}
}
