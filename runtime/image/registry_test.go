package image

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/podwright/podwright/test/e2e/registry"
)

func TestRegistryThatLiesIsRefused(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	img := build(t, "amd64", v1.Config{}, layer(t, registry.Gzip, registry.Regular("a", 0o644, strings.Repeat("abc", 10000))))
	digest := push(t, r, "a:latest", img)
	other := push(t, r, "a:other", simple(t, "other"))
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	layerDigest, _ := layers[0].Digest()
	configDigest, _ := img.ConfigName()
	isLayer, isConfig := registry.Blob(layerDigest.String()), registry.Blob(configDigest.String())
	bomb := make([]byte, 9<<20)
	for name, c := range map[string]struct {
		fault registry.Fault
		want  error
	}{
		"digest that isn't the tag's": {registry.LieAboutDigest(someDigest), ErrDigestMismatch},
		"digest as path":              {registry.LieAboutDigest("sha256:../../../etc/passwd"), nil},
		"another digest algorithm":    {registry.LieAboutDigest("sha512:" + strings.Repeat("0", 128)), ErrInvalidImage},
		"corrupt manifest":            {registry.Corrupt(registry.Manifests), ErrDigestMismatch},
		"corrupt config":              {registry.Corrupt(isConfig), ErrDigestMismatch},
		"corrupt layer":               {registry.Corrupt(isLayer), ErrDigestMismatch},
		"cut layer":                   {registry.Truncate(isLayer, 10), nil},
		"other content of same size":  {registry.Replace(isLayer, make([]byte, 1)), nil},
		"layer without end":           {registry.Replace(isLayer, bomb), nil},
		"manifest without end":        {registry.Replace(registry.Manifests, bomb), nil},
		"index type":                  {registry.ContentType(ocispec.MediaTypeImageIndex), ErrInvalidImage},
		"docker type":                 {registry.ContentType(images.MediaTypeDockerSchema2Manifest), ErrInvalidImage},
		"text":                        {registry.ContentType("text/html"), ErrInvalidImage},
		"schema 1":                    {registry.ContentType(images.MediaTypeDockerSchema1Manifest), ErrInvalidImage},
		"not found":                   {registry.Status(registry.Manifests, http.StatusNotFound), ErrNotFound},
		"layer not found":             {registry.Status(isLayer, http.StatusNotFound), ErrNotFound},
		"forbidden":                   {registry.Status(registry.Everything, http.StatusForbidden), ErrUnauthorized},
		"server error":                {registry.Status(registry.Everything, http.StatusInternalServerError), ErrUnavailable},
		"bad gateway on layer":        {registry.Status(isLayer, http.StatusBadGateway), ErrUnavailable},
		"too many requests":           {registry.Status(registry.Everything, http.StatusTooManyRequests), ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, Config{Root: t.TempDir()})
			r.Break(c.fault)
			got, err := s.Pull(t.Context(), host+"/a", PullOptions{})
			if err == nil {
				t.Fatalf("pulled %+v", got)
			}
			if c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if c.want != nil && !strings.Contains(err.Error(), c.want.Error()) {
				t.Errorf("the text doesn't say %q: %v", c.want, err)
			}
			if errors.Is(err, ErrUnavailable) != strings.HasPrefix(err.Error(), "RegistryUnavailable") {
				t.Errorf("kubelet reads the beginning: %v", err)
			}
			if !strings.Contains(err.Error(), host+"/a:latest") || len(err.Error()) > 4096 {
				t.Errorf("the error doesn't name the image: %v", err)
			}
			if len(s.List()) != 0 {
				t.Errorf("half an image is visible: %+v", s.List())
			}
			// Whatever came before, a sound registry makes it good.
			r.Break()
			if got := pull(t, s, host+"/a"); readLayer(t, s, got.ID, "a") != strings.Repeat("abc", 10000) {
				t.Error("wrong content afterwards")
			}
		})
	}
	s := openStore(t, Config{Root: t.TempDir()})
	r.Break(registry.Replace(registry.Manifests, []byte("{}")))
	if _, err := s.Pull(t.Context(), host+"/a@"+digest, PullOptions{}); err == nil {
		t.Error("other content by digest was taken")
	}
	r.Break()
	if _, err := s.Pull(t.Context(), host+"/a@"+someDigest, PullOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown digest: got %v", err)
	}
	pull(t, s, host+"/a@"+other)
}

// A manifest whose layers don't unpack to what its config says.
func TestWrongDiffIDIsRefused(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	s := openStore(t, Config{Root: t.TempDir()})
	honest := simple(t, "honest")
	push(t, r, "a:1", honest)
	push(t, r, "a:2", simple(t, "other"))
	manifest := manifestOf(t, honest)
	manifest.Layers = manifestOf(t, simple(t, "other")).Layers
	putManifest(t, r, "a", "bad", manifest)
	if _, err := s.Pull(t.Context(), host+"/a:bad", PullOptions{}); !errors.Is(err, ErrDigestMismatch) {
		t.Errorf("got %v, want ErrDigestMismatch", err)
	}
	manifest.Layers = append(manifest.Layers, manifest.Layers[0])
	putManifest(t, r, "a", "bad", manifest)
	if _, err := s.Pull(t.Context(), host+"/a:bad", PullOptions{}); !errors.Is(err, ErrInvalidImage) {
		t.Errorf("one layer too many: got %v, want ErrInvalidImage", err)
	}
}

