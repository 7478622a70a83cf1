package node

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/test/e2e/registry"
)

func image(ref string) *criv1.ImageSpec { return &criv1.ImageSpec{Image: ref} }

func (n *node) imageStatus(t *testing.T, ref string) *criv1.Image {
	t.Helper()
	resp, err := n.images.ImageStatus(ctx(t), &criv1.ImageStatusRequest{Image: image(ref)})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetImage()
}

// One id everywhere, one answer for every name, and all names gone with any of them.
func TestImageIDsAndNamesB41B42(t *testing.T) {
	n := onNode(t)
	first := n.pulled(t, "node/named:1", v1.Config{User: "1000"})
	second := n.pulled(t, "node/named:2", v1.Config{User: "1000"})
	img := n.imageStatus(t, first)
	if img == nil || img.GetSize() == 0 || img.GetUid().GetValue() != 1000 || img.GetUsername() != "" || len(img.GetRepoTags()) != 2 || len(img.GetRepoDigests()) != 1 {
		t.Fatalf("image: got %v, want one with two tags, one digest, uid 1000", img)
	}
	names := append([]string{second, img.GetId(), strings.TrimPrefix(img.GetId(), "sha256:")[:12], first + "@" + strings.SplitN(img.GetRepoDigests()[0], "@", 2)[1]}, img.GetRepoDigests()...)
	for _, name := range names {
		if got := n.imageStatus(t, name); !proto.Equal(got, img) {
			t.Errorf("ImageStatus(%s): got %v, want %v", name, got, img)
		}
	}
	resp, err := n.images.PullImage(ctx(t), &criv1.PullImageRequest{Image: image(second)})
	if err != nil || resp.GetImageRef() != img.GetId() {
		t.Errorf("PullImage: got %v, %v, want %s", resp, err, img.GetId())
	}
	c := n.pod(t).create(func(c *criv1.ContainerConfig) { c.Image = image(img.GetId()); c.Image.UserSpecifiedImage = first }, "sleep", "1000")
	if s := c.status(); s.GetImageId() != img.GetId() || s.GetImageRef() != img.GetRepoDigests()[0] || s.GetImage().GetImage() != first {
		t.Errorf("container status: got image %v, ref %q, id %q", s.GetImage(), s.GetImageRef(), s.GetImageId())
	}
	list, err := n.images.ListImages(ctx(t), &criv1.ListImagesRequest{Filter: &criv1.ImageFilter{Image: image(second)}})
	if err != nil || len(list.GetImages()) != 1 || !proto.Equal(list.GetImages()[0], img) {
		t.Errorf("ListImages by name: got %v, %v", list, err)
	}
	// Removed while in use: gone from the lists at once, and the container keeps what it needs (B47).
	if _, err := n.images.RemoveImage(ctx(t), &criv1.RemoveImageRequest{Image: image(first)}); err != nil {
		t.Fatal(err)
	}
	for _, name := range append(names, first) {
		if got := n.imageStatus(t, name); got != nil {
			t.Errorf("ImageStatus(%s) after removal by another name: got %v, want none", name, got)
		}
	}
	if err := c.tryStart(); err != nil {
		t.Fatal(err)
	}
	if got := c.exec("cat", "/etc/group"); !strings.Contains(got, "extra:x:2000") {
		t.Errorf("its files after the image's removal: got %q", got)
	}
	if s := c.status(); s.GetImageRef() == "" || s.GetImageId() != img.GetId() {
		t.Errorf("its status after the image's removal: got ref %q id %q", s.GetImageRef(), s.GetImageId())
	}
}

func TestImageFsInfo(t *testing.T) {
	n := onNode(t)
	resp, err := n.images.ImageFsInfo(ctx(t), &criv1.ImageFsInfoRequest{})
	if err != nil || len(resp.GetImageFilesystems()) != 1 {
		t.Fatalf("got %v, %v, want one file system", resp, err)
	}
	fs := resp.GetImageFilesystems()[0]
	if info, err := os.Stat(fs.GetFsId().GetMountpoint()); err != nil || !info.IsDir() || fs.GetUsedBytes().GetValue() < 1<<20 || fs.GetInodesUsed().GetValue() == 0 || fs.GetTimestamp() == 0 {
		t.Errorf("got %v (%v), want a directory and what a busybox takes", fs, err)
	}
}

