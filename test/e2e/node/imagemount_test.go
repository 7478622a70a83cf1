package node

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/test/e2e/registry"
)

// models pulls an image that nobody would run: of the layers given, the lowest first. It is removed after the test.
func (n *node) models(t *testing.T, ref string, layers ...[]registry.File) string {
	t.Helper()
	mustTestImage(t) // the registry
	var packed []v1.Layer
	for _, files := range layers {
		layer, err := registry.Layer(registry.Gzip, files...)
		if err != nil {
			t.Fatal(err)
		}
		packed = append(packed, layer)
	}
	img, err := registry.Image(runtime.GOARCH, v1.Config{User: "nobody-knows"}, packed...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hub.server.Push(ref, img); err != nil {
		t.Fatal(err)
	}
	name := hub.address + "/" + ref
	if _, err := n.images.PullImage(ctx(t), &criv1.PullImageRequest{Image: image(name)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := n.images.RemoveImage(context.Background(), &criv1.RemoveImageRequest{Image: image(name)}); err != nil {
			t.Error(err)
		}
	})
	return name
}

func imageMount(ref, at, sub string) *criv1.Mount {
	return &criv1.Mount{ContainerPath: at, Readonly: true, Image: image(ref), ImageSubPath: sub}
}

// modelFiles are two layers; the second hides a file of the first.
func modelFiles(name string) (bottom, top []registry.File) {
	bottom = []registry.File{
		registry.Dir("share", 0o755), registry.Dir("share/models", 0o755), registry.Regular("share/models/weights", 0o644, "weights of "+name+"\n"),
		registry.Regular("gone", 0o644, "x"), registry.Regular("run", 0o4755, "#!/bin/sh\nid -u\n"), registry.Link("latest", "/share/models"),
		registry.Regular("secret", 0o600, "root's\n"),
	}
	return bottom, []registry.File{registry.Regular(".wh.gone", 0, ""), registry.Dir("etc", 0o755), registry.Regular("etc/passwd", 0o644, "mallory\n")}
}

func TestImageMountShowsTheImage(t *testing.T) {
	n := onNode(t)
	bottom, top := modelFiles("two layers")
	ref := n.models(t, "models/two:1", bottom, top)
	id := n.imageStatus(t, ref).GetId()
	for name, change := range map[string][]func(*criv1.PodSandboxConfig){"the node's users": nil, "users of its own": {ownUser}} {
		t.Run(name, func(t *testing.T) {
			p := n.pod(t, change...)
			c := p.sleeper(func(c *criv1.ContainerConfig) {
				options := security(c).GetNamespaceOptions().GetUsernsOptions()
				c.Mounts = []*criv1.Mount{
					imageMount(id, "/models", ""), imageMount(ref, "/linked", "latest"), imageMount(ref, "/etc/weights", "share/models/weights"),
				}
				c.Mounts[0].UidMappings, c.Mounts[0].GidMappings = options.GetUids(), options.GetGids()
			})
			for script, want := range map[string]string{
				"cat /models/share/models/weights /linked/weights /etc/weights": "weights of two layers weights of two layers weights of two layers",
				"ls /models": "etc latest run secret share", "ls /linked": "weights", "ls /linked/..": strings.Join(strings.Fields(c.exec("ls", "/")), " "),
				"touch /models/x /linked/x 2>&1 | grep -c 'Read-only file system'":      "2",
				"echo x >>/etc/weights || echo no":                                      "no",
				"stat -c %u:%g /models /models/secret /etc/weights; cat /models/secret": "0:0 0:0 0:0 root's",
				"/models/run": "0", // KEP-4639 decided against noexec
				"grep ' /models ' /proc/self/mountinfo | grep -c ' ro,nosuid,nodev'": "1",
				"cat /etc/passwd | head -n 1 | cut -d: -f1":                          "root",
			} {
				if got := strings.Join(strings.Fields(c.exec("sh", "-c", script+" 2>/dev/null")), " "); got != want {
					t.Errorf("%s: got %q, want %q", script, got, want)
				}
			}
			for _, m := range c.status().GetMounts() {
				if m.GetImage().GetImageRef() != id || m.GetHostPath() != "" {
					t.Errorf("status: got mount %v, want the image's id in image_ref and no host path", m)
				}
			}
			// No set-user-ID: what is executed there runs as who executes it.
			if got := strings.TrimSpace(p.output(func(c *criv1.ContainerConfig) {
				c.Mounts = []*criv1.Mount{imageMount(mustTestImage(t), "/tools", "bin")}
				security(c).RunAsUser = &criv1.Int64Value{Value: 1000}
			}, "/tools/suid-probe", "id")); !strings.HasPrefix(got, "uid 1000 euid 1000") {
				t.Errorf("a set-user-ID program of an image mount: got %q", got)
			}
		})
	}
	if table, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(table), "overlay /") && strings.Contains(string(table), n.path("state", "images")) {
		t.Errorf("the node's mount table shows an image: %v", err)
	}
}

