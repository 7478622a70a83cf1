package spec

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	imagev1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Whatever a client sends and an image brings: no crash, a refusal that names a field, or a plan that init can read.
func FuzzContainer(f *testing.F) {
	cases, err := filepath.Glob("testdata/*/container.json")
	if err != nil || len(cases) == 0 {
		f.Fatalf("found %v, %v", cases, err)
	}
	for _, file := range cases {
		var wire [2][]byte
		for i, m := range []proto.Message{&criv1.ContainerConfig{}, &criv1.PodSandboxConfig{}} {
			raw, err := os.ReadFile(filepath.Join(filepath.Dir(file), []string{"container.json", "sandbox.json"}[i]))
			if err == nil {
				err = protojson.Unmarshal(raw, m)
			}
			if err == nil {
				wire[i], err = proto.Marshal(m)
			}
			if err != nil {
				f.Fatal(err)
			}
		}
		f.Add(wire[0], wire[1], []byte(`{ "User": "app", "Env": [ "A=b" ], "Volumes": { "/v": {} }, "StopSignal": "SIGINT", "Entrypoint": [ "/x" ] }`), true)
	}
	f.Fuzz(func(t *testing.T, containerBytes, sandboxBytes, imageBytes []byte, v1 bool) {
		container, sandbox := &criv1.ContainerConfig{}, &criv1.PodSandboxConfig{}
		g := goldenInput{CgroupVersion: 2, Passwd: "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n", Group: "app:x:1000:\n"}
		if v1 {
			g.CgroupVersion = 1
		}
		if proto.Unmarshal(containerBytes, container) != nil || proto.Unmarshal(sandboxBytes, sandbox) != nil || json.Unmarshal(imageBytes, &g.Image) != nil {
			return
		}
		in := g.containerInput(container, sandbox)
		for _, validate := range []func() error{
			func() error { return ValidateSandbox(sandbox, in.Node) }, func() error { return ValidateContainer(container, sandbox, in.Node) },
		} {
			if err := validate(); err != nil {
				if !errors.Is(err, ErrInvalid) {
					t.Fatalf("%v is not ErrInvalid", err)
				}
				return
			}
		}
		imageParts(t, &g.Image, container, sandbox)
		s, err := Container(in)
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("%v is of no kind", err)
			}
			return
		}
		if l, err := Compile(s, CompileInput{ID: in.ID, Node: in.Node}); err == nil {
			checkLaunchable(t, l)
			for _, n := range l.Needs {
				if sub := n.Image.SubPath; sub != "" && !filepath.IsLocal(sub) {
					t.Fatalf("sub path %q", sub)
				}
			}
		} else if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
			t.Fatalf("%v is of no kind", err)
		}
	})
}

// imageParts are derived beside the spec.
func imageParts(t *testing.T, image *imagev1.ImageConfig, container *criv1.ContainerConfig, sandbox *criv1.PodSandboxConfig) {
	t.Helper()
	if volumes, err := ImageVolumes(*image, container); err == nil {
		for _, v := range volumes {
			if !filepath.IsAbs(v) || filepath.Clean(v) != v {
				t.Fatalf("volume %q", v)
			}
		}
	}
	if signal, err := StopSignal(container, *image); err == nil && (signal < 1 || signal > 64) {
		t.Fatalf("stop signal %d", signal)
	}
	if path, err := LogPath(container, sandbox); err == nil && path != "" && !filepath.IsAbs(path) {
		t.Fatalf("log path %q", path)
	}
	SandboxNamespaces(sandbox)
	Sysctls(sandbox)
	SeccompProfile(container)
	AppArmorProfile(container)
}
