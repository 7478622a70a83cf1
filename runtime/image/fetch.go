package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// An index may name another one; nobody nests deeper.
	maxIndexDepth = 3
	// Entries without a platform are tried by looking at their configs.
	maxUnlabelled = 8
)

// bundle is one image, followed from what a reference resolved to down to the
// layers of one platform, every document verified.
type bundle struct {
	target     ocispec.Descriptor   // what the reference means
	indexes    []ocispec.Descriptor // on the way from target to manifest
	manifest   ocispec.Descriptor
	configDesc ocispec.Descriptor
	layers     []ocispec.Descriptor
	config     imageConfig
}

// sizeBytes is what a registry transfers for the image; a layer that is there
// twice is transferred once.
func (b *bundle) sizeBytes() int64 {
	total := b.manifest.Size + b.configDesc.Size
	seen := map[digest.Digest]bool{}
	for _, layer := range b.layers {
		if !seen[layer.Digest] {
			seen[layer.Digest] = true
			total += layer.Size
		}
	}
	return total
}

// descent fetches documents into the content store and reads them there. ctx
// of its methods carries the lease that keeps them.
type descent struct {
	content  content.Store
	fetcher  remotes.Fetcher
	locks    *keyLocks
	platform platforms.MatchComparer
	wanted   string // the platform, for messages
	drop     func(context.Context, digest.Digest) error
}

// follow goes from a resolved descriptor to the image of this platform.
func (d *descent) follow(ctx context.Context, target ocispec.Descriptor) (*bundle, error) {
	b, err := d.descend(ctx, target, nil)
	if err != nil {
		return nil, err
	}
	b.target = target
	return b, nil
}

func (d *descent) descend(ctx context.Context, desc ocispec.Descriptor, above []ocispec.Descriptor) (*bundle, error) {
	switch {
	case images.IsManifestType(desc.MediaType):
		return d.readImage(ctx, desc, above)
	case !images.IsIndexType(desc.MediaType):
		return nil, fmt.Errorf("%w: media type %.80q is neither a manifest nor an index", ErrInvalidImage, desc.MediaType)
	case len(above) == maxIndexDepth:
		return nil, fmt.Errorf("%w: indexes nested more than %d deep", ErrInvalidImage, maxIndexDepth)
	}
	data, err := d.read(ctx, desc, maxManifestBytes)
	if err != nil {
		return nil, err
	}
	entries, err := parseIndex(data, desc.MediaType)
	if err != nil {
		return nil, err
	}
	above = append(slices.Clone(above), desc)
	labelled, unlabelled := d.candidates(entries)
	if len(labelled) > 0 {
		return d.descend(ctx, labelled[0], above)
	}
	for _, entry := range unlabelled[:min(len(unlabelled), maxUnlabelled)] {
		b, err := d.descend(ctx, entry, above)
		if !errors.Is(err, ErrNoPlatform) {
			return b, err
		}
	}
	return nil, fmt.Errorf("%w: the index has none for %s", ErrNoPlatform, d.wanted)
}

