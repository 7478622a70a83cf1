package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// B49: an image's config is its author's text.
func TestParseConfigBoundsWhatImagesSay(t *testing.T) {
	many := func(n int, item string) string {
		return "[" + strings.TrimSuffix(strings.Repeat(item+",", n), ",") + "]"
	}
	object := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"k%d":{},`, i)
		}
		return "{" + strings.TrimSuffix(b.String(), ",") + "}"
	}
	for name, config := range map[string]string{
		"not JSON":            `{`,
		"array":               `[]`,
		"wrong type":          `{"config":{"Env":"A=b"}}`,
		"too much env":        `{"config":{"Env":` + many(maxConfigItems+1, `"A=b"`) + `}}`,
		"long env":            `{"config":{"Env":["A=` + strings.Repeat("b", maxConfigString) + `"]}}`,
		"long label":          `{"config":{"Labels":{"a":"` + strings.Repeat("b", maxConfigString+1) + `"}}}`,
		"NUL in command":      `{"config":{"Cmd":["a\u0000b"]}}`,
		"NUL in label":        `{"config":{"Labels":{"a\u0000":"b"}}}`,
		"NUL in working dir":  `{"config":{"WorkingDir":"/a\u0000"}}`,
		"too many volumes":    `{"config":{"Volumes":` + object(maxConfigItems+1) + `}}`,
		"too many layers":     `{"rootfs":{"type":"layers","diff_ids":` + many(maxLayers+1, `"`+someDigest+`"`) + `}}`,
		"rootfs of no layers": `{"rootfs":{"type":"foreign"}}`,
		"diff id as path":     `{"rootfs":{"type":"layers","diff_ids":["sha256:../../etc"]}}`,
		"too long":            `{"author":"` + strings.Repeat("a", maxConfigBytes) + `"}`,
	} {
		if _, err := parseConfig([]byte(config)); !errors.Is(err, ErrInvalidImage) {
			t.Errorf("%s: got %v, want ErrInvalidImage", name, err)
		}
	}
	good := `{"created":"yesterday","architecture":"amd64","os":"linux","config":{"Env":["A=b"],"Labels":null,"Healthcheck":{}},
		"rootfs":{"type":"layers","diff_ids":["` + someDigest + `"]},"history":[{}]}`
	config, err := parseConfig([]byte(good))
	if err != nil || config.Config.Env[0] != "A=b" || config.Architecture != "amd64" || !config.createdAt().IsZero() {
		t.Errorf("got %+v, %v", config, err)
	}
}

// B48: a number is never looked up as a name.
func TestParseUser(t *testing.T) {
	uid := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		in   string
		uid  *int64
		name string
		bad  bool
	}{
		{in: ""}, {in: ":5"},
		{in: "0", uid: uid(0)}, {in: "1000:2000", uid: uid(1000)}, {in: "0001", uid: uid(1)}, {in: "2147483647", uid: uid(2147483647)},
		{in: "nobody", name: "nobody"}, {in: "www-data:www", name: "www-data"}, {in: "1000a", name: "1000a"}, {in: "-", name: "-"},
		{in: "2147483648", bad: true}, {in: "4294967296", bad: true}, {in: "99999999999999999999", bad: true},
		{in: "-1", bad: true}, {in: "--1", bad: true}, {in: "+-0", bad: true},
	} {
		got, name, err := ParseUser(c.in)
		if (err != nil) != c.bad || name != c.name || (got == nil) != (c.uid == nil) || got != nil && *got != *c.uid {
			t.Errorf("%q: got %v, %q, %v; want %+v", c.in, got, name, err, c)
		}
	}
}

func TestManifestAndIndexAreNotConfused(t *testing.T) {
	config := `{"mediaType":"` + ocispec.MediaTypeImageConfig + `","digest":"` + someDigest + `","size":5}`
	layer := `{"mediaType":"` + ocispec.MediaTypeImageLayerGzip + `","digest":"` + someDigest + `","size":5}`
	entry := `{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"` + someDigest + `","size":5}`
	manifest := `"config":` + config + `,"layers":[` + layer + `]`
	index := `"manifests":[` + entry + `]`
	// CVE-2021-41190.
	for name, c := range map[string]struct{ mediaType, doc string }{
		"both":               {ocispec.MediaTypeImageManifest, `{` + manifest + `,` + index + `}`},
		"both, other case":   {ocispec.MediaTypeImageManifest, `{` + manifest + `,"Manifests":[]}`},
		"says it's an index": {ocispec.MediaTypeImageManifest, `{"mediaType":"` + ocispec.MediaTypeImageIndex + `",` + manifest + `}`},
		"index with layers":  {ocispec.MediaTypeImageIndex, `{` + index + `,"layers":[]}`},
		"index with config":  {ocispec.MediaTypeImageIndex, `{` + index + `,"config":{}}`},
		"docker as OCI":      {ocispec.MediaTypeImageManifest, `{"mediaType":"` + images.MediaTypeDockerSchema2Manifest + `",` + manifest + `}`},
		"key twice":          {ocispec.MediaTypeImageManifest, `{` + manifest + `,"config":` + config + `}`},
		"key twice, case":    {ocispec.MediaTypeImageManifest, `{` + manifest + `,"LAYERS":[]}`},
		"helm chart":         {ocispec.MediaTypeImageManifest, `{"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"` + someDigest + `","size":5}}`},
		"empty layer":        {ocispec.MediaTypeImageManifest, `{"config":` + config + `,"layers":[{"mediaType":"` + ocispec.MediaTypeImageLayer + `","digest":"` + someDigest + `","size":0}]}`},
		"negative size":      {ocispec.MediaTypeImageManifest, `{"config":` + config + `,"layers":[{"mediaType":"` + ocispec.MediaTypeImageLayer + `","digest":"` + someDigest + `","size":-1}]}`},
		"encrypted layer":    {ocispec.MediaTypeImageManifest, `{"config":` + config + `,"layers":[{"mediaType":"` + images.MediaTypeImageLayerEncrypted + `","digest":"` + someDigest + `","size":5}]}`},
		"digest as path":     {ocispec.MediaTypeImageManifest, `{"config":{"mediaType":"` + ocispec.MediaTypeImageConfig + `","digest":"sha256:../../../x","size":5}}`},
		"huge config":        {ocispec.MediaTypeImageManifest, `{"config":{"mediaType":"` + ocispec.MediaTypeImageConfig + `","digest":"` + someDigest + `","size":99999999}}`},
		"array":              {ocispec.MediaTypeImageManifest, `[]`},
		"nothing":            {ocispec.MediaTypeImageManifest, ``},
		"too many layers":    {ocispec.MediaTypeImageManifest, `{"config":` + config + `,"layers":[` + strings.Repeat(layer+",", maxLayers) + layer + `]}`},
	} {
		var err error
		if images.IsIndexType(c.mediaType) {
			_, err = parseIndex([]byte(c.doc), c.mediaType)
		} else {
			_, _, err = parseManifest([]byte(c.doc), c.mediaType)
		}
		if !errors.Is(err, ErrInvalidImage) {
			t.Errorf("%s: got %v, want ErrInvalidImage", name, err)
		}
	}
	_, layers, err := parseManifest([]byte(`{"schemaVersion":2,"config":`+config+`,"layers":[{"mediaType":"`+ocispec.MediaTypeImageLayerGzip+
		`","digest":"`+someDigest+`","size":5,"urls":["http://elsewhere/"],"annotations":{"containerd.io/snapshot/uidmapping":"0:1:2"},"data":"AAAA"}]}`),
		ocispec.MediaTypeImageManifest)
	if err != nil || len(layers) != 1 || layers[0].URLs != nil || layers[0].Annotations != nil || layers[0].Data != nil {
		t.Errorf("got %+v, %v; want a bare descriptor", layers, err)
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"` + ocispec.MediaTypeImageConfig + `","digest":"` + someDigest + `","size":5},"layers":[]}`))
	f.Add([]byte(`{"manifests":[{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"` + someDigest + `","size":5,"platform":{"os":"linux"}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		config, layers, manifestErr := parseManifest(data, ocispec.MediaTypeImageManifest)
		entries, indexErr := parseIndex(data, ocispec.MediaTypeImageIndex)
		if manifestErr == nil {
			for _, d := range append(layers, config) {
				if checkDigest(d.Digest) != nil || d.Size <= 0 {
					t.Fatalf("passed %+v", d)
				}
			}
		}
		if indexErr == nil {
			for _, d := range entries {
				if checkDigest(d.Digest) != nil || d.Size <= 0 {
					t.Fatalf("passed %+v", d)
				}
			}
			if manifestErr == nil {
				t.Fatalf("both manifest and index: %s", data)
			}
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"User":"1","Labels":{"a":"b"}},"rootfs":{"type":"layers","diff_ids":["` + someDigest + `"]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		config, err := parseConfig(data)
		if err != nil {
			if !errors.Is(err, ErrInvalidImage) {
				t.Fatal(err)
			}
			return
		}
		text, err := json.Marshal(config.Config)
		if err != nil || strings.Contains(string(text), `\u0000`) && !strings.Contains(string(text), `\\u0000`) {
			t.Fatalf("%s: %v", text, err)
		}
		config.createdAt()
		ParseUser(config.Config.User)
	})
}