// A registry that hangs, refuses, lies or serves broken bytes: a clear error, nothing visible, and afterwards the same
// pull works.
func TestBrokenRegistriesAreClearErrors(t *testing.T) {
	n := onNode(t)
	other := n.imageStatus(t, mustTestImage(t))
	defer hub.server.Break()
	for what, test := range map[string]struct {
		fault registry.Fault
		code  codes.Code
		words []string
	}{
		"refuses":             {registry.Status(registry.Everything, 403), codes.Unknown, []string{"403"}},
		"has an error":        {registry.Status(registry.Everything, 500), codes.Unknown, []string{"500"}},
		"hangs":               {registry.Hang(registry.Blobs), codes.Unknown, []string{"progress"}},
		"hangs half way":      {registry.HangAfter(registry.Blobs, 50), codes.Unknown, []string{"progress"}},
		"manifest of rubbish": {registry.Replace(registry.Manifests, []byte("<html>")), codes.Unknown, nil},
		"flips a bit":         {registry.Corrupt(registry.Blobs), codes.Unknown, nil},
		"ends too soon":       {registry.Truncate(registry.Blobs, 60), codes.Unknown, nil},
		"lies on the digest":  {registry.LieAboutDigest("sha256:" + strings.Repeat("ab", 32)), codes.Unknown, nil},
	} {
		t.Run(what, func(t *testing.T) {
			ref := "node/" + strings.ReplaceAll(what, " ", "-") + ":latest"
			name := pushUnique(t, ref, what)
			hub.server.Break(test.fault)
			begin := time.Now()
			_, err := n.images.PullImage(ctx(t), &criv1.PullImageRequest{Image: image(name)})
			wantError(t, err, test.code, append(test.words, name)...)
			if took := time.Since(begin); took > patient(20*time.Second) {
				t.Errorf("it took %s", took)
			}
			if got := n.imageStatus(t, name); got != nil {
				t.Errorf("image afterwards: got %v, want none", got)
			}
			hub.server.Break()
			if _, err := n.images.PullImage(ctx(t), &criv1.PullImageRequest{Image: image(name)}); err != nil {
				t.Errorf("the same pull from a sound registry: %v", err)
			}
			got := n.pod(t).output(func(c *criv1.ContainerConfig) { c.Image = image(name) }, "cat", "/unique")
			if got != what {
				t.Errorf("its own layer: got %q, want %q", got, what)
			}
			if _, err := n.images.RemoveImage(ctx(t), &criv1.RemoveImageRequest{Image: image(name)}); err != nil {
				t.Error(err)
			}
		})
	}
	if now := n.imageStatus(t, mustTestImage(t)); !proto.Equal(now, other) {
		t.Errorf("another image: got %v, want %v as before", now, other)
	}
}

