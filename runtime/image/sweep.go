package image

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// markDirty makes the next collection look for directories and blobs that no
// database knows, which it does only after a deletion: a crash between disk
// and database leaves such.
func (d *disk) markDirty(ctx context.Context) error {
	ctx, done, err := d.leased(ctx, func() {})
	if err != nil {
		return err
	}
	defer done()
	const key = "mark-dirty"
	if _, err := d.snapshot.Prepare(ctx, key, ""); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	if err := d.snapshot.Remove(ctx, key); err != nil {
		return err
	}
	blob := []byte(key)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	if err := content.WriteBlob(ctx, d.content, key, bytes.NewReader(blob), desc); err != nil {
		return err
	}
	return d.content.Delete(ctx, desc.Digest)
}

// measure adds up what the databases say; no file is looked at. A layer's own
// usage was counted when it was unpacked.
func (d *disk) measure(ctx context.Context) (*FsInfo, error) {
	total := FsInfo{Mountpoint: d.root, At: time.Now()}
	var keys []string
	err := d.backend.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			keys = append(keys, info.Name)
		}
		return nil
	})
	// A new database has no snapshots yet, which is "not found".
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	for _, key := range keys {
		usage, err := d.backend.Usage(ctx, key)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("usage of snapshot %s: %w", key, err)
		}
		total.UsedBytes += uint64(usage.Size)
		total.InodesUsed += uint64(usage.Inodes)
	}
	err = d.content.Walk(ctx, func(info content.Info) error {
		total.UsedBytes += uint64(info.Size)
		total.InodesUsed++
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list content: %w", err)
	}
	return &total, nil
}
func (d *disk) syncDisk() error {
	root, err := os.Open(d.root)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", d.root, err)
	}
	return nil
}
