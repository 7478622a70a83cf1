package image

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// snapshotterName is fixed by the unpacker: under this name it turns the
// mounts of parallel layers into overlay ones.
const snapshotterName = "overlayfs"

// unpacking fetches and unpacks the layers of one image with containerd's
// unpacker, whose applier and snapshotter it is: layers are applied straight
// to their directories, no mount is made, so none can leak. The applier runs
// in processes of its own.
type unpacking struct {
	snapshots.Snapshotter
	content content.Store
	monitor *monitor
	locks   *keyLocks
	slots   *semaphore.Weighted // how many layers are unpacked at once, over all pulls
	blob    func(digest.Digest) string
	*unpackers
	diffIDs map[digest.Digest]digest.Digest
	fetched atomic.Int64 // layers

	// mu guards implied.
	mu      sync.Mutex
	implied map[string][]string // layer directory to the parents its tar doesn't list
}

// run returns once all layers of b are in the content store and unpacked.
func (u *unpacking) run(ctx context.Context, b *bundle, fetcher remotes.Fetcher, downloads int) error {
	if len(b.layers) == 0 {
		return nil
	}
	u.monitor.enter("downloading")
	u.monitor.layersTotal.Store(int64(len(b.layers)))
	u.diffIDs = map[digest.Digest]digest.Digest{}
	for i, layer := range b.layers {
		u.diffIDs[layer.Digest] = b.config.RootFS.DiffIDs[i]
		u.monitor.bytesTotal.Add(layer.Size)
	}
	unpacker, err := unpack.NewUnpacker(ctx, u.content,
		// The platform was chosen before; this one must not skip anything.
		unpack.WithUnpackPlatform(unpack.Platform{
			Platform: platforms.All, SnapshotterKey: snapshotterName, Snapshotter: u,
			SnapshotterCapabilities: []string{snapshots.RebaseCap}, Applier: u,
		}),
		unpack.WithLimiter(semaphore.NewWeighted(int64(downloads))),
		// A layer holds this limit while it waits for its download, so that a
		// limit over all pulls would let one dead registry stop the others.
		unpack.WithUnpackLimiter(semaphore.NewWeighted(maxLayers)),
		unpack.WithDuplicationSuppressor(u.locks),
		// An image's blobs are complete, also where a layer was unpacked
		// before for an image that packs it differently.
		unpack.WithFetchAllContent(),
	)
	if err != nil {
		return err
	}
	handler := unpacker.Unpack(images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		switch {
		case images.IsManifestType(desc.MediaType):
			return append([]ocispec.Descriptor{b.configDesc}, b.layers...), nil
		case images.IsConfigType(desc.MediaType):
			return nil, nil
		}
		return nil, u.fetchLayer(ctx, fetcher, desc)
	}))
	for _, desc := range []ocispec.Descriptor{b.manifest, b.configDesc} {
		if _, err = handler.Handle(ctx, desc); err != nil {
			break
		}
	}
	if _, waitErr := unpacker.Wait(); waitErr != nil {
		err = waitErr
	}
	if err == nil {
		u.monitor.layersDone.Store(int64(len(b.layers)))
	}
	return err
}

func (u *unpacking) fetchLayer(ctx context.Context, fetcher remotes.Fetcher, desc ocispec.Descriptor) error {
	counting := &layerFetcher{Fetcher: fetcher, monitor: u.monitor}
	if err := fetch(ctx, u.content, counting, u.locks, desc); err != nil {
		u.monitor.bytesDone.Add(-counting.counted.Load())
		return fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	u.monitor.bytesDone.Add(desc.Size - counting.counted.Load())
	if u.fetched.Add(1) == u.monitor.layersTotal.Load() {
		u.monitor.enter("unpacking")
	}
	return nil
}

// chainID names the snapshot of the whole stack.
func (b *bundle) chainID() string {
	return identity.ChainID(b.config.RootFS.DiffIDs).String()
}

// Apply unpacks one layer into the directory of its snapshot and returns the
// digest of its tar.
func (u *unpacking) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	if err := u.slots.Acquire(ctx, 1); err != nil {
		return none, err
	}
	defer u.slots.Release(1)
	dir, stacked, err := layerDir(mounts)
	if err != nil {
		return none, err
	}
	result, err := u.unpackers.unpack(ctx, layerJob{Blob: u.blob(desc.Digest), Dir: dir, Stacked: stacked})
	if err != nil {
		return none, err
	}
	if got, want := result.Digest, u.diffIDs[desc.Digest]; got != want {
		return none, fmt.Errorf("%w: layer %s unpacks to %s, the config says %s", ErrDigestMismatch, desc.Digest, got, want)
	}
	if stacked {
		u.mu.Lock()
		u.implied[dir] = result.Implied
		u.mu.Unlock()
	}
	u.monitor.layersDone.Add(1)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: result.Digest, Size: result.Size}, nil
}

// layerDir finds the directory to unpack into. The lowest layer comes as a
// bind mount, the others as overlay mounts (see unpack.bindToOverlay).
func layerDir(mounts []mount.Mount) (dir string, stacked bool, err error) {
	if len(mounts) != 1 {
		return "", false, fmt.Errorf("snapshot has %d mounts, not 1", len(mounts))
	}
	if mounts[0].Type == "bind" {
		return mounts[0].Source, false, nil
	}
	for _, option := range mounts[0].Options {
		if upper, found := strings.CutPrefix(option, "upperdir="); found {
			return upper, true, nil
		}
	}
	return "", false, fmt.Errorf("snapshot of type %q has no upper directory", mounts[0].Type)
}

// Commit gives directories that the layer's tar uses without listing them the
// owner and mode they have in the layers below, which are committed by now:
// layers are unpacked in parallel, so Apply could not look there, and left as
// they are such a /tmp would lose its sticky bit.
func (u *unpacking) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return err
		}
	}
	if info.Parent != "" {
		if err := u.settle(ctx, key, info.Parent); err != nil {
			return fmt.Errorf("settle directories: %w", err)
		}
	}
	return u.Snapshotter.Commit(ctx, name, key, opts...)
}

func (u *unpacking) settle(ctx context.Context, key, parent string) error {
	mounts, err := u.Mounts(ctx, key)
	if err != nil {
		return err
	}
	dir, _, err := layerDir(mounts)
	if err != nil {
		return err
	}
	u.mu.Lock()
	implied := u.implied[dir]
	delete(u.implied, dir)
	u.mu.Unlock()
	if len(implied) == 0 {
		return nil
	}
	var lowers []string
	for parent != "" {
		info, err := u.Stat(ctx, parent)
		if err != nil {
			return err
		}
		lowers = append(lowers, info.Labels[upperdirLabel])
		parent = info.Parent
	}
	return inheritDirs(dir, implied, lowers)
}
