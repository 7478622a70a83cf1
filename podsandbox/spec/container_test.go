package spec

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	imagev1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Command replaces the entrypoint and drops the image's arguments; arguments replace those alone.
func TestArguments(t *testing.T) {
	image := imagev1.ImageConfig{Entrypoint: []string{"/e"}, Cmd: []string{"c"}}
	for _, c := range []struct {
		command, args, want string
		image               imagev1.ImageConfig
	}{
		{"", "", "/e c", image},
		{"/x", "", "/x", image},
		{"", "a", "/e a", image},
		{"/x", "a", "/x a", image},
		{"", "", "c", imagev1.ImageConfig{Cmd: []string{"c"}}},
		{"", "", "", imagev1.ImageConfig{}},
	} {
		config := &criv1.ContainerConfig{Command: strings.Fields(c.command), Args: strings.Fields(c.args)}
		got, err := argsOf(config, c.image)
		if c.want == "" {
			wantField(t, err, "command")
			continue
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("command %q, args %q: got %q, %v, want %q", c.command, c.args, got, err, c.want)
		}
	}
}

func TestHostileImagesAreRefused(t *testing.T) {
	for name, image := range map[string]imagev1.ImageConfig{
		"image.config.Env":        {Env: []string{"no equals sign"}},
		"image.config.Env ":       {Env: []string{"A=\x00"}},
		"image.config.Env  ":      {Env: []string{"A\nB=1"}},
		"image.config.Env   ":     {Env: []string{"=x"}},
		"image.config.Env    ":    {Env: slices.Repeat([]string{"A=1"}, imageEntries+1)},
		"image.config.Env     ":   {Env: []string{"A=" + strings.Repeat("x", imageBytes)}},
		"image.config.Cmd":        {Cmd: []string{"/bin/\x00"}},
		"image.config.Entrypoint": {Entrypoint: []string{strings.Repeat("x", imageBytes+1)}},
		"image.config.WorkingDir": {WorkingDir: "/a\nb"},
		"image.config.User":       {User: "99999999999"},
		"image.config.StopSignal": {StopSignal: "SIGNUKE"},
		"image.config.Volumes":    {Volumes: map[string]struct{}{"/proc/self": {}}},
		"image.config.Volumes ":   {Volumes: map[string]struct{}{"/x/../dev": {}}},
		"image.config.Volumes  ":  {Volumes: map[string]struct{}{"/": {}}},
		"image.config.Volumes   ": {Volumes: map[string]struct{}{"/not/made": {}}},
	} {
		in := goodInput()
		in.Image = image
		_, err := Container(in)
		wantField(t, err, strings.TrimSpace(name))
	}
}

// Nothing of an image's labels reaches what controls the container (CVE-2026-53488).
func TestImageLabelsGoNowhere(t *testing.T) {
	in := goodInput()
	in.Image.Labels = map[string]string{"evil.label": "binary:///bin/sh"}
	in.Image.ExposedPorts = map[string]struct{}{"31337/tcp": {}}
	s, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err := json.Marshal(s); err != nil || strings.Contains(string(raw), "evil") || strings.Contains(string(raw), "31337") {
		t.Errorf("got %s, %v", raw, err)
	}
}

func TestImagePathsStayBelowTheRoot(t *testing.T) {
	in := goodInput()
	in.Image.WorkingDir = "../../etc"
	in.Image.Volumes = map[string]struct{}{"../../srv": {}, "/data": {}}
	in.Volumes = map[string]string{"/srv": "/state/0"}
	s, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	if s.Process.Cwd != "/etc" {
		t.Errorf("got directory %s, want /etc", s.Process.Cwd)
	}
	got, err := ImageVolumes(in.Image, in.Config)
	if err != nil || !slices.Equal(got, []string{"/srv"}) { // /data is the request's
		t.Errorf("got volumes %q, %v, want /srv", got, err)
	}
}