// candidates returns the index entries for this platform, best first, and
// those that don't say what they are for.
func (d *descent) candidates(entries []ocispec.Descriptor) (labelled, unlabelled []ocispec.Descriptor) {
	for _, entry := range entries {
		switch {
		case entry.Platform == nil:
			unlabelled = append(unlabelled, entry)
		case d.platform.Match(platforms.Normalize(*entry.Platform)):
			labelled = append(labelled, entry)
		}
	}
	slices.SortStableFunc(labelled, func(a, b ocispec.Descriptor) int {
		switch {
		case d.platform.Less(*a.Platform, *b.Platform):
			return -1
		case d.platform.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	return labelled, unlabelled
}

func (d *descent) readImage(ctx context.Context, desc ocispec.Descriptor, above []ocispec.Descriptor) (*bundle, error) {
	b := &bundle{indexes: above, manifest: desc}
	b.manifest.Platform = nil
	data, err := d.read(ctx, desc, maxManifestBytes)
	if err != nil {
		return nil, err
	}
	if b.configDesc, b.layers, err = parseManifest(data, desc.MediaType); err != nil {
		return nil, err
	}
	if data, err = d.read(ctx, b.configDesc, maxConfigBytes); err != nil {
		return nil, err
	}
	if b.config, err = parseConfig(data); err != nil {
		return nil, err
	}
	if got, want := len(b.layers), len(b.config.RootFS.DiffIDs); got != want {
		return nil, fmt.Errorf("%w: manifest has %d layers, config has %d", ErrInvalidImage, got, want)
	}
	// Builders that leave the platform out of the config mean any.
	p := b.config.Platform
	if p.OS != "" && p.Architecture != "" && !d.platform.Match(platforms.Normalize(p)) {
		return nil, fmt.Errorf("%w: the image is for %.80s, this node is %s", ErrNoPlatform, platforms.Format(p), d.wanted)
	}
	return b, nil
}

// read returns a document, fetched if it is not there yet. What is there
// already is verified too; if it has rotted on disk it is fetched again.
func (d *descent) read(ctx context.Context, desc ocispec.Descriptor, maxBytes int64) ([]byte, error) {
	if desc.Size <= 0 || desc.Size > maxBytes {
		return nil, fmt.Errorf("%w: %s of %d bytes, 1 to %d", ErrInvalidImage, desc.MediaType, desc.Size, maxBytes)
	}
	for attempt := 0; ; attempt++ {
		if err := fetch(ctx, d.content, d.fetcher, d.locks, desc); err != nil {
			return nil, fmt.Errorf("fetch %s: %w", desc.Digest, err)
		}
		data, err := readVerified(ctx, d.content, desc)
		if err == nil || attempt > 0 {
			return data, err
		}
		if err := d.drop(ctx, desc.Digest); err != nil {
			return nil, err
		}
	}
}

func readVerified(ctx context.Context, store content.Provider, desc ocispec.Descriptor) ([]byte, error) {
	reader, err := store.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	if reader.Size() != desc.Size {
		return nil, fmt.Errorf("%w: %s has %d bytes, not %d", ErrDigestMismatch, desc.Digest, reader.Size(), desc.Size)
	}
	data := make([]byte, desc.Size)
	if _, err := io.ReadFull(io.NewSectionReader(reader, 0, desc.Size), data); err != nil {
		return nil, fmt.Errorf("read %s: %w", desc.Digest, err)
	}
	if got := digest.FromBytes(data); got != desc.Digest {
		return nil, fmt.Errorf("%w: %s reads as %s", ErrDigestMismatch, desc.Digest, got)
	}
	return data, nil
}

// fetch brings one blob into the content store, which checks its digest. What
// came of it when it fails is dropped: the store would take it for the
// beginning next time, and a beginning that is wrong can't become right.
func fetch(ctx context.Context, store content.Store, fetcher remotes.Fetcher, locks *keyLocks, desc ocispec.Descriptor) error {
	key := "fetch " + desc.Digest.String()
	if err := locks.Lock(ctx, key); err != nil {
		return err
	}
	defer locks.Unlock(key)
	err := remotes.Fetch(ctx, store, fetcher, desc)
	if err == nil || errdefs.IsAlreadyExists(err) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if abortErr := store.Abort(ctx, remotes.MakeRefKey(ctx, desc)); abortErr != nil && !errdefs.IsNotFound(abortErr) {
		return errors.Join(err, abortErr)
	}
	return err
}

// layerFetcher fetches one layer: it bounds its requests by the layer's size,
// and counts what has come.
type layerFetcher struct {
	remotes.Fetcher
	monitor *monitor
	counted atomic.Int64
}

func (f *layerFetcher) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	// A server may pack what is packed already; that adds little.
	limit := desc.Size + desc.Size/64 + 1<<20
	body, err := f.Fetcher.Fetch(context.WithValue(ctx, bodyLimit{}, limit), desc)
	if err != nil {
		return nil, err
	}
	return &countedBody{ReadCloser: body, fetcher: f}, nil
}

type countedBody struct {
	io.ReadCloser
	fetcher *layerFetcher
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.fetcher.counted.Add(int64(n))
	b.fetcher.monitor.bytesDone.Add(int64(n))
	return n, err
}

// Seek is how the content store goes on after a cut connection.
func (b *countedBody) Seek(offset int64, whence int) (int64, error) {
	seeker, ok := b.ReadCloser.(io.Seeker)
	if !ok || whence != io.SeekStart {
		return 0, errors.ErrUnsupported
	}
	at, err := seeker.Seek(offset, whence)
	if err == nil {
		b.fetcher.monitor.bytesDone.Add(at - b.fetcher.counted.Swap(at))
	}
	return at, err
}

// absent is the fetcher where nothing can be fetched: an archive must carry
// everything.
type absent struct{}

func (absent) Fetch(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return nil, fmt.Errorf("%w: the archive lacks %s", ErrInvalidImage, desc.Digest)
}
