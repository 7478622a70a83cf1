package image

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
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
	ctx = s.context(ctx)
	unlock, err := s.change(ctx)
	if err != nil {
		return fmt.Errorf("start image collector: %w", err)
	}
	defer unlock()
	if err := s.markDirty(ctx); err != nil {
		return fmt.Errorf("start image collector: %w", err)
	}
	s.gcAllowed.Store(true)
	s.dropUnused(ctx)
	return nil
}

// markDirty makes the next collection look for directories and blobs that no
// database knows, which it does only after a deletion: a crash between disk
// and database leaves such.
func (s *Store) markDirty(ctx context.Context) error {
	ctx, done, err := s.leased(ctx)
	if err != nil {
		return err
	}
	defer done()
	const key = "mark-dirty"
	if _, err := s.snapshot.Prepare(ctx, key, ""); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	if err := s.snapshot.Remove(ctx, key); err != nil {
		return err
	}
	blob := []byte(key)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	if err := content.WriteBlob(ctx, s.content, key, bytes.NewReader(blob), desc); err != nil {
		return err
	}
	return s.content.Delete(ctx, desc.Digest)
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
			if _, err := s.metadata.GarbageCollect(context.WithoutCancel(ctx)); err != nil {
				klog.FromContext(ctx).Error(err, "Collect unused image content")
			}
			klog.FromContext(ctx).V(4).Info("Collected unused image content", "duration", time.Since(begin))
		}
		if err := s.measure(ctx); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Count disk usage of images")
		}
	}
}

// measure adds up what the databases say; no file is looked at. A layer's own
// usage was counted when it was unpacked.
func (s *Store) measure(ctx context.Context) error {
	total := FsInfo{Mountpoint: s.root, At: time.Now()}
	var keys []string
	err := s.backend.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			keys = append(keys, info.Name)
		}
		return nil
	})
	// A new database has no snapshots yet, which is "not found".
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("list snapshots: %w", err)
	}
	for _, key := range keys {
		usage, err := s.backend.Usage(ctx, key)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("usage of snapshot %s: %w", key, err)
		}
		total.UsedBytes += uint64(usage.Size)
		total.InodesUsed += uint64(usage.Inodes)
	}
	err = s.content.Walk(ctx, func(info content.Info) error {
		total.UsedBytes += uint64(info.Size)
		total.InodesUsed++
		return nil
	})
	if err != nil {
		return fmt.Errorf("list content: %w", err)
	}
	s.usage.Store(&total)
	return nil
}