func TestStopSignal(t *testing.T) {
	for _, c := range []struct {
		asked criv1.Signal
		image string
		want  int
	}{
		{0, "", 15}, {0, "SIGQUIT", 3}, {0, "usr1", 10}, {0, "9", 9}, {0, "SIGRTMIN+3", 37}, {0, "RTMAX-1", 63}, {0, "64", 64},
		{criv1.Signal_SIGNAL_SIGINT, "SIGQUIT", 2}, {criv1.Signal_SIGNAL_SIGRTMINPLUS15, "", 49}, {criv1.Signal_SIGNAL_SIGRTMAXMINUS14, "", 50},
		{0, "0", 0}, {0, "65", 0}, {0, "-9", 0}, {0, "SIG", 0}, {0, "RTMIN+31", 0}, {0, "RTMAX-99", 0}, {0, "RTMIN+-1", 0},
	} {
		got, err := StopSignal(&criv1.ContainerConfig{StopSignal: c.asked}, imagev1.ImageConfig{StopSignal: c.image})
		if got != c.want || (err != nil) != (c.want == 0) {
			t.Errorf("%v over %q: got %d, %v, want %d", c.asked, c.image, got, err, c.want)
		}
	}
	for value, name := range criv1.Signal_name {
		number := stopSignals().numbers[criv1.Signal(value)]
		if value != 0 && number == 0 {
			t.Errorf("%s has no number", name)
		}
		if back := SignalValue(number); stopSignals().numbers[back] != number {
			t.Errorf("%s: number %d is reported as %s", name, number, back)
		}
	}
	for number, want := range map[int]criv1.Signal{15: criv1.Signal_SIGNAL_SIGTERM, 37: criv1.Signal_SIGNAL_SIGRTMINPLUS3, 6: criv1.Signal_SIGNAL_SIGABRT, 33: 0} {
		if got := SignalValue(number); got != want {
			t.Errorf("signal %d: got %s, want %s", number, got, want)
		}
	}
}

func TestCapabilities(t *testing.T) {
	all := uint64(1)<<len(capabilityNames) - 1
	bit := capabilityBit
	var standard uint64
	for _, name := range defaultCapabilities {
		standard |= bit(name)
	}
	if standard != 0xa80425fb {
		t.Fatalf("got default set %#x, want 0xa80425fb", standard)
	}
	for _, c := range []struct {
		name                string
		add, drop, ambient  []string
		held, wantAmb, node uint64
	}{
		{name: "default", node: all, held: standard},
		{name: "add", add: []string{"NET_ADMIN"}, node: all, held: standard | bit("NET_ADMIN")},
		{name: "prefix and case", add: []string{"cap_net_admin"}, node: all, held: standard | bit("NET_ADMIN")},
		{name: "drop all", drop: []string{"ALL"}, node: all},
		{name: "drop all, add one", add: []string{"CHOWN"}, drop: []string{"all"}, node: all, held: bit("CHOWN")},
		{name: "add all, drop one", add: []string{"ALL"}, drop: []string{"SYS_ADMIN"}, node: all, held: all &^ bit("SYS_ADMIN")},
		{name: "both all", add: []string{"ALL"}, drop: []string{"ALL"}, node: all},
		{name: "drop wins", add: []string{"CHOWN"}, drop: []string{"CHOWN"}, node: all, held: standard &^ bit("CHOWN")},
		{name: "all is what is held here", add: []string{"ALL"}, node: standard | bit("BPF"), held: standard | bit("BPF")},
		{name: "default less what is missing", node: bit("CHOWN"), held: bit("CHOWN")},
		{name: "ambient", ambient: []string{"NET_RAW", "SYS_TIME"}, drop: []string{"NET_RAW"}, node: all,
			held: standard&^bit("NET_RAW") | bit("SYS_TIME"), wantAmb: bit("SYS_TIME")},
	} {
		security := &criv1.LinuxContainerSecurityContext{Capabilities: &criv1.Capability{
			AddCapabilities: c.add, DropCapabilities: c.drop, AddAmbientCapabilities: c.ambient,
		}}
		got, err := capabilitiesOf(security, Node{Capabilities: c.node})
		if err != nil || got.held != c.held || got.ambient != c.wantAmb {
			t.Errorf("%s: got %#x, ambient %#x, %v, want %#x, %#x", c.name, got.held, got.ambient, err, c.held, c.wantAmb)
		}
		if inheritable := got.oci().Inheritable; (len(inheritable) > 0) != (c.wantAmb != 0) { // CVE-2022-24769
			t.Errorf("%s: got inheritable %q", c.name, inheritable)
		}
	}
	// What podwright does not hold cannot be given: named, it is an error.
	_, err := capabilitiesOf(&criv1.LinuxContainerSecurityContext{Capabilities: &criv1.Capability{AddCapabilities: []string{"SYS_RESOURCE"}}}, Node{Capabilities: standard})
	wantField(t, err, "linux.security_context.capabilities.add_capabilities")
}