func manifestOf(t *testing.T, img v1.Image) ocispec.Manifest {
	t.Helper()
	data, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(data, &manifest); err != nil {
		t.Fatal(err)
	}
	return manifest
}

func putManifest(t *testing.T, r *registry.Registry, repository, tag string, manifest ocispec.Manifest) {
	t.Helper()
	data, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.PushRaw(repository, tag, ocispec.MediaTypeImageManifest, data); err != nil {
		t.Fatal(err)
	}
}

// Garbage that is truly what its digests say.
func TestLayerThatIsNoTarIsRefused(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	s := openStore(t, Config{Root: t.TempDir()})
	noise := make([]byte, 5000)
	rand.Read(noise)
	noise[0] = 'x'
	for name, packing := range map[string]registry.Packing{"gzip": registry.Gzip, "zstd": registry.Zstd, "plain": registry.Plain} {
		l, err := registry.Pack(packing, noise)
		if err != nil {
			t.Fatal(err)
		}
		push(t, r, "noise:"+name, build(t, "amd64", v1.Config{}, l))
		if _, err := s.Pull(t.Context(), host+"/noise:"+name, PullOptions{}); !errors.Is(err, ErrInvalidImage) {
			t.Errorf("%s: got %v, want ErrInvalidImage", name, err)
		}
	}
	if err := s.StartGC(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if layers, blobs := onDisk(t, s.root); layers+blobs > 0 {
			return fmt.Sprintf("left on disk: %d layers, %d blobs", layers, blobs)
		}
		return ""
	})
}

// B43.
func TestPullWithoutProgressIsAborted(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	s := openStore(t, Config{Root: t.TempDir(), ProgressTimeout: 300 * time.Millisecond})
	push(t, r, "a:1", build(t, "amd64", v1.Config{},
		layer(t, registry.Plain, registry.Regular("a", 0o644, strings.Repeat("a", 300000)))))
	for name, fault := range map[string]registry.Fault{
		"no answer at all":          registry.Hang(registry.Everything),
		"no layer":                  registry.Hang(registry.Blobs),
		"layer stops in the middle": registry.HangAfter(registry.Blobs, 100),
	} {
		r.Break(fault)
		begin := time.Now()
		_, err := s.Pull(t.Context(), host+"/a:1", PullOptions{})
		if !errors.Is(err, ErrNoProgress) || !strings.HasPrefix(err.Error(), "RegistryUnavailable: ") || !strings.Contains(err.Error(), "300ms") {
			t.Errorf("%s: got %v, want a clear ErrNoProgress", name, err)
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
	// Slow is not stuck: in all this takes longer than the timeout.
	r.Break(registry.Trickle(registry.Blobs, 20000, 50*time.Millisecond))
	begin := time.Now()
	var seen []Progress
	if _, err := s.Pull(t.Context(), host+"/a:1", PullOptions{Progress: func(p Progress) { seen = append(seen, p) }}); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took < 500*time.Millisecond {
		t.Errorf("took only %v, which shows nothing", took)
	}
	halfway := 0
	for i, p := range seen {
		if p.BytesDone > p.BytesTotal || p.LayersTotal > 1 || i > 0 && p.BytesDone < seen[i-1].BytesDone {
			t.Errorf("progress: got %+v after %+v", p, seen[max(i-1, 0)])
		}
		if p.BytesDone > 0 && p.BytesDone < p.BytesTotal {
			halfway++
		}
	}
	if halfway == 0 {
		t.Errorf("no progress is reported: %+v", seen)
	}
}

func TestStuckRegistryHoldsUpNobodyElse(t *testing.T) {
	stuck, sound := registry.New(registry.Config{}), registry.New(registry.Config{})
	stuckHost, soundHost := serve(t, stuck), serve(t, sound)
	s := openStore(t, Config{Root: t.TempDir()})
	for i := range 8 {
		push(t, stuck, fmt.Sprintf("a:%d", i), simple(t, fmt.Sprint("stuck", i)))
	}
	push(t, sound, "a:1", simple(t, "sound"))
	stuck.Break(registry.Hang(func(req *http.Request) bool { return registry.Blobs(req) && req.Method == http.MethodGet }))
	for i := range 8 {
		go s.Pull(t.Context(), fmt.Sprintf("%s/a:%d", stuckHost, i), PullOptions{}) // ended by the store's Close
	}
	eventually(t, func() string {
		if n := len(stuck.Requests()); n == 0 {
			return "no pull hangs"
		}
		return ""
	})
	begin := time.Now()
	pull(t, s, soundHost+"/a:1")
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	begin = time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("close took %v", took)
	}
	if _, err := s.Pull(t.Context(), soundHost+"/a:1", PullOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("pull after close: got %v", err)
	}
}

func TestRefusedConnectionIsUnavailable(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	s := openStore(t, Config{Root: t.TempDir()})
	_, err = s.Pull(t.Context(), address+"/a:1", PullOptions{})
	if !errors.Is(err, ErrUnavailable) || !strings.HasPrefix(err.Error(), "RegistryUnavailable: ") {
		t.Errorf("got %v", err)
	}
	for _, ref := range []string{"", "A/B", someDigest, strings.TrimPrefix(someDigest, "sha256:")} {
		if _, err := s.Pull(t.Context(), ref, PullOptions{}); ref != someDigest && !errors.Is(err, ErrInvalidReference) {
			t.Errorf("%q: got %v, want ErrInvalidReference", ref, err)
		}
	}
}
