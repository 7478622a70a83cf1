package imageset

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// layerTar collects one layer. Every entry is root's and dated 1970, so that the same input
// gives the same digests: the pinned digest spec depends on it.
type layerTar struct {
	buffer bytes.Buffer
	writer *tar.Writer
	err    error
}

func newLayerTar() *layerTar {
	l := &layerTar{}
	l.writer = tar.NewWriter(&l.buffer)
	return l
}

func (l *layerTar) entry(header tar.Header, content []byte) *layerTar {
	if l.err != nil {
		return l
	}
	header.Size = int64(len(content))
	if l.err = l.writer.WriteHeader(&header); l.err == nil {
		_, l.err = l.writer.Write(content)
	}
	return l
}

func (l *layerTar) dir(name string, mode int64) *layerTar {
	return l.entry(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, nil)
}

func (l *layerTar) file(name string, mode int64, content []byte) *layerTar {
	return l.entry(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content)
}

func (l *layerTar) symlink(name, target string) *layerTar {
	return l.entry(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

// tree adds a directory's content; files with several names there stay hard links here.
func (l *layerTar) tree(root string) *layerTar {
	if l.err != nil {
		return l
	}
	first := map[uint64]string{} // inode -> the name that carries the content
	l.err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if info.IsDir() {
			return l.dir(name, 0o755).err
		}
		if info.Mode().Type() == fs.ModeSymlink {
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return l.symlink(name, target).err
		}
		inode := info.Sys().(*syscall.Stat_t).Ino
		if earlier, ok := first[inode]; ok {
			return l.entry(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: earlier, Mode: 0o755}, nil).err
		}
		first[inode] = name
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return l.file(name, 0o755, content).err
	})
	return l
}

func (l *layerTar) layer() (v1.Layer, error) {
	if l.err == nil {
		l.err = l.writer.Close()
	}
	if l.err != nil {
		return nil, fmt.Errorf("write layer: %w", l.err)
	}
	content := l.buffer.Bytes()
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	})
}
