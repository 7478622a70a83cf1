// Package imageset makes the images that critest pulls by their public names.
// It owns what is in them: the same user, entry point, ports and behaviour as upstream's as
// far as a spec relies on it; it may not know a runtime or be bent to one.
// Source: images/ and pkg/validate of sigs.k8s.io/cri-tools, test/images of Kubernetes.
package imageset

import (
	"fmt"
	"os"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Config says what the images are made of.
type Config struct {
	BusyboxDir string // a tree with busybox under the names of all its applets
	Program    string // the static executable of ../program
}

// Image is one public name and what it stands for; exactly one of Index and Single is set.
type Image struct {
	Name   string
	Index  v1.ImageIndex
	Single v1.Image
}

// DigestRepository is the image that a spec pulls by a digest written into its source.
const DigestRepository = "gcr.io/k8s-staging-cri-tools/test-image-digest"

const (
	e2e   = "registry.k8s.io/e2e-test-images/"
	tools = "gcr.io/k8s-staging-cri-tools/"
)

// builder holds the layers that images share.
type builder struct {
	busybox v1.Layer
	program []byte
	images  []Image
	err     error // the first; later steps do nothing
}

// Build makes every image of the suite.
func Build(config Config) ([]Image, error) {
	program, err := os.ReadFile(config.Program)
	if err != nil {
		return nil, fmt.Errorf("read program: %w", err)
	}
	busybox, err := busyboxLayer(config.BusyboxDir)
	if err != nil {
		return nil, err
	}
	b := &builder{busybox: busybox, program: program}
	b.add(e2e+"busybox:1.29-2", b.onBusybox(v1.Config{Cmd: []string{"sh"}}))
	b.servers()
	b.users()
	b.references()
	if b.err != nil {
		return nil, b.err
	}
	return b.images, nil
}

// servers are the images with a program of their own.
func (b *builder) servers() {
	nginx := v1.Config{Cmd: []string{"nginx", "-g", "daemon off;"}, StopSignal: "SIGTERM"}
	b.add(e2e+"nginx:1.14-2", b.onBusybox(nginx, b.nginxLayer("80")))
	// Named by architecture, it is no index upstream either.
	b.addSingle(tools+"hostnet-nginx-"+runtime.GOARCH+":latest", b.onBusybox(nginx, b.nginxLayer("12003")))
	b.add(e2e+"httpd:2.4.39-4", b.onBusybox(
		v1.Config{
			Cmd:        []string{"httpd-foreground"},
			WorkingDir: "/usr/local/apache2",
			Env:        []string{"PATH=/usr/local/apache2/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
		newLayerTar().
			dir("usr/local", 0o755).dir("usr/local/apache2", 0o755).dir("usr/local/apache2/bin", 0o755).
			file("usr/local/apache2/bin/httpd", 0o755, b.program).
			file("usr/local/apache2/bin/httpd-foreground", 0o755, []byte("#!/bin/sh\nexec httpd -D FOREGROUND\n"))))
	b.add(e2e+"nonewprivs:1.3", b.onBusybox(v1.Config{Entrypoint: []string{"/nnp"}},
		newLayerTar().file("nnp", 0o4755, b.program)))
	for _, version := range []string{"3.9", "3.10"} {
		// Two versions are two images; the same version is one in both registries.
		pause := b.make(v1.Config{
			User: "65535:65535", Entrypoint: []string{"/pause"}, Labels: map[string]string{"version": version},
		}, newLayerTar().file("pause", 0o755, b.program))
		b.add("registry.k8s.io/pause:"+version, pause)
		b.add("k8s.gcr.io/pause:"+version, pause)
	}
}

// users are the images whose configuration or /etc/group names a user.
func (b *builder) users() {
	for name, user := range map[string]string{
		"test-image-user-uid":            "1002",
		"test-image-user-username":       "www-data",
		"test-image-user-uid-group":      "1003:1004",
		"test-image-user-username-group": "www-data:1004",
	} {
		b.add(tools+name+":latest", b.onBusybox(v1.Config{Cmd: []string{"sh"}, User: user}))
	}
	b.add(tools+"test-image-predefined-group:latest", b.onBusybox(
		v1.Config{Cmd: []string{"sh"}, User: "1000"},
		newLayerTar().
			file("etc/passwd", 0o644, []byte(passwd+"default-user:x:1000:1000:Linux User,,,:/home/default-user:/bin/sh\n")).
			file("etc/group", 0o644, []byte(group+"default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")).
			dir("home/default-user", 0o755)))
}

// references are the images that the image specs pull, list and remove: busybox and a file
// that makes them differ.
func (b *builder) references() {
	marked := func(mark string) v1.Image {
		return b.onBusybox(v1.Config{Cmd: []string{"sh"}}, newLayerTar().file(mark, 0o644, nil))
	}
	for _, name := range []string{"test-image-1", "test-image-2", "test-image-3", "test-image-latest", "test-image-digest"} {
		b.add(tools+name+":latest", marked(name))
	}
	same := marked("same-image")
	for _, tag := range []string{"1", "2", "3"} {
		b.add(tools+"test-image-tags:"+tag, same)
	}
	for _, tag := range []string{"test", "all"} {
		b.add(tools+"test-image-tag:"+tag, marked(tag))
	}
}

// add publishes an image for this architecture the way upstream does: as an index in which
// it is not the only and not the first one.
func (b *builder) add(name string, image v1.Image) {
	foreign := "arm64"
	if runtime.GOARCH == foreign {
		foreign = "amd64"
	}
	other := b.make(v1.Config{Labels: map[string]string{"for": name}},
		newLayerTar().file("for-another-architecture", 0o644, nil))
	if b.err != nil {
		return
	}
	platform := func(image v1.Image, architecture string) mutate.IndexAddendum {
		return mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{
			MediaType: types.DockerManifestSchema2,
			Platform:  &v1.Platform{OS: "linux", Architecture: architecture},
		}}
	}
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.DockerManifestList),
		platform(other, foreign), platform(image, runtime.GOARCH))
	b.images = append(b.images, Image{Name: name, Index: index})
}

