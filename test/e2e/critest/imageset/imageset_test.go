package imageset

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// sources makes a busybox tree of two applets and a program, both fakes.
func sources(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "busybox", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "program")
	for _, path := range []string{program, filepath.Join(bin, "busybox")} {
		if err := os.WriteFile(path, []byte("x"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(bin, "busybox"), filepath.Join(bin, "ls")); err != nil {
		t.Fatal(err)
	}
	return Config{BusyboxDir: filepath.Join(dir, "busybox"), Program: program}
}

func build(t *testing.T, config Config) map[string]Image {
	t.Helper()
	images, err := Build(config)
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]Image{}
	for _, image := range images {
		byName[image.Name] = image
	}
	return byName
}

// native is the image that a runtime on this machine chooses.
func native(t *testing.T, image Image) v1.Image {
	t.Helper()
	if image.Single != nil {
		return image.Single
	}
	index, err := image.Index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, descriptor := range index.Manifests {
		if descriptor.Platform.Architecture == runtime.GOARCH {
			chosen, err := image.Index.Image(descriptor.Digest)
			if err != nil {
				t.Fatal(err)
			}
			return chosen
		}
	}
	t.Fatalf("%s: no image for %s", image.Name, runtime.GOARCH)
	return nil
}

// files lists an image's flattened file system.
func files(t *testing.T, image v1.Image) map[string]tar.Header {
	t.Helper()
	stream := mutate.Extract(image)
	defer stream.Close()
	found := map[string]tar.Header{}
	for entries := tar.NewReader(stream); ; {
		header, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		found[filepath.Clean(header.Name)] = *header
	}
}

// The digest goes into the test program before the images are served.
func TestSameSourcesGiveSameDigest(t *testing.T) {
	config := sources(t)
	name := DigestRepository + ":latest"
	first, err := build(t, config)[name].Index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	second, err := build(t, config)[name].Index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if first != second {
		t.Errorf("got digests %s and %s for the same sources", first, second)
	}
}

func TestImagesAreWhatSpecsRelyOn(t *testing.T) {
	images := build(t, sources(t))
	image := func(name string) v1.Image { return native(t, images[name]) }

	if mode := files(t, image(e2e+"nonewprivs:1.3"))["nnp"].Mode; mode != 0o4755 {
		t.Errorf("nnp: got mode %o, want set-uid 4755", mode)
	}
	if link := files(t, image(e2e+"busybox:1.29-2"))["bin/ls"]; link.Typeflag != tar.TypeLink {
		t.Errorf("bin/ls: got type %q, want a hard link", link.Typeflag)
	}
	for name, user := range map[string]string{
		"test-image-user-uid": "1002", "test-image-user-username": "www-data",
		"test-image-user-uid-group": "1003:1004", "test-image-user-username-group": "www-data:1004",
	} {
		config, err := image(tools + name + ":latest").ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if config.Config.User != user {
			t.Errorf("%s: got user %q, want %q", name, config.Config.User, user)
		}
	}
}

// A runtime tells images apart by the digest of their configuration.
func TestImageIdentities(t *testing.T) {
	images := build(t, sources(t))
	id := func(name string) string {
		digest, err := native(t, images[name]).ConfigName()
		if err != nil {
			t.Fatal(err)
		}
		return digest.String()
	}
	if id(tools+"test-image-tags:1") != id(tools+"test-image-tags:3") {
		t.Error("test-image-tags:1 and :3 differ, want one image")
	}
	if id("registry.k8s.io/pause:3.9") != id("k8s.gcr.io/pause:3.9") {
		t.Error("pause:3.9 differs between its registries, want one image")
	}
	seen := map[string]string{}
	for _, name := range []string{
		"test-image-1:latest", "test-image-2:latest", "test-image-3:latest", "test-image-latest:latest",
		"test-image-digest:latest", "test-image-tag:test", "test-image-tag:all", "test-image-tags:1",
	} {
		if other, ok := seen[id(tools+name)]; ok {
			t.Errorf("%s and %s are one image, want two", name, other)
		}
		seen[id(tools+name)] = name
	}
}
