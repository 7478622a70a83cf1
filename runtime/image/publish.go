package image

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// Labels of leases and image records. An image's lease says everything that
// is not in its config, so that a removed image whose manifest is collected
// can still be loaded for the containers that hold it.
const (
	labelPull     = "podwright.io/pull"
	labelID       = "podwright.io/image-id"
	labelManifest = "podwright.io/manifest"
	labelSize     = "podwright.io/size-bytes"
)

func leaseID(imageID string) string { return "image-" + strings.TrimPrefix(imageID, idPrefix) }
func viewKey(imageID string) string { return "view-" + strings.TrimPrefix(imageID, idPrefix) }

// publish makes an unpacked image visible under names. ctx carries the pull's
// lease.
func (s *Store) publish(ctx context.Context, b *bundle, names []string) (Image, error) {
	unlock, err := s.change(ctx)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	if err := s.linkContent(ctx, b); err != nil {
		return Image{}, fmt.Errorf("link content: %w", err)
	}
	id := b.configDesc.Digest.String()
	e := &entry{
		id: id, manifest: b.manifest.Digest, sizeBytes: b.sizeBytes(),
		config: b.config.Config, createdAt: b.config.createdAt(),
	}
	if known := s.table.entry(id); known != nil {
		e.layers = known.layers
	} else if e.layers, err = s.keep(ctx, e, b.chainID()); err != nil {
		return Image{}, fmt.Errorf("keep image %s: %w", id, err)
	} else if err := s.label(ctx, b.configDesc.Digest, map[string]string{labelUnsynced: s.unsynced.bootID}); err != nil {
		return Image{}, fmt.Errorf("label image %s: %w", id, err)
	} else {
		s.unsynced.add(id)
	}
	records := make([]record, len(names))
	for i, name := range names {
		records[i] = record{name: name, id: id, target: b.target}
	}
	if err := s.writeRecords(ctx, records); err != nil {
		return Image{}, fmt.Errorf("record image %s: %w", id, err)
	}
	s.table.publish(e, records)
	s.collectSoon() // counts the disk usage anew; a moved tag may have freed something
	return s.Held(id)
}

// keep makes the image's lease and View and returns its layer directories.
// All of it may be there already, left by a start that was cut off.
func (s *Store) keep(ctx context.Context, e *entry, chainID string) ([]string, error) {
	lease := leases.Lease{ID: leaseID(e.id)}
	_, err := s.leases.Create(ctx, func(l *leases.Lease) error {
		l.ID = lease.ID
		l.Labels = map[string]string{
			labelID: e.id, labelManifest: e.manifest.String(), labelSize: strconv.FormatInt(e.sizeBytes, 10),
		}
		return nil
	})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("create lease: %w", err)
	}
	if err := s.leases.AddResource(ctx, lease, leases.Resource{ID: e.id, Type: "content"}); err != nil {
		return nil, fmt.Errorf("lease config: %w", err)
	}
	if chainID == "." || chainID == "" {
		chainID = "" // an image without layers is an empty directory
	}
	_, err = s.snapshot.View(leases.WithLease(ctx, lease.ID), viewKey(e.id), chainID)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("create view: %w", err)
	}
	return s.viewLayers(ctx, e.id)
}

func (s *Store) viewLayers(ctx context.Context, id string) ([]string, error) {
	mounts, err := s.snapshot.Mounts(ctx, viewKey(id))
	if err != nil {
		return nil, fmt.Errorf("mounts of view: %w", err)
	}
	return lowerDirs(mounts)
}

// lowerDirs reads the layer directories out of a View's mount, topmost first.
func lowerDirs(mounts []mount.Mount) ([]string, error) {
	if len(mounts) != 1 {
		return nil, fmt.Errorf("view has %d mounts, not 1", len(mounts))
	}
	if mounts[0].Type == "bind" {
		return []string{mounts[0].Source}, nil
	}
	for _, option := range mounts[0].Options {
		if dirs, found := strings.CutPrefix(option, "lowerdir="); found {
			return strings.Split(dirs, ":"), nil
		}
	}
	return nil, fmt.Errorf("view of type %q has no lower directories", mounts[0].Type)
}

