package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxManifestBytes = 4 << 20
	// Overlay takes 500 lower directories (fs/overlayfs, OVL_MAX_STACK), the
	// field's builders make at most 127.
	maxLayers       = 256
	maxIndexEntries = 1024
	maxLayerBytes   = 1 << 40
)

// parseManifest decodes an image manifest. The descriptors it returns carry
// media type, digest and size only: URLs would send the daemon to hosts of
// the author's choice (CVE-2020-15157), and annotations become labels of
// snapshots.
func parseManifest(data []byte, mediaType string) (config ocispec.Descriptor, layers []ocispec.Descriptor, err error) {
	var manifest struct {
		Config ocispec.Descriptor   `json:"config"`
		Layers []ocispec.Descriptor `json:"layers"`
	}
	if err := checkDocument(data, mediaType, "manifests"); err != nil {
		return config, nil, err
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		return config, nil, fmt.Errorf("%w: manifest: %w", ErrInvalidImage, err)
	}
	config, err = cleanDescriptor(manifest.Config, maxConfigBytes)
	if err != nil {
		return config, nil, fmt.Errorf("%w: manifest: config: %w", ErrInvalidImage, err)
	}
	if !images.IsConfigType(config.MediaType) {
		return config, nil, fmt.Errorf("%w: not a container image: config has media type %.80q", ErrInvalidImage, config.MediaType)
	}
	if n := len(manifest.Layers); n > maxLayers {
		return config, nil, fmt.Errorf("%w: manifest: %d layers, at most %d", ErrInvalidImage, n, maxLayers)
	}
	for i, layer := range manifest.Layers {
		layer, err := cleanDescriptor(layer, maxLayerBytes)
		if err != nil {
			return config, nil, fmt.Errorf("%w: manifest: layer %d: %w", ErrInvalidImage, i, err)
		}
		if !isTarLayer(layer.MediaType) {
			return config, nil, fmt.Errorf("%w: manifest: layer %d has media type %.80q", ErrInvalidImage, i, layer.MediaType)
		}
		layers = append(layers, layer)
	}
	return config, layers, nil
}

// parseIndex decodes an index and returns its entries that can be images.
func parseIndex(data []byte, mediaType string) ([]ocispec.Descriptor, error) {
	var index struct {
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := checkDocument(data, mediaType, "config", "layers"); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("%w: index: %w", ErrInvalidImage, err)
	}
	if n := len(index.Manifests); n > maxIndexEntries {
		return nil, fmt.Errorf("%w: index: %d entries, at most %d", ErrInvalidImage, n, maxIndexEntries)
	}
	var entries []ocispec.Descriptor
	for i, entry := range index.Manifests {
		if !images.IsManifestType(entry.MediaType) && !images.IsIndexType(entry.MediaType) {
			continue
		}
		clean, err := cleanDescriptor(entry, maxManifestBytes)
		if err != nil {
			return nil, fmt.Errorf("%w: index: entry %d: %w", ErrInvalidImage, i, err)
		}
		clean.Platform = entry.Platform
		entries = append(entries, clean)
	}
	return entries, nil
}

// checkDocument holds media type and content together: a document that is
// both a manifest and an index means one thing to whoever verified it and
// another to us (CVE-2021-41190). Key spelling counts as encoding/json reads
// it, without regard to case, and no key may be there twice.
func checkDocument(data []byte, mediaType string, foreign ...string) error {
	keys, err := topLevel(data)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalidImage, mediaType, err)
	}
	for _, key := range foreign {
		if _, found := keys[key]; found {
			return fmt.Errorf("%w: %s has %q: manifest or index, not both", ErrInvalidImage, mediaType, key)
		}
	}
	raw, found := keys["mediatype"]
	if !found {
		return nil
	}
	var inside string
	if err := json.Unmarshal(raw, &inside); err != nil {
		return fmt.Errorf("%w: %s: mediaType: %w", ErrInvalidImage, mediaType, err)
	}
	if inside != mediaType {
		return fmt.Errorf("%w: served as %s, says it is %.80q", ErrInvalidImage, mediaType, inside)
	}
	return nil
}

func topLevel(data []byte) (map[string]json.RawMessage, error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	if token, err := decoder.Token(); err != nil {
		return nil, err
	} else if token != json.Delim('{') {
		return nil, fmt.Errorf("not a JSON object")
	}
	keys := map[string]json.RawMessage{}
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		key := strings.ToLower(fmt.Sprint(token))
		if _, twice := keys[key]; twice {
			return nil, fmt.Errorf("key %.80q is there twice", key)
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, err
		}
		keys[key] = value
	}
	return keys, nil
}

func cleanDescriptor(d ocispec.Descriptor, maxBytes int64) (ocispec.Descriptor, error) {
	if err := checkDigest(d.Digest); err != nil {
		return ocispec.Descriptor{}, err
	}
	if d.Size <= 0 || d.Size > maxBytes {
		return ocispec.Descriptor{}, fmt.Errorf("size of %d bytes, 1 to %d", d.Size, maxBytes)
	}
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, nil
}

// isTarLayer lists the layer types that are tars, plain or compressed; which
// compression is seen from the bytes. Encrypted layers, EROFS and others would
// need a key or another snapshotter.
func isTarLayer(mediaType string) bool {
	switch mediaType {
	case ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		ocispec.MediaTypeImageLayerNonDistributable, ocispec.MediaTypeImageLayerNonDistributableGzip, //nolint:staticcheck // deprecated, still served
		ocispec.MediaTypeImageLayerNonDistributableZstd, //nolint:staticcheck // deprecated, still served
		images.MediaTypeDockerSchema2Layer, images.MediaTypeDockerSchema2LayerGzip, images.MediaTypeDockerSchema2LayerZstd,
		images.MediaTypeDockerSchema2LayerForeign, images.MediaTypeDockerSchema2LayerForeignGzip:
		return true
	}
	return false
}