func (b *builder) addSingle(name string, image v1.Image) {
	b.images = append(b.images, Image{Name: name, Single: image})
}

// onBusybox makes an image of the busybox layer and the given ones above it.
func (b *builder) onBusybox(config v1.Config, above ...*layerTar) v1.Image {
	if config.Env == nil {
		config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	return b.assemble(config, []v1.Layer{b.busybox}, above)
}

func (b *builder) make(config v1.Config, layers ...*layerTar) v1.Image {
	return b.assemble(config, nil, layers)
}

func (b *builder) assemble(config v1.Config, layers []v1.Layer, above []*layerTar) v1.Image {
	for _, content := range above {
		layer, err := content.layer()
		if err != nil {
			b.err = err
			return nil
		}
		layers = append(layers, layer)
	}
	image, err := mutate.AppendLayers(empty.Image, layers...)
	if err == nil {
		image, err = mutate.ConfigFile(image, withConfig(image, config))
	}
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("assemble image: %w", err)
	}
	return image
}

// withConfig keeps the layers' part of an image's configuration file and sets the rest.
func withConfig(image v1.Image, config v1.Config) *v1.ConfigFile {
	file, err := image.ConfigFile()
	if err != nil {
		return &v1.ConfigFile{Config: config} // the caller's ConfigFile call reports it
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", runtime.GOARCH, config
	return file
}

// nginxLayer holds nginx as Debian's package and the image's configuration place it.
func (b *builder) nginxLayer(port string) *layerTar {
	return newLayerTar().
		file("usr/sbin/nginx", 0o755, b.program).
		dir("etc/nginx", 0o755).dir("etc/nginx/conf.d", 0o755).
		file("etc/nginx/conf.d/default.conf", 0o644, []byte("server {\n    listen       "+port+";\n}\n")).
		dir("var/log", 0o755).dir("var/log/nginx", 0o755).
		symlink("var/log/nginx/access.log", "/dev/stdout")
}
