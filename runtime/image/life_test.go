package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/podwright/podwright/test/e2e/registry"
)

// reopen closes the store and opens it as the next daemon would.
func reopen(t *testing.T, s *Store, config Config) *Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return openStore(t, config)
}

func startGC(t *testing.T, s *Store) {
	t.Helper()
	if err := s.StartGC(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func wantEmptyDisk(t *testing.T, root string) {
	t.Helper()
	eventually(t, func() string {
		if layers, blobs := onDisk(t, root); layers+blobs > 0 {
			return fmt.Sprintf("left on disk: %d layers, %d blobs", layers, blobs)
		}
		return ""
	})
}

// B1, B47: an image goes from the lists at once, its layers when the last
// container lets go, whoever restarts in between.
func TestRemovedImageStaysForItsContainers(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	config := Config{Root: t.TempDir()}
	s := openStore(t, config)
	startGC(t, s)
	push(t, r, "a:1", simple(t, "one"))
	img := pull(t, s, host+"/a:1")
	for _, holder := range []string{"c1", "c2", "c1"} {
		if err := s.Hold(img.ID, holder); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Hold(someDigest, "c3"); !errors.Is(err, ErrNotFound) {
		t.Errorf("hold of an unknown image: got %v", err)
	}
	if err := s.Remove(t.Context(), host+"/a:1"); err != nil {
		t.Fatal(err)
	}
	gone := func() {
		t.Helper()
		for _, name := range []string{img.ID, host + "/a:1", img.RepoDigests[0]} {
			if _, err := s.Get(name); !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: got %v, want ErrNotFound", name, err)
			}
			if err := s.Remove(t.Context(), name); err != nil {
				t.Errorf("second removal of %s: %v", name, err)
			}
		}
		if len(s.List()) != 0 {
			t.Errorf("listed: %v", s.List())
		}
		held, err := s.Held(img.ID)
		if err != nil || held.Config.Cmd[0] != "/hello" || held.ID != img.ID || held.SizeBytes != img.SizeBytes {
			t.Errorf("held: got %+v, %v", held, err)
		}
		if text := readLayer(t, s, img.ID, "etc/text"); text != "one" {
			t.Errorf("layer: got %q", text)
		}
	}
	gone()
	time.Sleep(300 * time.Millisecond) // the collector comes round
	gone()

	s = reopen(t, s, config)
	for _, holder := range []string{"c1", "c2"} {
		if err := s.Hold(img.ID, holder); err != nil {
			t.Fatal(err)
		}
	}
	startGC(t, s)
	time.Sleep(300 * time.Millisecond)
	gone()
	if err := s.Release(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Release(t.Context(), "nobody"); err != nil {
		t.Error(err)
	}
	gone()
	// Pulled again it is the same image, and the container's hold counts on.
	again := pull(t, s, host+"/a:1")
	if again.ID != img.ID {
		t.Errorf("got %s", again.ID)
	}
	if err := s.Remove(t.Context(), again.ID); err != nil {
		t.Fatal(err)
	}
	gone()
	if err := s.Release(t.Context(), "c2"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Layers(t.Context(), img.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("after the last release: got %v", err)
	}
	wantEmptyDisk(t, config.Root)
	if info, err := s.FsInfo(t.Context()); err != nil {
		t.Error(err)
	} else {
		eventually(t, func() string {
			if info, _ = s.FsInfo(t.Context()); info.UsedBytes != 0 {
				return fmt.Sprintf("usage %+v", info)
			}
			return ""
		})
	}
}

// A container whose record is gone doesn't hold its removed image for ever.
func TestImageWithoutHolderGoesAtStart(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	config := Config{Root: t.TempDir()}
	s := openStore(t, config)
	push(t, r, "a:1", simple(t, "one"))
	push(t, r, "b:1", simple(t, "two"))
	img, kept := pull(t, s, host+"/a:1"), pull(t, s, host+"/b:1")
	if err := s.Hold(img.ID, "c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), img.ID); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s, config)
	if _, err := s.Held(img.ID); err != nil {
		t.Errorf("before StartGC nothing goes: %v", err)
	}
	startGC(t, s)
	if _, err := s.Held(img.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	eventually(t, func() string {
		if layers, blobs := onDisk(t, config.Root); layers != 2 || blobs != 3 {
			return fmt.Sprintf("on disk: %d layers, %d blobs; want one image's: layer, view; manifest, config, layer", layers, blobs)
		}
		return ""
	})
	if text := readLayer(t, s, kept.ID, "etc/text"); text != "two" {
		t.Errorf("got %q", text)
	}
}

func TestRemoveTakesTheNamesItSays(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	s := openStore(t, Config{Root: t.TempDir()})
	startGC(t, s)
	img := simple(t, "one")
	for _, ref := range []string{"a:1", "a:2", "b:1"} {
		push(t, r, ref, img)
	}
	digest, _ := img.Digest()
	id := imageID(t, img)
	remove := func(name string, wantTags ...string) {
		t.Helper()
		if err := s.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		got, err := s.Get(id)
		if len(wantTags) == 0 {
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("after %s: got %+v, %v; want it gone", name, got, err)
			}
			return
		}
		for i := range wantTags {
			wantTags[i] = host + "/" + wantTags[i]
		}
		if !slices.Equal(got.RepoTags, wantTags) {
			t.Errorf("after %s: got %v, want %v", name, got.RepoTags, wantTags)
		}
	}
	all := func() {
		for _, ref := range []string{"/a:1", "/a:2", "/b:1"} {
			pull(t, s, host+ref)
		}
	}
	all()
	remove(host+"/a:9", "a:1", "a:2", "b:1")
	remove(host+"/a:1", "a:2", "b:1")
	remove(host+"/a@"+digest.String(), "b:1")
	remove(host + "/b:1")
	all()
	remove(id[:20])
	all()
	remove(host+"/b@"+digest.String(), "a:1", "a:2")
	remove(strings.TrimPrefix(id, "sha256:"))
	if err := s.Remove(t.Context(), "not/A valid one"); !errors.Is(err, ErrInvalidReference) {
		t.Errorf("got %v", err)
	}
	wantEmptyDisk(t, s.root)
}

func TestImagesSurviveARestart(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	config := Config{Root: t.TempDir()}
	s := openStore(t, config)
	if _, err := Open(t.Context(), config); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second opener: got %v", err)
	}
	push(t, r, "a:1", build(t, "amd64", v1.Config{User: "1"},
		layer(t, registry.Gzip, registry.Regular("x", 0o644, "lower")), layer(t, registry.Zstd, registry.Regular("x", 0o644, "upper"))))
	push(t, r, "b:1", simple(t, "two"))
	before := pull(t, s, host+"/a:1")
	pull(t, s, host+"/b:1")
	dirs, _ := s.Layers(t.Context(), before.ID)
	s = reopen(t, s, config)
	startGC(t, s)
	time.Sleep(300 * time.Millisecond)
	after, err := s.Get(host + "/a:1")
	if err != nil || fmt.Sprintf("%+v", after) != fmt.Sprintf("%+v", before) {
		t.Errorf("got %+v, %v\nwant %+v", after, err, before)
	}
	if got, err := s.Layers(t.Context(), before.ID); err != nil || !slices.Equal(got, dirs) {
		t.Errorf("layers: got %v, %v; want %v", got, err, dirs)
	}
	if text := readLayer(t, s, before.ID, "x"); text != "upper" || len(s.List()) != 2 {
		t.Errorf("got %q, %d images", text, len(s.List()))
	}
}

// What has rotted on disk is absent, alone, and can be pulled again.
func TestDamagedImageIsAbsentAndPullMakesItGood(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	config := Config{Root: t.TempDir()}
	s := openStore(t, config)
	push(t, r, "a:1", simple(t, "one"))
	push(t, r, "b:1", simple(t, "two"))
	img := pull(t, s, host+"/a:1")
	pull(t, s, host+"/b:1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	blob := filepath.Join(config.Root, "content/blobs/sha256", strings.TrimPrefix(img.ID, "sha256:"))
	data, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(blob, 0o600)
	if err := os.WriteFile(blob, bytes.ToUpper(data), 0o600); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, config)
	if _, err := s.Get(img.ID); !errors.Is(err, ErrNotFound) || len(s.List()) != 1 {
		t.Errorf("got %v, %d images", err, len(s.List()))
	}
	again := pull(t, s, host+"/a:1")
	if again.ID != img.ID || readLayer(t, s, img.ID, "etc/text") != "one" {
		t.Errorf("got %+v", again)
	}
	s = reopen(t, s, config)
	startGC(t, s)
	time.Sleep(300 * time.Millisecond)
	if _, err := s.Get(img.ID); err != nil {
		t.Error(err)
	}
}

// A daemon killed at any point of a pull: afterwards the image is there, whole,
// or it is not, and nothing is left over.
func TestKilledPullLeavesAllOrNothing(t *testing.T) {
	needRoot(t)
	if root := os.Getenv("PODWRIGHT_TEST_PULL_ROOT"); root != "" {
		pullUntilKilled(t, root, os.Getenv("PODWRIGHT_TEST_PULL_REF"))
		return
	}
	r := registry.New(registry.Config{})
	host := serve(t, r)
	var layers []v1.Layer
	for i := range 4 {
		var files []registry.File
		for j := range 300 {
			files = append(files, registry.Regular(fmt.Sprintf("d%d/f%d", i, j), 0o644, strings.Repeat("text", 500+j)))
		}
		layers = append(layers, layer(t, registry.Packing(i%3), files...))
	}
	img := build(t, "amd64", v1.Config{}, layers...)
	push(t, r, "a:1", img)
	ref, id := host+"/a:1", imageID(t, img)

	visible, absent := 0, 0
	for round := range 24 {
		root := t.TempDir()
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledPullLeavesAllOrNothing$", "-test.count=1")
		child.Env = append(os.Environ(), "PODWRIGHT_TEST_PULL_ROOT="+root, "PODWRIGHT_TEST_PULL_REF="+ref)
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() string {
			if _, err := os.Stat(filepath.Join(root, "started")); err != nil {
				return "the child doesn't start"
			}
			return ""
		})
		if round < 22 {
			time.Sleep(time.Duration(round) * 30 * time.Millisecond)
		} else {
			eventually(t, func() string {
				if _, err := os.Stat(filepath.Join(root, "pulled")); err != nil {
					return "the child doesn't pull"
				}
				return ""
			})
		}
		child.Process.Kill()
		child.Wait()

		s := openStore(t, Config{Root: filepath.Join(root, "images")})
		got, err := s.Get(ref)
		switch {
		case err == nil:
			visible++
			if got.ID != id || len(mustLayers(t, s, id)) != 4 {
				t.Errorf("round %d: got %+v", round, got)
			}
			for i := range 4 {
				if text := readLayer(t, s, id, fmt.Sprintf("d%d/f299", i)); len(text) != 4*799 {
					t.Errorf("round %d: layer %d has %d bytes", round, i, len(text))
				}
			}
			if err := s.Remove(t.Context(), id); err != nil {
				t.Error(err)
			}
		case errors.Is(err, ErrNotFound):
			absent++
			if len(s.List()) != 0 {
				t.Errorf("round %d: half an image: %+v", round, s.List())
			}
		default:
			t.Error(err)
		}
		startGC(t, s)
		wantEmptyDisk(t, s.root)
		if left, _ := filepath.Glob(filepath.Join(s.root, "content/ingest/*")); len(left) != 0 {
			t.Errorf("round %d: left %v", round, left)
		}
		if leases, err := s.leases.List(s.context(t.Context())); err != nil || len(leases) != 0 {
			t.Errorf("round %d: leases left: %v, %v", round, leases, err)
		}
		if round%6 == 5 {
			pull(t, s, ref)
		}
		if mounts := mountsBelow(t, root); len(mounts) != 0 {
			t.Errorf("round %d: mounts left: %v", round, mounts)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("killed: %d times the image was there afterwards, %d times not", visible, absent)
	if absent == 0 || visible == 0 {
		t.Errorf("the kills don't cover the pull: %d visible, %d absent", visible, absent)
	}
}

func mustLayers(t *testing.T, s *Store, id string) []string {
	t.Helper()
	dirs, err := s.Layers(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

func pullUntilKilled(t *testing.T, root, ref string) {
	s, err := Open(t.Context(), Config{Root: filepath.Join(root, "images"), Platform: "linux/amd64"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "started"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "pulled"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute) // until killed
}

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
