package image

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"k8s.io/klog/v2"
)

// How long the tidying after a pull may take, whatever became of its caller.
const cleanupTimeout = 30 * time.Second

// PullOptions is what a pull may be given.
type PullOptions struct {
	Auth *Auth
	// Progress is called a few times a second while Pull waits. It must return
	// quickly: it holds up the reports of others that wait for the same pull.
	Progress func(Progress)
}

// Pull makes the image of a reference visible and returns it:
//
//	resolve → manifest and config, verified → layers in parallel, each
//	unpacked as it comes → View and lease → record, last
//
// It always asks the registry what the reference means now. Pulls of one
// reference with the same credentials are one pull, which goes on as long as
// one of its callers waits (B44).
func (s *Store) Pull(ctx context.Context, ref string, options PullOptions) (Image, error) {
	parsed, err := ParseReference(ref)
	if err != nil {
		return Image{}, fmt.Errorf("pull image: %w", err)
	}
	creds, err := parseAuth(options.Auth)
	if err != nil {
		return Image{}, fmt.Errorf("pull image %q: %w", parsed, err)
	}
	// With other credentials the registry may answer otherwise.
	key := fmt.Sprintf("%s %x", parsed, sha256.Sum256(fmt.Appendf(nil, "%q", creds.fields())))
	return s.flights.do(ctx, key, parsed.String(), options.Progress, func(ctx context.Context, m *monitor) (Image, error) {
		return s.pull(libraryContext(ctx), parsed, creds, m)
	})
}

func (c credentials) fields() []string { return []string{c.username, c.secret, c.token, c.server} }

func (s *Store) pull(ctx context.Context, ref Reference, creds credentials, m *monitor) (Image, error) {
	begin := time.Now()
	registry := connect(ctx, ref, s.certsDirs, creds, m)
	defer registry.close()
	name, target, err := registry.resolver.Resolve(ctx, ref.String())
	if err != nil {
		return Image{}, fmt.Errorf("resolve: %w", err)
	}
	if err := checkTarget(ref, target); err != nil {
		return Image{}, err
	}
	fetcher, err := registry.resolver.Fetcher(ctx, name)
	if err != nil {
		return Image{}, err
	}
	ctx, done, err := s.disk.leased(ctx, s.collectSoon)
	if err != nil {
		return Image{}, err
	}
	defer done()
	b, err := s.descent(fetcher).follow(ctx, target)
	if err != nil {
		return Image{}, err
	}
	img, err := s.complete(ctx, b, fetcher, m, pullNames(ref, target))
	if err != nil {
		return Image{}, err
	}
	klog.FromContext(ctx).V(2).Info("Pulled image", "image", ref.String(), "imageID", img.ID,
		"digest", target.Digest, "sizeBytes", img.SizeBytes, "duration", time.Since(begin))
	return img, nil
}

// checkTarget looks at what the registry's headers claim.
func checkTarget(ref Reference, target ocispec.Descriptor) error {
	if err := checkDigest(target.Digest); err != nil {
		return fmt.Errorf("%w: the registry's answer: %w", ErrInvalidImage, err)
	}
	if ref.Digest != "" && target.Digest != ref.Digest {
		return fmt.Errorf("%w: asked for %s, the registry answers with %s", ErrDigestMismatch, ref.Digest, target.Digest)
	}
	if target.MediaType == images.MediaTypeDockerSchema1Manifest {
		return fmt.Errorf("%w: schema 1 manifests are not supported", ErrInvalidImage)
	}
	return nil
}

// pullNames are the names that a pull leaves. The digest's keeps the image
// when its tag moves on: whoever pulled it still has to find it by id.
func pullNames(ref Reference, target ocispec.Descriptor) []string {
	byDigest := Reference{Name: ref.Name, Digest: target.Digest}
	if ref.Tag == "" {
		return []string{byDigest.String()}
	}
	return []string{ref.String(), byDigest.String()}
}

func (s *Store) descent(fetcher remotes.Fetcher) *descent {
	return &descent{content: s.disk.content, fetcher: fetcher, locks: s.locks, platform: s.platform, wanted: s.wanted, drop: s.disk.dropBlob}
}

// complete fetches and unpacks the layers and makes the image visible.
func (s *Store) complete(ctx context.Context, b *bundle, fetcher remotes.Fetcher, m *monitor, names []string) (Image, error) {
	u := &unpacking{
		Snapshotter: s.disk.snapshot, content: s.disk.content, monitor: m, locks: s.locks, slots: s.slots,
		implied: map[string][]string{}, blob: s.disk.blobPath, unpackers: &unpackers{command: s.unpacker, lock: s.disk.unpacking},
	}
	if err := u.run(ctx, b, fetcher, s.downloads); err != nil {
		return Image{}, err
	}
	return s.publish(ctx, b, names)
}
