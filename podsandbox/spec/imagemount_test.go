package spec

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func goodImageMount() *criv1.Mount {
	return &criv1.Mount{ContainerPath: "/models", Readonly: true, Image: &criv1.ImageSpec{Image: "sha256:abcd"}}
}

func TestImageMountsThatAreRefused(t *testing.T) {
	pod := []*criv1.IDMapping{{HostId: 200000, Length: 65536}}
	for _, c := range []struct {
		name, field string
		spoil       func(*criv1.Mount)
	}{
		{"host path too", "host_path", func(m *criv1.Mount) { m.HostPath = "/srv" }},
		{"image of no name", "image.image", func(m *criv1.Mount) { m.Image.Image = "" }},
		{"writable", "readonly", func(m *criv1.Mount) { m.Readonly = false }},
		{"mounts of the host", "propagation", func(m *criv1.Mount) { m.Propagation = criv1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER }},
		{"mounts for the host", "propagation", func(m *criv1.Mount) { m.Propagation = criv1.MountPropagation_PROPAGATION_BIDIRECTIONAL }},
		{"runtime handler", "image.runtime_handler", func(m *criv1.Mount) { m.Image.RuntimeHandler = "kata" }},
		{"over /proc", "container_path", func(m *criv1.Mount) { m.ContainerPath = "/proc" }},
		{"in place of what informs", "container_path", func(m *criv1.Mount) { m.ContainerPath = "/proc/cpuinfo" }},
		{"over /sys", "container_path", func(m *criv1.Mount) { m.ContainerPath = "/x/../sys/fs" }},
		{"over /dev", "container_path", func(m *criv1.Mount) { m.ContainerPath = "/dev/" }},
		{"over the root", "container_path", func(m *criv1.Mount) { m.ContainerPath = "/." }},
		{"absolute sub path", "image_sub_path", func(m *criv1.Mount) { m.ImageSubPath = "/etc" }},
		{"sub path upwards", "image_sub_path", func(m *criv1.Mount) { m.ImageSubPath = "a/../../etc" }},
		{"sub path with a line end", "image_sub_path", func(m *criv1.Mount) { m.ImageSubPath = "a\nb" }},
		{"NUL in a sub path", "image_sub_path", func(m *criv1.Mount) { m.ImageSubPath = "a\x00b" }},
		{"endless sub path", "image_sub_path", func(m *criv1.Mount) { m.ImageSubPath = strings.Repeat("a/", 3000) }},
		{"mapping without a user namespace", "uidMappings", func(m *criv1.Mount) { m.UidMappings, m.GidMappings = pod, pod }},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := goodContainer()
			config.Mounts = []*criv1.Mount{goodImageMount()}
			c.spoil(config.Mounts[0])
			wantField(t, ValidateContainer(config, goodSandbox(), testNode(2)), "mounts[0]."+c.field)
		})
	}
	sandbox := goodSandbox()
	sandbox.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &criv1.UserNamespace{Uids: pod, Gids: pod}
	config := goodContainer()
	other := []*criv1.IDMapping{{HostId: 200001, Length: 65535}}
	config.Mounts = []*criv1.Mount{goodImageMount()}
	config.Mounts[0].UidMappings, config.Mounts[0].GidMappings = other, other
	wantField(t, ValidateContainer(config, sandbox, testNode(2)), "mounts[0].uidMappings")
	config.Mounts[0].UidMappings, config.Mounts[0].GidMappings = pod, pod
	if err := ValidateContainer(config, sandbox, testNode(2)); err != nil {
		t.Errorf("the pod's mapping: %v", err)
	}
}

// The kubelet sets image_sub_path for the subPath of every volume, whose host path has it already.
func TestSubPathOfAHostPathIsTheKubeletsOwn(t *testing.T) {
	config := goodContainer()
	config.Mounts = []*criv1.Mount{{ContainerPath: "/data", HostPath: "/srv/below", ImageSubPath: "below"}}
	if err := ValidateContainer(config, goodSandbox(), testNode(2)); err != nil {
		t.Error(err)
	}
}

// Whoever edits a spec cannot turn an image into anything else.
func TestImageMountsOfAnEditedSpecStayWhatTheyAre(t *testing.T) {
	for _, options := range [][]string{
		nil, {"ro"}, {"rw", "nosuid", "nodev"}, {"ro", "nosuid", "nodev", "size=1"}, {"ro", "nosuid", "nodev", "noatime"}, {"ro", "nosuid", "nodev", "rshared"},
	} {
		s, in := goodSpec(t)
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/models", Type: imageType, Source: "sha256:abcd", Options: options})
		if _, err := Compile(s, in); !errors.Is(err, ErrUnsupported) {
			t.Errorf("options %q: got %v, want ErrUnsupported", options, err)
		}
	}
}