// pushUnique serves an image with a layer that no other has, in which /unique is text.
func pushUnique(t *testing.T, ref, text string) string {
	t.Helper()
	layer, err := registry.Layer(registry.Zstd, registry.Regular("unique", 0o644, text))
	if err != nil {
		t.Fatal(err)
	}
	img, err := registry.Image(runtime.GOARCH, v1.Config{}, append(slices.Clone(hub.layers), layer)...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hub.server.Push(ref, img); err != nil {
		t.Fatal(err)
	}
	return hub.address + "/" + ref
}

func mustTestImage(t *testing.T) string {
	t.Helper()
	ref, err := testImage()
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// A client that gives up does not fail those that come after it (B44).
func TestPullWithADeadCallerHarmsNobody(t *testing.T) {
	n := onNode(t)
	name, err := push("node/impatient:1", v1.Config{User: "78"})
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := contextWithTimeout(time.Millisecond)
	n.images.PullImage(short, &criv1.PullImageRequest{Image: image(name)})
	cancel()
	if n.pulled(t, "node/impatient:1", v1.Config{User: "78"}); n.imageStatus(t, name) == nil {
		t.Error("no image after the second pull")
	}
}

// podwright's own command: an archive of docker save, a pull, the list, removal.
func TestImageCommands(t *testing.T) {
	n := onNode(t)
	tag, err := name.NewTag("example.org/by/archive:7")
	if err != nil {
		t.Fatal(err)
	}
	layer, err := registry.Layer(registry.Plain, registry.Regular("unique", 0o644, "archived"))
	if err != nil {
		t.Fatal(err)
	}
	img, err := registry.Image(runtime.GOARCH, v1.Config{}, append(slices.Clone(hub.layers), layer)...)
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(archive, tag, img); err != nil {
		t.Fatal(err)
	}
	pulled := pushUnique(t, "node/by-command:1", "pulled")
	for _, args := range [][]string{{"load", archive}, {"pull", pulled}, {"list"}} {
		out, err := n.podwright(append([]string{"image"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		if args[0] == "list" && (!strings.Contains(out, tag.Name()) || !strings.Contains(out, pulled)) {
			t.Errorf("image list: got %q, want %s and %s", out, tag.Name(), pulled)
		}
	}
	for ref, want := range map[string]string{tag.Name(): "archived", pulled: "pulled"} {
		if got := n.pod(t).output(func(c *criv1.ContainerConfig) { c.Image = image(ref) }, "cat", "/unique"); got != want {
			t.Errorf("%s: got %q, want %q", ref, got, want)
		}
	}
	if _, err := n.podwright("image", "rm", tag.Name(), pulled); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{tag.Name(), pulled} {
		if got := n.imageStatus(t, ref); got != nil {
			t.Errorf("%s after rm: got %v, want none", ref, got)
		}
	}
	if out, err := n.podwright("image", "load", "/etc/passwd"); err == nil {
		t.Errorf("loading what is no archive: got %q, want an error", out)
	}
}

// Everything the runtime says about itself.
func TestVersionStatusAndConfig(t *testing.T) {
	n := onNode(t)
	version, err := n.Version(ctx(t), &criv1.VersionRequest{})
	if err != nil || version.GetVersion() == "" || version.GetRuntimeName() != "podwright" || version.GetRuntimeVersion() == "" || version.GetRuntimeApiVersion() != "v1" {
		t.Errorf("Version: got %v, %v", version, err)
	}
	status, err := n.Status(ctx(t), &criv1.StatusRequest{Verbose: true})
	if err != nil || len(status.GetRuntimeHandlers()) == 0 || status.GetRuntimeHandlers()[0].GetName() != "" || status.GetInfo()["config"] == "" {
		t.Errorf("Status: got %v, %v, want the handler \"\" and the configuration", status, err)
	}
	for _, c := range status.GetStatus().GetConditions() {
		if !c.GetStatus() {
			t.Errorf("condition: got %v, want true", c)
		}
	}
	config, err := n.RuntimeConfig(ctx(t), &criv1.RuntimeConfigRequest{})
	if err != nil || config.GetLinux() == nil {
		t.Errorf("RuntimeConfig: got %v, %v, want a cgroup driver", config, err)
	}
	// An update without a CIDR is fine (B56); one that is none is refused by name.
	if _, err := n.UpdateRuntimeConfig(ctx(t), &criv1.UpdateRuntimeConfigRequest{RuntimeConfig: &criv1.RuntimeConfig{}}); err != nil {
		t.Errorf("UpdateRuntimeConfig without a CIDR: %v", err)
	}
	_, err = n.UpdateRuntimeConfig(ctx(t), &criv1.UpdateRuntimeConfigRequest{RuntimeConfig: &criv1.RuntimeConfig{NetworkConfig: &criv1.NetworkConfig{PodCidr: "10.0.0.0/99"}}})
	wantError(t, err, codes.InvalidArgument, "10.0.0.0/99")
}

// implemented are the RPCs of this stage; all others say so, with the code that clients fall back on.
var implemented = []string{
	"Version", "Status", "RuntimeConfig", "UpdateRuntimeConfig", "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "PodSandboxStatus",
	"ListPodSandbox", "CreateContainer", "StartContainer", "StopContainer", "RemoveContainer", "ListContainers", "ContainerStatus", "ExecSync",
	"PullImage", "ImageStatus", "ListImages", "RemoveImage", "ImageFsInfo",
	"Exec", "PortForward", "GetContainerEvents", "StreamPodSandboxes", "StreamContainers", "StreamImages",
	"UpdateContainerResources", "UpdatePodSandboxResources", "ReopenContainerLog", "Attach",
	"ContainerStats", "ListContainerStats", "StreamContainerStats", "PodSandboxStats", "ListPodSandboxStats", "StreamPodSandboxStats",
	"ListMetricDescriptors", "ListPodSandboxMetrics", "StreamPodSandboxMetrics",
}

func TestOtherCallsAreUnimplemented(t *testing.T) {
	n := onNode(t)
	called := 0
	for _, client := range []any{n.RuntimeServiceClient, n.images} {
		value := reflect.ValueOf(client)
		for i := range value.NumMethod() {
			name, method := value.Type().Method(i).Name, value.Method(i)
			if slices.Contains(implemented, name) || method.Type().NumIn() < 2 {
				continue
			}
			called++
			got := method.Call([]reflect.Value{reflect.ValueOf(context.Context(ctx(t))), reflect.New(method.Type().In(1).Elem())})
			err, _ := got[1].Interface().(error)
			if err == nil { // a stream answers on the first message
				if recv := got[0].MethodByName("Recv"); recv.IsValid() {
					err, _ = recv.Call(nil)[1].Interface().(error)
				}
			}
			t.Run(name, func(t *testing.T) { wantError(t, err, codes.Unimplemented, name) })
		}
	}
	if called < 3 {
		t.Errorf("called %d methods: the clients have more", called)
	}
}
