package image

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/podwright/podwright/test/e2e/registry"
)

func TestImportDockerAndOCIArchives(t *testing.T) {
	s := openStore(t, Config{Root: t.TempDir()})
	img := simple(t, "archived")
	id := imageID(t, img)
	tag, err := name.NewTag("docker.io/library/archived:1")
	if err != nil {
		t.Fatal(err)
	}
	var saved bytes.Buffer
	if err := tarball.Write(tag, img, &saved); err != nil {
		t.Fatal(err)
	}
	check := func(what string, archive []byte, options ImportOptions, want ...string) {
		t.Helper()
		got, err := s.Import(t.Context(), bytes.NewReader(archive), options)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if len(got) != 1 || got[0].ID != id || !slices.Equal(got[0].RepoTags, want) {
			t.Errorf("%s: got %+v, want id %s and tags %v", what, got, id, want)
		}
		if text := readLayer(t, s, id, "etc/text"); text != "archived" {
			t.Errorf("%s: got %q", what, text)
		}
		if err := s.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
		if len(s.List()) != 0 {
			t.Errorf("%s: not removed", what)
		}
	}
	check("docker save", saved.Bytes(), ImportOptions{Progress: func(Progress) {}}, "docker.io/library/archived:1")
	check("renamed", saved.Bytes(), ImportOptions{Reference: "other/name:2"}, "docker.io/other/name:2")

	arm := build(t, "arm64", v1.Config{}, layer(t, registry.Gzip, registry.Regular("a", 0o644, "arm")))
	oci := ociArchive(t, map[string]v1.Image{"amd64": img, "arm64": arm}, "registry.example.com/oci:1")
	check("OCI layout with two platforms", oci, ImportOptions{}, "registry.example.com/oci:1")
	check("OCI layout without a name", ociArchive(t, map[string]v1.Image{"amd64": img}, ""), ImportOptions{})

	for what, archive := range map[string][]byte{
		"nothing": nil, "cut": oci[:len(oci)/2], "rubbish": bytes.Repeat([]byte("rubbish "), 200),
		"other platform": ociArchive(t, map[string]v1.Image{"arm64": arm}, "a:1"),
		"no archive":     tarOf(t, registry.Regular("hello", 0o644, "x")),
		"huge config":    tarOf(t, registry.Regular("manifest.json", 0o644, `[{"Config":"c","Layers":[]}]`), registry.Regular("c", 0o644, strings.Repeat(" ", maxManifestBytes+1))),
		"bad name":       tarOf(t, registry.Regular("manifest.json", 0o644, `[{"Config":"c","RepoTags":["A B"],"Layers":[]}]`), registry.Regular("c", 0o644, `{}`)),
		"lacks a layer":  tarOf(t, registry.Regular("manifest.json", 0o644, `[{"Config":"c","RepoTags":["a:1"],"Layers":["l"]}]`), registry.Regular("c", 0o644, `{}`)),
	} {
		if got, err := s.Import(t.Context(), bytes.NewReader(archive), ImportOptions{}); err == nil {
			t.Errorf("%s: imported %+v", what, got)
		}
		if len(s.List()) != 0 {
			t.Errorf("%s: half an image is visible", what)
		}
	}
	// The cut one must not have left the beginning of the next.
	check("after all that", oci, ImportOptions{}, "registry.example.com/oci:1")
	startGC(t, s)
	wantEmptyDisk(t, s.root)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Import(cancelled, bytes.NewReader(oci), ImportOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func tarOf(t *testing.T, files ...registry.File) []byte {
	t.Helper()
	data, err := registry.Tar(files)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// ociArchive makes what "skopeo copy" and "buildctl -o type=oci" write.
func ociArchive(t *testing.T, images map[string]v1.Image, ref string) []byte {
	t.Helper()
	dir := t.TempDir()
	path, err := layout.Write(dir, registry.Index(nil))
	if err != nil {
		t.Fatal(err)
	}
	var options []layout.Option
	if ref != "" {
		options = append(options, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": ref}))
	}
	if err := path.AppendIndex(registry.Index(images), options...); err != nil {
		t.Fatal(err)
	}
	files, err := registry.FromDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(t, files...)
}

// Whatever an archive's index says: names that can be parsed again, descriptors that are checked, or a refusal.
func FuzzArchiveIndex(f *testing.F) {
	for _, annotations := range []string{
		`"io.containerd.image.name":"example.org/app:1"`, `"org.opencontainers.image.ref.name":"1"`, `"org.opencontainers.image.ref.name":"docker.io/library/busybox:1"`,
	} {
		f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"` + someDigest + `","size":5,"annotations":{` + annotations + `}}]}`))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := parseArchiveIndex(data)
		if err != nil {
			if !errors.Is(err, ErrInvalidImage) && !errors.Is(err, ErrInvalidReference) {
				t.Fatalf("%v is of no kind", err)
			}
			return
		}
		for _, entry := range found {
			if checkDigest(entry.desc.Digest) != nil || entry.desc.Size <= 0 || entry.desc.Annotations != nil {
				t.Fatalf("passed %+v", entry.desc)
			}
			if ref, err := ParseReference(entry.name); entry.name != "" && (err != nil || ref.String() != entry.name) {
				t.Fatalf("%q parses as %v, %v", entry.name, ref, err)
			}
		}
	})
}
