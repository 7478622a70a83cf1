package image

import (
	"context"
	"fmt"
)

// publish makes an unpacked image visible under names. ctx carries the pull's
// lease.
func (s *Store) publish(ctx context.Context, b *bundle, names []string) (Image, error) {
	unlock, err := s.change(ctx)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	if err := s.disk.linkContent(ctx, b); err != nil {
		return Image{}, fmt.Errorf("link content: %w", err)
	}
	id := b.configDesc.Digest.String()
	e := &entry{
		id: id, manifest: b.manifest.Digest, sizeBytes: b.sizeBytes(),
		config: b.config.Config, createdAt: b.config.createdAt(),
	}
	if known := s.table.entry(id); known != nil {
		e.layers = known.layers
	} else {
		// First: a lease without this label means layers that are on disk.
		if err := s.disk.label(ctx, b.configDesc.Digest, map[string]string{labelUnsynced: s.unsynced.bootID}); err != nil {
			return Image{}, fmt.Errorf("label image %s: %w", id, err)
		}
		if e.layers, err = s.disk.keep(ctx, e, b.chainID()); err != nil {
			return Image{}, fmt.Errorf("keep image %s: %w", id, err)
		}
		s.unsynced.add(id)
	}
	records := make([]record, len(names))
	for i, name := range names {
		records[i] = record{name: name, id: id, target: b.target}
	}
	if err := s.disk.writeRecords(ctx, records); err != nil {
		return Image{}, fmt.Errorf("record image %s: %w", id, err)
	}
	s.table.publish(e, records)
	s.collectSoon() // counts the disk usage anew; a moved tag may have freed something
	return s.Held(id)
}

// load reads at start what is on disk: leases first, each an image; then the
// names. What doesn't load is absent, and said so once: the kubelet pulls it
// again.
func (s *Store) load(ctx context.Context) error {
	entries, lost, err := s.disk.loadEntries(ctx, s.unsynced)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, e := range entries {
		known[e.id] = true
	}
	records, err := s.disk.loadRecords(ctx, known)
	if err != nil {
		return err
	}
	if lost {
		// Now, not later: a pull would find the lost image's layers unpacked.
		// Leases keep all others, whoever holds them.
		if _, err := s.disk.metadata.GarbageCollect(ctx); err != nil {
			return fmt.Errorf("collect damaged images: %w", err)
		}
	}
	s.table.attach(entries, records)
	usage, err := s.disk.measure(ctx)
	if err != nil {
		return err
	}
	s.usage.Store(usage)
	return nil
}
