package spec

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Every field of both messages is handled, refused, or inert for a reason. A field that a new cri-api brings makes
// this fail until somebody decides.
func TestEveryFieldIsDecided(t *testing.T) {
	used := map[string]bool{}
	for _, m := range []proto.Message{&criv1.PodSandboxConfig{}, &criv1.ContainerConfig{}} {
		walkFields(m.ProtoReflect().Descriptor(), string(m.ProtoReflect().Descriptor().Name()), func(path string, fd protoreflect.FieldDescriptor) bool {
			row, ok := fieldsByPath()[path]
			used[path] = ok
			below := fd.Message() != nil && !fd.IsMap()
			switch {
			case ok && row.Treatment != Handled && row.Reason == "":
				t.Errorf("%s has no reason", path)
			case ok && row.Treatment == Handled && below:
				t.Errorf("%s is a message: list its fields", path)
			case !ok && !below:
				t.Errorf("%s is neither handled, refused nor inert", path)
			}
			return !ok // what is below a refused or inert message is as it is
		})
	}
	for _, row := range Fields() {
		if !used[row.Path] {
			t.Errorf("%s is listed and is no field, or lies below another row", row.Path)
		}
	}
}

// walkFields visits every field below d; visit says whether to go below it.
func walkFields(d protoreflect.MessageDescriptor, path string, visit func(string, protoreflect.FieldDescriptor) bool) {
	for i := range d.Fields().Len() {
		fd := d.Fields().Get(i)
		at := path + "." + string(fd.Name())
		if visit(at, fd) && fd.Message() != nil && !fd.IsMap() {
			walkFields(fd.Message(), at, visit)
		}
	}
}

func TestEveryRefusedFieldIsRefusedByName(t *testing.T) {
	for _, row := range Fields() {
		if row.Treatment != Refused {
			continue
		}
		t.Run(row.Path, func(t *testing.T) {
			message, path, _ := strings.Cut(row.Path, ".")
			want, err := refusalOf(message, path)
			var field *FieldError
			if !errors.As(err, &field) || !errors.Is(err, ErrInvalid) {
				t.Fatalf("got %v, want a FieldError", err)
			}
			if field.Field != want || field.Problem != row.Reason {
				t.Errorf("got %+v, want field %s, problem %q", field, want, row.Reason)
			}
		})
	}
}

// refusalOf sets one field of an otherwise good configuration and validates it.
func refusalOf(message, path string) (string, error) {
	if message == "PodSandboxConfig" {
		config := goodSandbox()
		want := setField(config.ProtoReflect(), path)
		return want, ValidateSandbox(config, testNode(2))
	}
	config := goodContainer()
	want := setField(config.ProtoReflect(), path)
	return want, ValidateContainer(config, goodSandbox(), testNode(2))
}

// setField puts some value into a field, appending to lists on the way, and gives the name an error has for it.
func setField(m protoreflect.Message, path string) string {
	name, rest, more := strings.Cut(path, ".")
	fd := m.Descriptor().Fields().ByName(protoreflect.Name(name))
	switch {
	case !more && fd.IsList():
		list := m.Mutable(fd).List()
		list.Append(someValue(fd, list.NewElement()))
	case !more:
		m.Set(fd, someValue(fd, m.NewField(fd)))
	case fd.IsList():
		list := m.Mutable(fd).List()
		if list.Len() == 0 {
			list.Append(list.NewElement())
		}
		return name + "[0]." + setField(list.Get(0).Message(), rest)
	default:
		return name + "." + setField(m.Mutable(fd).Message(), rest)
	}
	return name
}

func someValue(fd protoreflect.FieldDescriptor, zero protoreflect.Value) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("/x")
	case protoreflect.MessageKind:
		return zero
	}
	panic("no sample for " + fd.FullName())
}

func TestInertFieldsAreAccepted(t *testing.T) {
	for _, row := range Fields() {
		message, path, _ := strings.Cut(row.Path, ".")
		if row.Treatment != Inert || strings.HasSuffix(path, "image.annotations") || strings.HasPrefix(path, "mounts.image.") || strings.HasSuffix(path, "supplemental_groups") || strings.HasSuffix(path, "policy") {
			continue // maps, numbers and enums have no sample, and a mount has one source; acceptance is the same code
		}
		if _, err := refusalOf(message, path); err != nil {
			t.Errorf("%s: %v", row.Path, err)
		}
	}
}

func TestUnknownEnumNumbersAreRefused(t *testing.T) {
	config := goodSandbox()
	config.Linux.SecurityContext.NamespaceOptions.Network = 7
	var field *FieldError
	if err := ValidateSandbox(config, testNode(2)); !errors.As(err, &field) || field.Field != "linux.security_context.namespace_options.network" || field.Value != "7" {
		t.Errorf("got %v, want a FieldError on network", err)
	}
}

func TestFieldsOfANewerClientAreReported(t *testing.T) {
	in := goodInput()
	raw := in.Config.ProtoReflect().GetUnknown()
	in.Config.ProtoReflect().SetUnknown(append(raw, 0xf8, 0x7f, 0x01)) // field 2047, varint 1
	s, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	if notes := strings.Join(Notes(s), "\n"); !strings.Contains(notes, "3 bytes of the request") {
		t.Errorf("got notes %q, want the unknown field", notes)
	}
}

func goodSandbox() *criv1.PodSandboxConfig {
	return &criv1.PodSandboxConfig{
		Metadata: &criv1.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "1-2"},
		Linux: &criv1.LinuxPodSandboxConfig{SecurityContext: &criv1.LinuxSandboxSecurityContext{
			NamespaceOptions: &criv1.NamespaceOption{Pid: criv1.NamespaceMode_CONTAINER},
		}},
	}
}

func goodContainer() *criv1.ContainerConfig {
	return &criv1.ContainerConfig{
		Metadata: &criv1.ContainerMetadata{Name: "main"},
		Image:    &criv1.ImageSpec{Image: "sha256:1"},
		Command:  []string{"/bin/app"},
		Mounts:   []*criv1.Mount{{ContainerPath: "/data", HostPath: "/srv"}},
		Linux:    &criv1.LinuxContainerConfig{SecurityContext: &criv1.LinuxContainerSecurityContext{}, Resources: &criv1.LinuxContainerResources{}},
	}
}

// goodInput is complete, for tests that spoil one thing.
func goodInput() ContainerInput {
	config := goodContainer()
	config.Linux.SecurityContext.NamespaceOptions = &criv1.NamespaceOption{Pid: criv1.NamespaceMode_CONTAINER}
	return (&goldenInput{Hostname: "web"}).containerInput(config, goodSandbox())
}
