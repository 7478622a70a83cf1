package registry

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// Packing is how a layer is compressed.
type Packing int

// The packings that layers come in.
const (
	Gzip Packing = iota
	Zstd
	Plain
)

// File is one entry of a layer. The kind is Header.Typeflag; 0 is a regular
// file.
type File struct {
	tar.Header
	Content []byte
}

// Regular returns an entry for a file.
func Regular(name string, mode int64, content string) File {
	return File{Header: tar.Header{Name: name, Mode: mode}, Content: []byte(content)}
}

// Dir returns an entry for a directory.
func Dir(name string, mode int64) File {
	return File{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}}
}

// Link returns an entry for a symbolic link.
func Link(name, target string) File {
	return File{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

// HardLink returns an entry for a second name of a file in the same layer. mode is the file's: unpackers set what
// the last of its entries says.
func HardLink(name, target string, mode int64) File {
	return File{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: mode}}
}

// Tar writes entries in the order given, so that a layer has the same digest
// each time.
func Tar(files []File) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, file := range files {
		header := file.Header
		if header.Typeflag == 0 {
			header.Typeflag = tar.TypeReg
		}
		header.Size = int64(len(file.Content))
		header.ModTime = time.Unix(1_700_000_000, 0)
		header.Format = tar.FormatPAX
		if err := w.WriteHeader(&header); err != nil {
			return nil, fmt.Errorf("layer entry %s: %w", header.Name, err)
		}
		if _, err := w.Write(file.Content); err != nil {
			return nil, fmt.Errorf("layer entry %s: %w", header.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// FromDir reads a directory tree into entries, in lexical order.
func FromDir(root string) ([]File, error) {
	var files []File
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		link := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(path); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		header.Name = rel
		if info.IsDir() {
			header.Name += "/"
		}
		header.Uname, header.Gname = "", ""
		file := File{Header: *header}
		if info.Mode().IsRegular() {
			if file.Content, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		files = append(files, file)
		return nil
	})
	return files, err
}

// Layer packs entries.
func Layer(packing Packing, files ...File) (v1.Layer, error) {
	data, err := Tar(files)
	if err != nil {
		return nil, err
	}
	return Pack(packing, data)
}

// Pack makes a layer of a finished tar.
func Pack(packing Packing, data []byte) (v1.Layer, error) {
	layer := &packedLayer{diffID: hash(data), plain: data}
	var buf bytes.Buffer
	switch packing {
	case Gzip:
		layer.mediaType = types.OCILayer
		w, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(data); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
	case Zstd:
		layer.mediaType = types.OCILayerZStd
		w, err := zstd.NewWriter(&buf)
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(data); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
	case Plain:
		layer.mediaType = types.OCIUncompressedLayer
		buf.Write(data)
	default:
		return nil, fmt.Errorf("packing %d", packing)
	}
	layer.packed = buf.Bytes()
	layer.digest = hash(layer.packed)
	return layer, nil
}

func hash(data []byte) v1.Hash {
	sum := sha256.Sum256(data)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// packedLayer keeps a layer exactly as packed: the library's own layers would
// repack it.
type packedLayer struct {
	digest, diffID v1.Hash
	mediaType      types.MediaType
	packed, plain  []byte
}

func (l *packedLayer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *packedLayer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *packedLayer) Size() (int64, error)                { return int64(len(l.packed)), nil }
func (l *packedLayer) MediaType() (types.MediaType, error) { return l.mediaType, nil }
func (l *packedLayer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.packed)), nil
}
func (l *packedLayer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.plain)), nil
}

// Image stacks layers, lowest first, under a config. The platform is
// "linux/<arch>".
func Image(arch string, config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{
		OS: "linux", Architecture: arch, Config: config, RootFS: v1.RootFS{Type: "layers"},
		Created: v1.Time{Time: time.Unix(1_700_000_000, 0).UTC()},
	})
	if err != nil {
		return nil, err
	}
	for _, layer := range layers {
		mediaType, err := layer.MediaType()
		if err != nil {
			return nil, err
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: layer, MediaType: mediaType}); err != nil {
			return nil, err
		}
	}
	return img, nil
}

// Index names one image per platform, "linux/<arch>".
func Index(images map[string]v1.Image) v1.ImageIndex {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range []string{"386", "amd64", "arm", "arm64", "riscv64", "s390x"} {
		if img, ok := images[arch]; ok {
			index = mutate.AppendManifests(index, mutate.IndexAddendum{
				Add:        img,
				Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
			})
		}
	}
	return index
}
