package image

import (
	"context"
	"crypto/rand"
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
	"k8s.io/klog/v2"
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

// leased returns a context whose work is kept from the collector, and the way
// to end that; after is called then.
func (d *disk) leased(ctx context.Context, after func()) (context.Context, func(), error) {
	lease, err := d.leases.Create(ctx, leases.WithLabel(labelPull, "true"), func(l *leases.Lease) error {
		l.ID = "pull-" + rand.Text()
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("create lease: %w", err)
	}
	return leases.WithLease(ctx, lease.ID), func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if err := d.leases.Delete(ctx, lease); err != nil {
			// Harmless until the next start, which drops it.
			klog.FromContext(ctx).Error(err, "Delete lease of pull", "lease", lease.ID)
		}
		after()
	}, nil
}

// keep makes the image's lease and View and returns its layer directories.
// All of it may be there already, left by a start that was cut off.
func (d *disk) keep(ctx context.Context, e *entry, chainID string) ([]string, error) {
	lease := leases.Lease{ID: leaseID(e.id)}
	_, err := d.leases.Create(ctx, func(l *leases.Lease) error {
		l.ID = lease.ID
		l.Labels = map[string]string{
			labelID: e.id, labelManifest: e.manifest.String(), labelSize: strconv.FormatInt(e.sizeBytes, 10),
		}
		return nil
	})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("create lease: %w", err)
	}
	if err := d.leases.AddResource(ctx, lease, leases.Resource{ID: e.id, Type: "content"}); err != nil {
		return nil, fmt.Errorf("lease config: %w", err)
	}
	// An image without layers has no chain; its View is an empty directory.
	_, err = d.snapshot.View(leases.WithLease(ctx, lease.ID), viewKey(e.id), chainID)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("create view: %w", err)
	}
	return d.viewLayers(ctx, e.id)
}

