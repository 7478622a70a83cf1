package image

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
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
	ctx = s.context(ctx)
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
	if err := s.deleteRecords(ctx, names); err != nil {
		return fmt.Errorf("remove image %q: %w", refOrID, err)
	}
	s.table.drop(names)
	klog.FromContext(ctx).V(2).Info("Removed image names", "image", refOrID, "names", names)
	s.dropUnused(ctx)
	return nil
}

func (s *Store) deleteRecords(ctx context.Context, names []string) error {
	return s.transaction(ctx, func(ctx context.Context) error {
		for _, name := range names {
			if err := s.images.Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		return nil
	})
}

// dropUnused ends the leases of images that nobody refers to. The caller
// holds the change lock, so that none of them is being published. A lease
// that stays is dropped at the next start.
func (s *Store) dropUnused(ctx context.Context) {
	for _, id := range s.table.takeUnused() {
		if err := s.leases.Delete(ctx, leases.Lease{ID: leaseID(id)}); err != nil && !errdefs.IsNotFound(err) {
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
	ctx = s.context(ctx)
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

// discard removes an image that doesn't load, with all its names, so that
// nothing half stays and a pull makes it anew.
func (s *Store) discard(ctx context.Context, lease leases.Lease, cause error) error {
	id := lease.Labels[labelID]
	stored, err := s.images.List(ctx)
	if err != nil {
		return fmt.Errorf("list image records: %w", err)
	}
	var names []string
	for _, img := range stored {
		if img.Labels[labelID] == id {
			names = append(names, img.Name)
		}
	}
	if len(names) == 0 {
		klog.FromContext(ctx).V(2).Info("Dropped what a broken off pull left", "imageID", id, "reason", cause.Error())
	} else {
		klog.FromContext(ctx).Error(cause, "Image is damaged, it has to be pulled again", "imageID", id, "names", names)
	}
	if err := s.deleteRecords(ctx, names); err != nil {
		return fmt.Errorf("delete records of image %s: %w", id, err)
	}
	if err := s.leases.Delete(ctx, lease); err != nil {
		return fmt.Errorf("delete lease %s: %w", lease.ID, err)
	}
	// The config is what may have rotted: fetch it again, not reuse it.
	if checkDigest(digest.Digest(id)) == nil {
		return s.dropBlob(ctx, digest.Digest(id))
	}
	return nil
}

// dropBlob removes a damaged blob now, from the disk too: the database alone
// would find it there again when it is next asked for.
func (s *Store) dropBlob(ctx context.Context, d digest.Digest) error {
	for _, store := range []content.Store{s.content, s.blobs} {
		if err := store.Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("drop damaged %s: %w", d, err)
		}
	}
	return nil
}

// abortIngests drops blobs that came in part.
func (s *Store) abortIngests(ctx context.Context, prefix string) error {
	statuses, err := s.content.ListStatuses(ctx)
	if err != nil {
		return fmt.Errorf("list ingests: %w", err)
	}
	for _, status := range statuses {
		if !strings.HasPrefix(status.Ref, prefix) {
			continue
		}
		if err := s.content.Abort(ctx, status.Ref); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("abort ingest %s: %w", status.Ref, err)
		}
	}
	return nil
}
