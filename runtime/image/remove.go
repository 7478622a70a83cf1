package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"
)

// Remove takes names from an image: by id all of them, by tag that one, by
// digest all of that repository for that content; and all that are left where
// no tag would be. An image without names is gone from Get and List at once.
// Its layers go when no container holds it, its disk space when the collector
// comes round (B46: pinned or not; B47). What is absent is removed already,
// which is success (B1); a text that is neither reference nor id, or an id
// prefix of several images, is an error.
func (s *Store) Remove(ctx context.Context, refOrID string) error {
	ctx = libraryContext(ctx)
	unlock, err := s.change(ctx)
	if err != nil {
		return fmt.Errorf("remove image %q: %w", refOrID, err)
	}
	defer unlock()
	names, err := s.table.doomed(refOrID)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove image: %w", err)
	}
	if err := s.disk.deleteRecords(ctx, names); err != nil {
		return fmt.Errorf("remove image %q: %w", refOrID, err)
	}
	s.table.drop(names)
	klog.FromContext(ctx).V(2).Info("Removed image names", "image", refOrID, "names", names)
	s.dropUnused(ctx)
	return nil
}

// dropUnused ends the leases of images that nobody refers to. The caller
// holds the change lock, so that none of them is being published. A lease
// that stays is dropped at the next start.
func (s *Store) dropUnused(ctx context.Context) {
	for _, id := range s.table.takeUnused() {
		if err := s.disk.leases.Delete(ctx, leases.Lease{ID: leaseID(id)}); err != nil && !errdefs.IsNotFound(err) {
			klog.FromContext(ctx).Error(err, "Delete lease of image", "imageID", id)
		}
	}
	s.collectSoon()
}

// Layers returns the overlay lower directories of an image, topmost first,
// absolute. They stay as long as the image has a name or a holder; it reads
// memory only.
func (s *Store) Layers(_ context.Context, imageID string) ([]string, error) {
	e := s.table.entry(imageID)
	if e == nil {
		return nil, fmt.Errorf("layers: %w: %s", ErrNotFound, imageID)
	}
	return append([]string(nil), e.layers...), nil
}

// Hold says that a container uses an image, given by its whole id; until
// Release its layers stay. Holders live in memory: whoever keeps records of
// containers holds again at start, before StartGC. A holder has one image;
// holding it again is no change.
func (s *Store) Hold(imageID, holder string) error {
	return s.table.hold(imageID, holder)
}

// Release ends a Hold. That of an unknown holder is no error.
func (s *Store) Release(ctx context.Context, holder string) error {
	ctx = libraryContext(ctx)
	s.table.release(holder)
	unlock, err := s.change(ctx)
	if err != nil {
		// Released it is; what is unused goes with the next change.
		return nil
	}
	defer unlock()
	s.dropUnused(ctx)
	return nil
}
