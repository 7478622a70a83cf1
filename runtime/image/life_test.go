package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

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
	config := Config{Root: t.TempDir(), Unpacker: testUnpacker}
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

// Nothing of the store outlives it: no goroutine, no file.
func TestNothingRunsAfterClose(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	push(t, r, "a:1", simple(t, "one"))
	openStore(t, Config{Root: t.TempDir()}).Close() // what libraries start once
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	for range 5 {
		s := openStore(t, Config{Root: t.TempDir()})
		startGC(t, s)
		pull(t, s, host+"/a:1")
		r.Break(registry.Corrupt(registry.Blobs))
		if _, err := s.Pull(t.Context(), host+"/b:1", PullOptions{}); err == nil {
			t.Error("pulled")
		}
		r.Break()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	eventually(t, func() string {
		if n, f := runtime.NumGoroutine(), openFiles(t); n > goroutines || f > files {
			stacks := make([]byte, 64<<10)
			stacks = stacks[:runtime.Stack(stacks, true)]
			return fmt.Sprintf("goroutines: %d, were %d; files: %d, were %d\n%s", n, goroutines, f, files, stacks)
		}
		return ""
	})
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