func (d *disk) viewLayers(ctx context.Context, id string) ([]string, error) {
	mounts, err := d.snapshot.Mounts(ctx, viewKey(id))
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
func (d *disk) linkContent(ctx context.Context, b *bundle) error {
	above := append(b.indexes[:len(b.indexes):len(b.indexes)], b.manifest)
	for i, index := range b.indexes {
		if err := d.label(ctx, index.Digest, map[string]string{
			"containerd.io/gc.ref.content.m.0": above[i+1].Digest.String(),
		}); err != nil {
			return err
		}
	}
	refs := map[string]string{"containerd.io/gc.ref.content.config": b.configDesc.Digest.String()}
	for i, layer := range b.layers {
		refs["containerd.io/gc.ref.content.l."+strconv.Itoa(i)] = layer.Digest.String()
	}
	return d.label(ctx, b.manifest.Digest, refs)
}

func (d *disk) label(ctx context.Context, blob digest.Digest, labels map[string]string) error {
	var fields []string
	for key := range labels {
		fields = append(fields, "labels."+key)
	}
	_, err := d.content.Update(ctx, content.Info{Digest: blob, Labels: labels}, fields...)
	return err
}

func (d *disk) writeRecords(ctx context.Context, records []record) error {
	return d.transaction(ctx, func(ctx context.Context) error {
		for _, r := range records {
			img := images.Image{Name: r.name, Target: r.target, Labels: map[string]string{labelID: r.id}}
			_, err := d.images.Create(ctx, img)
			if errdefs.IsAlreadyExists(err) {
				_, err = d.images.Update(ctx, img)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// transaction runs f in one database transaction: all of it counts or none.
func (d *disk) transaction(ctx context.Context, f func(context.Context) error) error {
	return d.metadata.Update(func(tx *bolt.Tx) error { return f(boltutil.WithTransaction(ctx, tx)) })
}

func (d *disk) deleteRecords(ctx context.Context, names []string) error {
	return d.transaction(ctx, func(ctx context.Context) error {
		for _, name := range names {
			if err := d.images.Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		return nil
	})
}

// loadEntries reads the leases. Those of pulls belong to a process that is
// gone. lost says that an image had to be given up.
func (d *disk) loadEntries(ctx context.Context, pending *unsynced) (entries []*entry, lost bool, err error) {
	found, err := d.leases.List(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("list leases: %w", err)
	}
	for _, lease := range found {
		if lease.Labels[labelID] == "" {
			if err := d.leases.Delete(ctx, lease); err != nil {
				return nil, false, fmt.Errorf("delete lease %s: %w", lease.ID, err)
			}
			continue
		}
		e, err := d.loadEntry(ctx, lease, pending)
		if err != nil {
			if err := d.discard(ctx, lease, err); err != nil {
				return nil, false, err
			}
			lost = true
			continue
		}
		entries = append(entries, e)
	}
	return entries, lost, nil
}

// loadRecords reads the names of known images and drops all others.
func (d *disk) loadRecords(ctx context.Context, known map[string]bool) ([]record, error) {
	stored, err := d.images.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list image records: %w", err)
	}
	var records []record
	var dead []string
	for _, img := range stored {
		if id := img.Labels[labelID]; known[id] {
			records = append(records, record{name: img.Name, id: id, target: img.Target})
		} else {
			dead = append(dead, img.Name)
		}
	}
	if len(dead) == 0 {
		return records, nil
	}
	klog.FromContext(ctx).Info("Images have to be pulled again", "names", dead)
	if err := d.deleteRecords(ctx, dead); err != nil {
		return nil, fmt.Errorf("delete image records: %w", err)
	}
	return records, nil
}

func (d *disk) loadEntry(ctx context.Context, lease leases.Lease, pending *unsynced) (*entry, error) {
	id := lease.Labels[labelID]
	size, err := strconv.ParseInt(lease.Labels[labelSize], 10, 64)
	if err != nil {
		return nil, fmt.Errorf("label %s: %w", labelSize, err)
	}
	e := &entry{id: id, manifest: digest.Digest(lease.Labels[labelManifest]), sizeBytes: size}
	if err := errors.Join(checkDigest(e.manifest), checkDigest(digest.Digest(id))); err != nil {
		return nil, err
	}
	info, err := d.content.Info(ctx, digest.Digest(id))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if err := pending.trust(id, info.Labels[labelUnsynced]); err != nil {
		return nil, err
	}
	if info.Size > maxConfigBytes {
		return nil, fmt.Errorf("config of %d bytes", info.Size)
	}
	data, err := readVerified(ctx, d.content, ocispec.Descriptor{Digest: info.Digest, Size: info.Size})
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	config, err := parseConfig(data)
	if err != nil {
		return nil, err
	}
	e.config, e.createdAt = config.Config, config.createdAt()
	e.layers, err = d.viewLayers(ctx, id)
	return e, err
}

// discard gives up an image that doesn't load, so that a pull makes it anew.
func (d *disk) discard(ctx context.Context, lease leases.Lease, cause error) error {
	id := lease.Labels[labelID]
	klog.FromContext(ctx).Info("Dropped an image that is damaged or not finished", "imageID", id, "reason", cause.Error())
	if err := d.leases.Delete(ctx, lease); err != nil {
		return fmt.Errorf("delete lease %s: %w", lease.ID, err)
	}
	// The config is what may have rotted: fetch it again, not reuse it.
	if checkDigest(digest.Digest(id)) == nil {
		return d.dropBlob(ctx, digest.Digest(id))
	}
	return nil
}

// dropBlob removes a damaged blob now, from the disk too: the database alone
// would find it there again when it is next asked for.
func (d *disk) dropBlob(ctx context.Context, blob digest.Digest) error {
	for _, store := range []content.Store{d.content, d.blobs} {
		if err := store.Delete(ctx, blob); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("drop damaged %s: %w", blob, err)
		}
	}
	return nil
}

// abortIngests drops blobs that came in part.
func (d *disk) abortIngests(ctx context.Context, prefix string) error {
	statuses, err := d.content.ListStatuses(ctx)
	if err != nil {
		return fmt.Errorf("list ingests: %w", err)
	}
	for _, status := range statuses {
		if !strings.HasPrefix(status.Ref, prefix) {
			continue
		}
		if err := d.content.Abort(ctx, status.Ref); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("abort ingest %s: %w", status.Ref, err)
		}
	}
	return nil
}
