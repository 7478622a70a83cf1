package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
)

// A name of a megabyte has half a million directories in it: looking at each took minutes of a core, for one header.
func TestEntryNameBeyondAllPathsIsRefusedAtOnce(t *testing.T) {
	begin := time.Now()
	_, err := newDirTracker().see(&tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("a/", 500_000) + "f"})
	if took := time.Since(begin); err == nil || took > time.Second {
		t.Errorf("got %v after %s, want a refusal at once", err, took)
	}
	if _, err := newDirTracker().see(&tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("a/", 2000) + "f"}); err != nil {
		t.Errorf("a name that the kernel takes: %v", err)
	}
}

// What directories a layer implies is bounded like what it lists.
func TestImpliedDirectoriesCountAsEntries(t *testing.T) {
	d := newDirTracker()
	var err error
	headers := 0
	for ; err == nil && headers < maxLayerEntries; headers++ {
		_, err = d.see(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%d/%s/f", headers, strings.Repeat("a/", 100))})
	}
	if err == nil || len(d.listed) > 2*maxLayerEntries {
		t.Errorf("after %d headers: got %v with %d directories, want no more than %d", headers, err, len(d.listed), maxLayerEntries)
	}
}

// Whatever a layer's bytes are: an end, no directory outside the layer, and no attribute by which overlay speaks to the kernel.
func FuzzLayer(f *testing.F) {
	var plain, packed bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, hdr := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755}, {Typeflag: tar.TypeReg, Name: "etc/../../x/y", Mode: 0o644, Size: 1},
		{Typeflag: tar.TypeReg, Name: "a/.wh..wh..opq", PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.security.selinux": "u:r:t:s0"}},
	} {
		if err := w.WriteHeader(hdr); err != nil {
			f.Fatal(err)
		}
		w.Write(bytes.Repeat([]byte{'x'}, int(hdr.Size)))
	}
	w.Close()
	z := gzip.NewWriter(&packed)
	z.Write(plain.Bytes())
	z.Close()
	f.Add(plain.Bytes())
	f.Add(packed.Bytes())
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0})
	f.Fuzz(func(t *testing.T, blob []byte) {
		stream, err := decompress(bytes.NewReader(blob))
		if err != nil {
			return
		}
		ahead := newReadAhead(stream)
		defer ahead.Close()
		dirs, r := newDirTracker(), tar.NewReader(io.LimitReader(ahead, 4<<20)) // a small blob may unpack to gigabytes
		for {
			hdr, err := r.Next()
			if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
				break
			}
			if _, err := dirs.see(hdr); err != nil {
				return
			}
			for key := range hdr.PAXRecords {
				if strings.HasPrefix(key, "SCHILY.xattr.trusted.overlay.") || strings.HasPrefix(key, "SCHILY.xattr.user.overlay.") || key == "SCHILY.xattr.security.selinux" {
					t.Fatalf("%q keeps %q", hdr.Name, key)
				}
			}
		}
		for _, dir := range dirs.implied() {
			if path.IsAbs(dir) || path.Clean(dir) != dir || dir == ".." || strings.HasPrefix(dir, "../") {
				t.Fatalf("implied %q", dir)
			}
		}
	})
}