// What shares layers with every other container of an image may not be changed by one that has all power over its mounts.
func TestImageMountCannotBeMadeWritable(t *testing.T) {
	n := onNode(t)
	bottom, top := modelFiles("x")
	for name, ref := range map[string]string{"one layer": n.models(t, "models/one:1", bottom), "two layers": n.models(t, "models/two:2", bottom, top)} {
		for who, test := range map[string]struct {
			pod []func(*criv1.PodSandboxConfig)
			c   func(*criv1.ContainerConfig)
		}{
			"privileged": {[]func(*criv1.PodSandboxConfig){privilegedPod}, func(c *criv1.ContainerConfig) { security(c).Privileged = true }},
			"CAP_SYS_ADMIN in a user namespace": {[]func(*criv1.PodSandboxConfig){ownUser}, func(c *criv1.ContainerConfig) {
				security(c).Capabilities.AddCapabilities = []string{"SYS_ADMIN"}
			}},
		} {
			c := n.pod(t, test.pod...).sleeper(func(c *criv1.ContainerConfig) {
				test.c(c)
				c.Mounts = []*criv1.Mount{imageMount(ref, "/models", ""), imageMount(ref, "/part", "share")}
			})
			for _, at := range []string{"/models", "/part"} {
				got := c.exec("sh", "-c", "mount -o remount,rw,bind "+at+" 2>&1; touch "+at+"/made 2>&1; ls "+at+"/made 2>/dev/null || echo never")
				if !strings.HasSuffix(got, "never\n") || !strings.Contains(got, "Read-only file system") && !strings.Contains(got, "denied") {
					t.Errorf("%s, %s: write to %s: got %q, want it refused", name, who, at, got)
				}
			}
		}
	}
}

