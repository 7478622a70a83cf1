package seccomp

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/podwright/podwright/seccompprofiles"
)

// TestCompileProfileOncePerProfileAndCaps: the order of capabilities doesn't
// matter, their set does; equal outcomes share one filter.
func TestCompileProfileOncePerProfileAndCaps(t *testing.T) {
	c := newCompiler(t, "amd64")
	compileWith := func(caps ...string) *Filter {
		t.Helper()
		filter, _, err := c.CompileProfile(seccompprofiles.Default(), caps)
		if err != nil {
			t.Fatal(err)
		}
		return filter
	}
	first := compileWith("CAP_CHOWN", "CAP_SYS_CHROOT")
	if second := compileWith("CAP_SYS_CHROOT", "CAP_CHOWN", "CAP_CHOWN"); second != first {
		t.Error("the same set in another order was compiled again")
	}
	if plain := compileWith("CAP_SYS_CHROOT"); plain != first {
		t.Error("a capability no rule asks for made another filter")
	}
	if admin := compileWith("CAP_SYS_ADMIN"); admin.Digest == first.Digest {
		t.Error("another set gave the same filter")
	}
	if _, _, err := c.CompileProfile(seccompprofiles.Default(), []string{"CAP_MAGIC"}); err == nil {
		t.Error("an unknown capability was taken")
	}
	var profileErr *seccompprofiles.Error
	if _, _, err := c.CompileProfile([]byte(`{"defaultAction": 1}`), nil); !errors.As(err, &profileErr) || profileErr.Column != 19 {
		t.Errorf("a bad profile: got %v, want its place", err)
	}
}

func TestCacheBuildsOnceAndForgets(t *testing.T) {
	c := newCache[int](2)
	var built atomic.Int32
	var wait sync.WaitGroup
	for range 16 {
		wait.Go(func() {
			if v, err := c.get(digest{1}, func() (int, error) { built.Add(1); return 7, nil }); v != 7 || err != nil {
				t.Errorf("got %d, %v", v, err)
			}
		})
	}
	wait.Wait()
	if built.Load() != 1 {
		t.Errorf("built %d times, want once", built.Load())
	}
	count := func() (int, error) { return int(built.Add(1)), nil }
	c.get(digest{2}, count)
	c.get(digest{1}, count) // the most recently used now
	c.get(digest{3}, count) // drops 2
	before := built.Load()
	if c.get(digest{1}, count); built.Load() != before {
		t.Error("the recently used entry is gone")
	}
	if c.get(digest{2}, count); built.Load() != before+1 {
		t.Error("the cache keeps more than its limit")
	}
	fails := func() (int, error) { return 0, errors.New("no") }
	if _, err := c.get(digest{4}, fails); err == nil {
		t.Error("no error")
	}
	if v, err := c.get(digest{4}, func() (int, error) { return 5, nil }); v != 5 || err != nil {
		t.Errorf("after an error: got %d, %v, want 5", v, err)
	}
	if c.order.Len() != len(c.entries) || c.order.Len() > 2 {
		t.Errorf("%d in order, %d entries", c.order.Len(), len(c.entries))
	}
}

func BenchmarkCompileDefault(b *testing.B) {
	for _, arch := range []string{"amd64", "arm64"} {
		b.Run(arch, func(b *testing.B) {
			for b.Loop() {
				filter, _, err := newCompiler(b, arch).CompileProfile(seccompprofiles.Default(), defaultCaps)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(filter.Instructions()), "instructions")
			}
		})
	}
}

func BenchmarkCompileProfileCached(b *testing.B) {
	c, raw := newCompiler(b, "amd64"), seccompprofiles.Default()
	for b.Loop() {
		if _, _, err := c.CompileProfile(raw, defaultCaps); err != nil {
			b.Fatal(err)
		}
	}
}