// A container never gets the host's namespace because a path was forgotten.
func TestAMissingNamespacePathIsAnError(t *testing.T) {
	for name, spoil := range map[string]func(*SandboxInput){
		"network": func(s *SandboxInput) { s.NetPath = "" }, "ipc": func(s *SandboxInput) { s.IPCPath = "" }, "uts": func(s *SandboxInput) { s.UTSPath = "" },
	} {
		in := goodInput()
		spoil(&in.Sandbox)
		if _, err := Container(in); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v, want an error that names it", name, err)
		}
	}
	in := goodInput()
	in.Config.Linux.SecurityContext.NamespaceOptions, in.Sandbox.Config.Linux = nil, nil // shared PIDs
	if _, err := Container(in); !errors.Is(err, ErrInvalid) {
		t.Errorf("pid: got %v, want ErrInvalid", err)
	}
}

func TestDevicesMustHaveBeenResolved(t *testing.T) {
	in := goodInput()
	in.Config.Devices = []*criv1.Device{{ContainerPath: "/dev/fuse", HostPath: "/dev/fuse", Permissions: "rw"}}
	_, err := Container(in)
	wantField(t, err, "devices[0].host_path")
	in.Devices = []Device{{Path: "/dev/fuse", Type: "p", Access: "rw"}}
	_, err = Container(in)
	wantField(t, err, "devices[0].host_path")
}

// The first rule denies, and only privileged begins with everything.
func TestDeviceRulesDenyFirst(t *testing.T) {
	in := goodInput()
	s, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	rules := s.Linux.Resources.Devices
	if rules[0].Allow || rules[0].Type != "" || rules[0].Access != "rwm" {
		t.Errorf("got first rule %+v, want deny all", rules[0])
	}
	if slices.ContainsFunc(rules[1:], func(r specs.LinuxDeviceCgroup) bool { return r.Major == nil && r.Access != "m" }) {
		t.Errorf("got %+v, want no rule for every number but mknod's", rules)
	}
}

func TestRequestsOwnDefaultsAreReplaced(t *testing.T) {
	in := goodInput()
	in.Config.Mounts = []*criv1.Mount{
		{ContainerPath: "/sys", HostPath: "/sys"}, {ContainerPath: "/dev/shm", HostPath: "/big"}, {ContainerPath: "/etc/resolv.conf", HostPath: "/mine"},
	}
	s, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	for target, source := range map[string]string{"/sys": "/sys", "/dev/shm": "/big", "/etc/resolv.conf": "/mine"} {
		var sources []string
		for _, m := range s.Mounts {
			if m.Destination == target {
				sources = append(sources, m.Source)
			}
		}
		if !slices.Equal(sources, []string{source}) {
			t.Errorf("%s: got %q, want %q alone", target, sources, source)
		}
	}
}
