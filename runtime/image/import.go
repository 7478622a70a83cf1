package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"k8s.io/klog/v2"
)

// ImportOptions is what an import may be given.
type ImportOptions struct {
	// Reference names the image instead of the archive's own names; the
	// archive must then hold one image.
	Reference string
	Progress  func(Progress)
}

// Import reads an archive, of docker save or an OCI layout as tar, and makes
// the images of this platform in it visible. An image without a name is known
// by its id. Images before the first one that fails stay. r is not read after
// Import has returned; a read that blocks is r's own to end.
func (s *Store) Import(ctx context.Context, r io.Reader, options ImportOptions) ([]Image, error) {
	select {
	case s.imports <- struct{}{}:
		defer func() { <-s.imports }()
	case <-ctx.Done():
		return nil, fmt.Errorf("import images: %w", ctx.Err())
	}
	var imported []Image
	err := s.flights.alone(ctx, Archive, options.Progress, func(ctx context.Context, m *monitor) error {
		m.enter("importing")
		var err error
		imported, err = s.importArchive(libraryContext(ctx), untilDone(ctx, r), options.Reference, m)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	return imported, nil
}

// readFunc is an io.Reader.
type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// untilDone ends the reading of an archive when ctx is cancelled between two
// reads.
func untilDone(ctx context.Context, r io.Reader) io.Reader {
	return readFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(p)
	})
}

func (s *Store) importArchive(ctx context.Context, r io.Reader, reference string, m *monitor) ([]Image, error) {
	ctx, done, err := s.disk.leased(ctx, s.collectSoon)
	if err != nil {
		return nil, err
	}
	defer done()
	// A cut archive leaves half-written blobs under names that the next
	// archive uses too, and would be taken as its beginning.
	defer func() {
		if err := s.disk.abortIngests(context.WithoutCancel(ctx), "tar-"); err != nil {
			klog.FromContext(ctx).Error(err, "Tidy up after import")
		}
	}()
	desc, err := archive.ImportIndex(ctx, boundedStore{s.disk.content}, r)
	if err != nil {
		return nil, importFailure(err)
	}
	named, err := archiveImages(ctx, s.descent(absent{}), desc)
	if err != nil {
		return nil, err
	}
	if reference != "" {
		if named, err = renamed(named, reference); err != nil {
			return nil, err
		}
	}
	var imported []Image
	for _, entry := range named {
		b, err := s.descent(absent{}).follow(ctx, entry.desc)
		if errors.Is(err, ErrNoPlatform) && len(named) > 1 {
			continue
		}
		if err != nil {
			return nil, err
		}
		if entry.name == "" {
			entry.name = b.configDesc.Digest.String()
		}
		img, err := s.complete(ctx, b, absent{}, m, []string{entry.name})
		if err != nil {
			return nil, err
		}
		imported = append(imported, img)
	}
	if len(imported) == 0 {
		return nil, fmt.Errorf("%w: the archive has no image for %s", ErrNoPlatform, s.wanted)
	}
	return latest(s, imported), nil
}

// latest returns each image once, with all the names it has got.
func latest(s *Store, imported []Image) []Image {
	seen := map[string]bool{}
	var list []Image
	for _, img := range imported {
		if seen[img.ID] {
			continue
		}
		seen[img.ID] = true
		if now, err := s.Held(img.ID); err == nil {
			img = now
		}
		list = append(list, img)
	}
	return list
}

func importFailure(err error) error {
	var syntax *json.SyntaxError
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &syntax) {
		return fmt.Errorf("%w: archive: %w", ErrInvalidImage, err)
	}
	return fmt.Errorf("archive: %w", err)
}

type archiveImage struct {
	name string
	desc ocispec.Descriptor
}

// archiveImages reads the archive's index.
func archiveImages(ctx context.Context, d *descent, desc ocispec.Descriptor) ([]archiveImage, error) {
	data, err := d.read(ctx, desc, maxManifestBytes)
	if err != nil {
		return nil, fmt.Errorf("archive index: %w", err)
	}
	return parseArchiveIndex(data)
}

// parseArchiveIndex lists what an index names: the same content may be there
// under several names.
func parseArchiveIndex(data []byte) ([]archiveImage, error) {
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("%w: archive index: %w", ErrInvalidImage, err)
	}
	if len(index.Manifests) > maxIndexEntries {
		return nil, fmt.Errorf("%w: archive index: %d entries, at most %d", ErrInvalidImage, len(index.Manifests), maxIndexEntries)
	}
	var found []archiveImage
	for _, entry := range index.Manifests {
		if !images.IsManifestType(entry.MediaType) && !images.IsIndexType(entry.MediaType) {
			continue
		}
		clean, err := cleanDescriptor(entry, maxManifestBytes)
		if err != nil {
			return nil, fmt.Errorf("%w: archive index: %w", ErrInvalidImage, err)
		}
		name := entry.Annotations[images.AnnotationImageName]
		if name == "" {
			// OCI layouts of other tools say the whole name here, or only the
			// tag, which names nothing.
			if ref, err := ParseReference(entry.Annotations[ocispec.AnnotationRefName]); err == nil && hasName(entry) {
				name = ref.String()
			}
		} else {
			ref, err := ParseReference(name)
			if err != nil {
				return nil, fmt.Errorf("archive index: %w", err)
			}
			name = ref.String()
		}
		found = append(found, archiveImage{name: name, desc: clean})
	}
	return found, nil
}

// hasName tells "docker.io/library/busybox:1" from "1".
func hasName(entry ocispec.Descriptor) bool {
	for _, c := range entry.Annotations[ocispec.AnnotationRefName] {
		if c == '/' || c == ':' {
			return true
		}
	}
	return false
}

func renamed(named []archiveImage, reference string) ([]archiveImage, error) {
	ref, err := ParseReference(reference)
	if err != nil {
		return nil, err
	}
	for _, entry := range named {
		if entry.desc.Digest != named[0].desc.Digest {
			return nil, fmt.Errorf("%w: the archive has several images, one reference names one", ErrInvalidReference)
		}
		if ref.Digest != "" && entry.desc.Digest != ref.Digest {
			return nil, fmt.Errorf("%w: the archive has %s, not %s", ErrDigestMismatch, entry.desc.Digest, ref.Digest)
		}
	}
	if len(named) == 0 {
		return nil, nil
	}
	return []archiveImage{{name: ref.String(), desc: named[0].desc}}, nil
}

// boundedStore is what the archive reader writes to. It reads whole documents
// into memory to see their platform, and their size is the archive's choice.
type boundedStore struct{ content.Store }

func (b boundedStore) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	reader, err := b.Store.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	isDocument := images.IsConfigType(desc.MediaType) || images.IsManifestType(desc.MediaType) || images.IsIndexType(desc.MediaType)
	if isDocument && reader.Size() > maxManifestBytes {
		size := reader.Size()
		reader.Close()
		return nil, fmt.Errorf("%w: %s of %d bytes, at most %d", ErrInvalidImage, desc.MediaType, size, maxManifestBytes)
	}
	return reader, nil
}