// linkContent tells the collector what refers to what. The config refers to
// the unpacked layers; the unpacker has said so. Not in one transaction: the
// content store takes a lock of its own before the database's, and the
// collector waits for that lock.
func (s *Store) linkContent(ctx context.Context, b *bundle) error {
	above := append(b.indexes[:len(b.indexes):len(b.indexes)], b.manifest)
	for i, index := range b.indexes {
		if err := s.label(ctx, index.Digest, map[string]string{
			"containerd.io/gc.ref.content.m.0": above[i+1].Digest.String(),
		}); err != nil {
			return err
		}
	}
	refs := map[string]string{"containerd.io/gc.ref.content.config": b.configDesc.Digest.String()}
	for i, layer := range b.layers {
		refs["containerd.io/gc.ref.content.l."+strconv.Itoa(i)] = layer.Digest.String()
	}
	return s.label(ctx, b.manifest.Digest, refs)
}

func (s *Store) label(ctx context.Context, d digest.Digest, labels map[string]string) error {
	var fields []string
	for key := range labels {
		fields = append(fields, "labels."+key)
	}
	_, err := s.content.Update(ctx, content.Info{Digest: d, Labels: labels}, fields...)
	return err
}

func (s *Store) writeRecords(ctx context.Context, records []record) error {
	return s.transaction(ctx, func(ctx context.Context) error {
		for _, r := range records {
			img := images.Image{Name: r.name, Target: r.target, Labels: map[string]string{labelID: r.id}}
			_, err := s.images.Create(ctx, img)
			if errdefs.IsAlreadyExists(err) {
				_, err = s.images.Update(ctx, img)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// transaction runs f in one database transaction: all of it counts or none.
func (s *Store) transaction(ctx context.Context, f func(context.Context) error) error {
	return s.metadata.Update(func(tx *bolt.Tx) error { return f(boltutil.WithTransaction(ctx, tx)) })
}

// load reads at start what is on disk: leases first, each an image; then the
// names. What doesn't load is absent, and said so once: the kubelet pulls it
// again. Leases of pulls belong to a process that is gone.
func (s *Store) load(ctx context.Context) error {
	found, err := s.leases.List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	var entries []*entry
	lost := false
	for _, lease := range found {
		if lease.Labels[labelID] == "" {
			if err := s.leases.Delete(ctx, lease); err != nil {
				return fmt.Errorf("delete lease %s: %w", lease.ID, err)
			}
			continue
		}
		e, err := s.loadEntry(ctx, lease)
		if err != nil {
			if err := s.discard(ctx, lease, err); err != nil {
				return err
			}
			lost = true
			continue
		}
		entries = append(entries, e)
	}
	if lost {
		// Now, not later: a pull would find the lost image's layers unpacked.
		// Leases keep all others, whoever holds them.
		if _, err := s.metadata.GarbageCollect(ctx); err != nil {
			return fmt.Errorf("collect damaged images: %w", err)
		}
	}
	stored, err := s.images.List(ctx)
	if err != nil {
		return fmt.Errorf("list image records: %w", err)
	}
	records := make([]record, len(stored))
	for i, img := range stored {
		records[i] = record{name: img.Name, id: img.Labels[labelID], target: img.Target}
	}
	s.table.attach(entries, records)
	return s.measure(ctx)
}

func (s *Store) loadEntry(ctx context.Context, lease leases.Lease) (*entry, error) {
	id := lease.Labels[labelID]
	size, err := strconv.ParseInt(lease.Labels[labelSize], 10, 64)
	if err != nil {
		return nil, fmt.Errorf("label %s: %w", labelSize, err)
	}
	e := &entry{id: id, manifest: digest.Digest(lease.Labels[labelManifest]), sizeBytes: size}
	if err := errors.Join(checkDigest(e.manifest), checkDigest(digest.Digest(id))); err != nil {
		return nil, err
	}
	info, err := s.content.Info(ctx, digest.Digest(id))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	switch info.Labels[labelUnsynced] {
	case "":
	case s.unsynced.bootID:
		s.unsynced.add(id)
	default:
		return nil, errUnsynced
	}
	if info.Size > maxConfigBytes {
		return nil, fmt.Errorf("config of %d bytes", info.Size)
	}
	data, err := readVerified(ctx, s.content, ocispec.Descriptor{Digest: info.Digest, Size: info.Size})
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	config, err := parseConfig(data)
	if err != nil {
		return nil, err
	}
	e.config, e.createdAt = config.Config, config.createdAt()
	e.layers, err = s.viewLayers(ctx, id)
	return e, err
}
