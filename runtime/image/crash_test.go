package image

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"

	"github.com/podwright/podwright/test/e2e/registry"
)

// After a power cut, layers that were not written through are not trusted,
// and not reused by the next pull.
func TestImageNotSyncedBeforeAnotherBootIsPulledAgain(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	config := Config{Root: t.TempDir(), bootID: "first"}
	s := openStore(t, config)
	base := layer(t, registry.Gzip, registry.Regular("base", 0o644, "base"))
	push(t, r, "a:1", build(t, "amd64", v1.Config{}, base))
	push(t, r, "b:1", build(t, "amd64", v1.Config{}, base, layer(t, registry.Gzip, registry.Regular("own", 0o644, "own"))))
	synced, lost := pull(t, s, host+"/a:1"), pull(t, s, host+"/b:1")
	ctx := libraryContext(t.Context())
	eventually(t, func() string {
		info, err := s.disk.content.Info(ctx, digest.Digest(lost.ID))
		if err != nil || info.Labels[labelUnsynced] != "" {
			return fmt.Sprintf("not synced: %v, %v", info.Labels, err)
		}
		return ""
	})
	own := mustLayers(t, s, lost.ID)[0]
	if err := s.disk.label(ctx, digest.Digest(lost.ID), map[string]string{labelUnsynced: "first"}); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s, config)
	if len(s.List()) != 2 {
		t.Error("in the same boot an unsynced image is good")
	}
	if err := s.disk.label(ctx, digest.Digest(lost.ID), map[string]string{labelUnsynced: "first"}); err != nil {
		t.Fatal(err)
	}
	s.unsynced.take()
	config.bootID = "second"
	if err := os.WriteFile(filepath.Join(own, "own"), nil, 0o644); err != nil { // what a power cut does
		t.Fatal(err)
	}
	s = reopen(t, s, config)
	if _, err := s.Get(lost.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	if text := readLayer(t, s, synced.ID, "base"); text != "base" {
		t.Errorf("got %q", text)
	}
	again := pull(t, s, host+"/b:1")
	if text := readLayer(t, s, again.ID, "own"); text != "own" {
		t.Errorf("the unsynced layer was reused: got %q", text)
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
		if leases, err := s.disk.leases.List(libraryContext(t.Context())); err != nil || len(leases) != 0 {
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
	s, err := Open(t.Context(), Config{Root: filepath.Join(root, "images"), Platform: "linux/amd64", Unpacker: testUnpacker})
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
