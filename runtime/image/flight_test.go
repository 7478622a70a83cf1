package image

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/podwright/podwright/test/e2e/registry"
)

// B44: callers join; the pull lives as long as one of them waits.
func TestConcurrentPullsJoin(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	s := openStore(t, Config{Root: t.TempDir()})
	push(t, r, "a:1", simple(t, "one"))
	release := make(chan struct{})
	r.Break(holdUntil(registry.Blobs, release))
	first, leave := context.WithCancel(t.Context())
	var group sync.WaitGroup
	results := make([]error, 6)
	for i := range results {
		ctx := t.Context()
		if i == 0 {
			ctx = first
		}
		group.Add(1)
		go func() {
			defer group.Done()
			_, results[i] = s.Pull(ctx, host+"/a:1", PullOptions{Progress: func(Progress) {}})
		}()
	}
	eventually(t, func() string {
		s.flights.mu.Lock()
		defer s.flights.mu.Unlock()
		for _, f := range s.flights.open {
			if f.waiters == len(results) {
				return ""
			}
		}
		return "pulls don't join"
	})
	leave()
	eventually(t, func() string {
		s.flights.mu.Lock()
		defer s.flights.mu.Unlock()
		for _, f := range s.flights.open {
			if f.waiters == len(results)-1 {
				return ""
			}
		}
		return "the first caller doesn't leave"
	})
	close(release)
	group.Wait()
	if !errors.Is(results[0], context.Canceled) {
		t.Errorf("the caller that left: got %v", results[0])
	}
	for i, err := range results[1:] {
		if err != nil {
			t.Errorf("caller %d: %v", i+1, err)
		}
	}
	heads := 0
	for _, req := range r.Requests() {
		if req.Method == "HEAD" && strings.HasSuffix(req.Path, "/manifests/1") {
			heads++
		}
	}
	if heads != 1 {
		t.Errorf("the registry was asked %d times, want once", heads)
	}
}

func TestPullNobodyWaitsForIsCancelled(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	s := openStore(t, Config{Root: t.TempDir()})
	push(t, r, "a:1", simple(t, "one"))
	r.Break(registry.Hang(registry.Blobs))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := s.Pull(ctx, host+"/a:1", PullOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("took %v", took)
	}
	done := make(chan struct{})
	go func() { s.flights.running.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("the pull goes on")
	}
	if len(s.List()) != 0 {
		t.Error("a cancelled pull is visible")
	}
	r.Break()
	pull(t, s, host+"/a:1")
}

func TestDifferentImagesShareLayersWhilePulled(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	s := openStore(t, Config{Root: t.TempDir()})
	base := layer(t, registry.Gzip, registry.Regular("base", 0o644, strings.Repeat("base", 100000)))
	const n = 8
	for i := range n {
		push(t, r, "a:"+string(rune('a'+i)), build(t, "amd64", v1.Config{}, base, base,
			layer(t, registry.Gzip, registry.Regular("own", 0o644, string(rune('a'+i))))))
	}
	var group sync.WaitGroup
	for i := range n {
		group.Add(1)
		go func() {
			defer group.Done()
			img, err := s.Pull(t.Context(), host+"/a:"+string(rune('a'+i)), PullOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			if got := readLayer(t, s, img.ID, "own"); got != string(rune('a'+i)) {
				t.Errorf("got %q", got)
			}
		}()
	}
	group.Wait()
	if len(s.List()) != n {
		t.Errorf("got %d images, want %d", len(s.List()), n)
	}
}

// holdUntil answers only after release is closed.
func holdUntil(match registry.Match, release <-chan struct{}) registry.Fault {
	return func(_ http.ResponseWriter, req *http.Request, _ http.Handler) bool {
		if match(req) {
			select {
			case <-release:
			case <-req.Context().Done():
			}
		}
		return false
	}
}