func TestImageMountsThatCannotBeAreRefused(t *testing.T) {
	n := onNode(t)
	bottom, _ := modelFiles("x")
	bottom = append(bottom, registry.Link("out", "../../../../etc"), registry.Link("loop", "loop"))
	ref := n.models(t, "models/refused:1", bottom)
	p := n.pod(t)
	refusals := map[string]refusal{}
	for name, test := range map[string]struct {
		mount *criv1.Mount
		code  codes.Code
		words []string
	}{
		"not pulled":            {imageMount("127.0.0.1:1/absent:1", "/m", ""), codes.NotFound, []string{"mounts[0].image.image", "127.0.0.1:1/absent:1"}},
		"malformed":             {imageMount("UPPER/case::", "/m", ""), codes.InvalidArgument, []string{"mounts[0].image.image", "UPPER/case::"}},
		"missing sub path":      {imageMount(ref, "/m", "share/absent"), codes.InvalidArgument, []string{"mounts[0]", "image_sub_path", "share/absent"}},
		"sub path upwards":      {imageMount(ref, "/m", "../../etc"), codes.InvalidArgument, []string{"mounts[0].image_sub_path", "../../etc"}},
		"sub path of the root":  {imageMount(ref, "/m", "/etc"), codes.InvalidArgument, []string{"mounts[0].image_sub_path", "/etc"}},
		"sub path below a file": {imageMount(ref, "/m", "run/x"), codes.InvalidArgument, []string{"image_sub_path", "run/x"}},
		// In the image as "/" there is no /etc.
		"link that climbs out":  {imageMount(ref, "/m", "out"), codes.InvalidArgument, []string{"image_sub_path", "out"}},
		"link to itself":        {imageMount(ref, "/m", "loop"), codes.InvalidArgument, []string{"image_sub_path", "loop"}},
		"host path too":         {&criv1.Mount{ContainerPath: "/m", HostPath: "/tmp", Readonly: true, Image: image(ref)}, codes.InvalidArgument, []string{"mounts[0].host_path"}},
		"writable":              {&criv1.Mount{ContainerPath: "/m", Image: image(ref)}, codes.InvalidArgument, []string{"mounts[0].readonly"}},
		"in place of /proc/sys": {imageMount(ref, "/proc/sys", ""), codes.InvalidArgument, []string{"/proc/sys"}},
	} {
		refusals[name] = refusal{change: func(c *criv1.ContainerConfig) { c.Mounts = []*criv1.Mount{test.mount} }, code: test.code, words: test.words}
	}
	testRefusals(t, p, refusals)
}

// layersWith counts the unpacked layers that hold a file of that name.
func (n *node) layersWith(t *testing.T, name string) int {
	t.Helper()
	found := 0
	err := filepath.WalkDir(n.path("state", "images"), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == name {
			found++
		}
		return nil // what is being collected may vanish under the walk
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// An image that is mounted is in use like one that is run: its name goes at once, its layers with its last container (B47).
func TestImageMountOutlivesItsImageAndTheDaemon(t *testing.T) {
	for name, signal := range map[string]os.Signal{"kill -9": syscall.SIGKILL, "graceful stop": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			n := ownNode(t, options{})
			n.watch(t)
			unique := fmt.Sprintf("only-here-%d", time.Now().UnixNano())
			ref := n.models(t, "models/"+unique+":1", []registry.File{registry.Regular(unique, 0o644, "kept\n")})
			id := n.imageStatus(t, ref).GetId()
			p := n.pod(t)
			mount := func(c *criv1.ContainerConfig) {
				c.Mounts = []*criv1.Mount{imageMount(ref, "/m", ""), imageMount(id, "/n", "")}
			}
			running, created := p.sleeper(mount), p.create(mount, "cat", "/m/"+unique)
			if _, err := n.images.RemoveImage(ctx(t), &criv1.RemoveImageRequest{Image: image(ref)}); err != nil {
				t.Fatal(err)
			}
			if got := n.imageStatus(t, id); got != nil {
				t.Errorf("ImageStatus after its removal: got %v, want none", got)
			}
			_, err := p.tryCreate(p.containerConfig(mount, "true"))
			wantError(t, err, codes.NotFound, "mounts[0].image.image", ref)
			n.restart(t, signal, nil)
			time.Sleep(2 * time.Second) // the collector has been there
			if got := running.exec("cat", "/m/"+unique, "/n/"+unique); got != "kept\nkept\n" {
				t.Errorf("the running container: got %q", got)
			}
			if err := created.tryStart(); err != nil {
				t.Fatal(err)
			}
			if s := created.wait(20 * time.Second); s.GetExitCode() != 0 || created.stream("stdout") != "kept\n" || s.GetMounts()[0].GetImage().GetImageRef() != id {
				t.Errorf("the created container: got %v, %q", s, created.stream("stdout"))
			}
			created.remove()
			time.Sleep(2 * time.Second)
			if got := n.layersWith(t, unique); got != 1 {
				t.Errorf("layers with the file, of which a container runs: got %d, want 1", got)
			}
			running.remove()
			eventually(t, 20*time.Second, "collection of the layer", func() bool { return n.layersWith(t, unique) == 0 })
		})
	}
}
