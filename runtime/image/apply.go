package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// archive/tar and the applier keep something for every entry.
	maxLayerEntries = 1 << 20
	// PATH_MAX: the kernel takes no longer name, a tar's may have a megabyte.
	maxEntryName = 4096
	// RFC 8878 wants decoders to take 8 MiB; zstd -19 --long makes 128 MiB.
	maxZstdWindow   = 128 << 20
	labelAttr       = "security.selinux"
	readAheadBlocks = 4
	readAheadSize   = 256 << 10
)

// decompress sees the packing from the first bytes: archives of docker save
// and some registries get the media type wrong.
func decompress(blob io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(blob, 128<<10)
	head, err := buffered.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 0x08}):
		return gzip.NewReader(buffered)
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}),
		// A skippable frame may come first (RFC 8878, 3.1.2).
		len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18}):
		decoder, err := zstd.NewReader(buffered, zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return decoder.IOReadCloser(), nil
	}
	return io.NopCloser(buffered), nil
}

// readAhead decompresses in a goroutine of its own, so that inflating and
// writing files share two cores.
type readAhead struct {
	full  chan block
	free  chan []byte
	stop  chan struct{}
	ended chan struct{}
	rest  []byte
	buf   []byte
	err   error
}

type block struct {
	data []byte
	err  error
}

// newReadAhead takes ownership of stream.
func newReadAhead(stream io.ReadCloser) *readAhead {
	r := &readAhead{
		full: make(chan block, readAheadBlocks), free: make(chan []byte, readAheadBlocks),
		stop: make(chan struct{}), ended: make(chan struct{}),
	}
	for range readAheadBlocks {
		r.free <- make([]byte, readAheadSize)
	}
	// Owned by r, ended by the stream's end or by stop, waited for by Close.
	go func() {
		defer close(r.ended)
		defer stream.Close()
		for {
			select {
			case <-r.stop:
				return
			case buf := <-r.free:
				n, err := io.ReadFull(stream, buf)
				if errors.Is(err, io.ErrUnexpectedEOF) && n > 0 {
					// Either the end or a cut stream; the next read tells.
					err = nil
				}
				r.full <- block{buf[:n], err}
				if err != nil {
					return
				}
			}
		}
	}()
	return r
}

func (r *readAhead) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		if r.buf != nil {
			r.free <- r.buf
		}
		b := <-r.full
		r.rest, r.buf, r.err = b.data, b.data[:cap(b.data)], b.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Close ends the goroutine and waits for it.
func (r *readAhead) Close() {
	close(r.stop)
	<-r.ended
}

// countingTee hashes what passes.
type countingTee struct {
	next  io.Reader
	sum   hash.Hash
	count int64
}

func (t *countingTee) Read(p []byte) (int, error) {
	n, err := t.next.Read(p)
	t.sum.Write(p[:n])
	t.count += int64(n)
	return n, err
}

// drain reads what follows the tar's end; it belongs to the digest.
func (t *countingTee) drain() error {
	_, err := io.Copy(io.Discard, t)
	return err
}

// dirTracker sees every header of a layer's tar before it is applied.
type dirTracker struct {
	entries int             // and directories that entries imply
	listed  map[string]bool // directory to whether the tar has an entry for it
}

func newDirTracker() *dirTracker { return &dirTracker{listed: map[string]bool{}} }

// see is an archive.Filter. It refuses layers without end and takes out the
// attributes by which overlay layers speak to the kernel: a layer's author has
// whiteouts for that. SELinux labels are the node's, not an image's: containers see
// those of their mounts.
func (d *dirTracker) see(hdr *tar.Header) (bool, error) {
	if d.entries++; d.entries > maxLayerEntries {
		return false, fmt.Errorf("layer has more than %d entries", maxLayerEntries)
	}
	if len(hdr.Name) > maxEntryName {
		return false, fmt.Errorf("layer has an entry with a name of %d bytes, at most %d: %.100q", len(hdr.Name), maxEntryName, hdr.Name)
	}
	for key := range hdr.PAXRecords {
		attr, isAttr := strings.CutPrefix(key, "SCHILY.xattr.")
		if isAttr && (strings.HasPrefix(attr, "trusted.overlay.") || strings.HasPrefix(attr, "user.overlay.") || attr == labelAttr) {
			delete(hdr.PAXRecords, key)
		}
	}
	name := strings.TrimPrefix(path.Clean("/"+hdr.Name), "/")
	if name == "" {
		return true, nil
	}
	if hdr.Typeflag == tar.TypeDir {
		d.listed[name] = true
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if _, known := d.listed[dir]; known {
			break
		}
		d.listed[dir] = false
		d.entries++
	}
	return true, nil
}

// implied returns the directories that are used and not listed, parents first.
func (d *dirTracker) implied() []string {
	var dirs []string
	for dir, listed := range d.listed {
		if !listed {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	return dirs
}
