package spec

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/launch"
)

func TestAppArmorProfile(t *testing.T) {
	profile := func(kind criv1.SecurityProfile_ProfileType, ref string) *criv1.SecurityProfile {
		return &criv1.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
	const runtimeDefault, free, localhost = criv1.SecurityProfile_RuntimeDefault, criv1.SecurityProfile_Unconfined, criv1.SecurityProfile_Localhost
	for _, c := range []struct {
		name     string
		security *criv1.LinuxContainerSecurityContext
		kind     AppArmorKind
		profile  string
		field    string
	}{
		{"nothing", nil, AppArmorUnset, "", ""},
		{"zero profile", &criv1.LinuxContainerSecurityContext{Apparmor: &criv1.SecurityProfile{}}, AppArmorRuntimeDefault, "", ""},
		{"unconfined", &criv1.LinuxContainerSecurityContext{Apparmor: profile(free, "")}, AppArmorUnconfined, "", ""},
		{"localhost", &criv1.LinuxContainerSecurityContext{Apparmor: profile(localhost, "a b")}, AppArmorLocalhost, "a b", ""},
		{"localhost with the old prefix", &criv1.LinuxContainerSecurityContext{Apparmor: profile(localhost, "localhost/a")}, AppArmorLocalhost, "a", ""},
		{"old default", &criv1.LinuxContainerSecurityContext{ApparmorProfile: "runtime/default"}, AppArmorRuntimeDefault, "", ""},
		{"old unconfined", &criv1.LinuxContainerSecurityContext{ApparmorProfile: "unconfined"}, AppArmorUnconfined, "", ""},
		{"old localhost", &criv1.LinuxContainerSecurityContext{ApparmorProfile: "localhost//usr/bin/x"}, AppArmorLocalhost, "/usr/bin/x", ""},
		{"new wins over old", &criv1.LinuxContainerSecurityContext{ApparmorProfile: "localhost/x", Apparmor: profile(free, "")}, AppArmorUnconfined, "", ""},
		{"privileged", &criv1.LinuxContainerSecurityContext{Privileged: true}, AppArmorUnconfined, "", ""},
		{"privileged default", &criv1.LinuxContainerSecurityContext{Privileged: true, Apparmor: profile(runtimeDefault, "")}, AppArmorUnconfined, "", ""},
		{"privileged localhost", &criv1.LinuxContainerSecurityContext{Privileged: true, Apparmor: profile(localhost, "x")}, AppArmorLocalhost, "x", ""},
		{"name without Localhost", &criv1.LinuxContainerSecurityContext{Apparmor: profile(free, "x")}, 0, "", "apparmor.localhost_ref"},
		{"Localhost without a name", &criv1.LinuxContainerSecurityContext{Apparmor: profile(localhost, "localhost/")}, 0, "", "apparmor.localhost_ref"},
		{"Localhost that is Unconfined", &criv1.LinuxContainerSecurityContext{Apparmor: profile(localhost, "unconfined")}, 0, "", "apparmor.localhost_ref"},
		{"line end", &criv1.LinuxContainerSecurityContext{Apparmor: profile(localhost, "a\nb")}, 0, "", "apparmor.localhost_ref"},
		{"blank", &criv1.LinuxContainerSecurityContext{Apparmor: profile(localhost, " a")}, 0, "", "apparmor.localhost_ref"},
		{"longer than any", &criv1.LinuxContainerSecurityContext{Apparmor: profile(localhost, strings.Repeat("a", 5000))}, 0, "", "apparmor.localhost_ref"},
		{"old of no kind", &criv1.LinuxContainerSecurityContext{ApparmorProfile: "podwright-default"}, 0, "", "apparmor_profile"},
		{"old without a name", &criv1.LinuxContainerSecurityContext{ApparmorProfile: "localhost/"}, 0, "", "apparmor_profile"},
	} {
		kind, name, err := AppArmorProfile(&criv1.ContainerConfig{Linux: &criv1.LinuxContainerConfig{SecurityContext: c.security}})
		if c.field != "" {
			wantField(t, err, contextField+c.field)
		} else if err != nil || kind != c.kind || name != c.profile {
			t.Errorf("%s: got %d %q, %v, want %d %q", c.name, kind, name, err, c.kind, c.profile)
		}
	}
}

// What was found must be what was asked for: a caller that forgets it gets an error, and no container without its profile.
func TestProfileOfTheSpecIsTheOneAskedFor(t *testing.T) {
	for _, c := range []struct {
		name  string
		set   func(*criv1.LinuxContainerSecurityContext)
		node  bool
		found string
		want  string
		fails bool
	}{
		{"unset", func(*criv1.LinuxContainerSecurityContext) {}, true, "podwright-default", "podwright-default", false},
		{"unset and none to be had", func(*criv1.LinuxContainerSecurityContext) {}, true, "", "", false},
		{"default", func(s *criv1.LinuxContainerSecurityContext) { s.Apparmor = &criv1.SecurityProfile{} }, true, "podwright-default", "podwright-default", false},
		{"default forgotten", func(s *criv1.LinuxContainerSecurityContext) { s.Apparmor = &criv1.SecurityProfile{} }, true, "", "", true},
		{"default unconfined", func(s *criv1.LinuxContainerSecurityContext) { s.Apparmor = &criv1.SecurityProfile{} }, true, "unconfined", "", true},
		{"default, a kernel without", func(s *criv1.LinuxContainerSecurityContext) { s.Apparmor = &criv1.SecurityProfile{} }, false, "", "", false},
		{"localhost", func(s *criv1.LinuxContainerSecurityContext) { s.ApparmorProfile = "localhost/x" }, true, "x", "x", false},
		{"localhost forgotten", func(s *criv1.LinuxContainerSecurityContext) { s.ApparmorProfile = "localhost/x" }, true, "", "", true},
		{"localhost and another", func(s *criv1.LinuxContainerSecurityContext) { s.ApparmorProfile = "localhost/x" }, true, "podwright-default", "", true},
	} {
		in := goodInput()
		c.set(in.Config.Linux.SecurityContext)
		in.Node.AppArmor, in.AppArmor = c.node, c.found
		s, err := Container(in)
		switch {
		case c.fails:
			wantField(t, err, contextField+"apparmor.profile_type")
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case s.Process.ApparmorProfile != c.want:
			t.Errorf("%s: got profile %q, want %q", c.name, s.Process.ApparmorProfile, c.want)
		}
	}
}

// The kernel is asked while nothing is taken from init, for containers, commands in them and the pod's PID 1 alike.
func TestProfileIsAskedForBeforePrivilegesGo(t *testing.T) {
	in := goodInput()
	in.Node.AppArmor, in.AppArmor = true, "site profile"
	in.Config.Linux.SecurityContext.NoNewPrivs, in.Seccomp = true, &specs.LinuxSeccomp{}
	s, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	filter := make([]byte, 8)
	container, err := Compile(s, CompileInput{ID: in.ID, Node: in.Node, Filter: filter})
	if err != nil {
		t.Fatal(err)
	}
	command, err := Exec(ExecInput{ID: in.ID, Spec: ExecSpec(s), Args: []string{"true"}, Node: in.Node, Filter: filter})
	if err != nil {
		t.Fatal(err)
	}
	reaper, err := Reaper(ReaperInput{ID: "5a5a", Node: in.Node, AppArmor: "site profile"})
	if err != nil {
		t.Fatal(err)
	}
	for name, l := range map[string]*Launchable{"container": container, "command": command, "PID 1": reaper} {
		list := codes(l)
		at := slices.Index(list, launch.OpExecLabel)
		if at < 0 {
			t.Errorf("%s: no label is set: %v", name, list)
			continue
		}
		if op := l.Plan.Ops[at]; op.Arg != "exec site profile" || op.Path != "apparmor/exec" || op.Step != "set AppArmor profile site profile" {
			t.Errorf("%s: got %+v", name, op)
		}
		for _, later := range []launch.Code{launch.OpBounding, launch.OpUser, launch.OpCaps, launch.OpNoNewPrivs, launch.OpSeccomp} {
			if i := slices.Index(list, later); i >= 0 && i < at {
				t.Errorf("%s: %s comes before the label", name, later)
			}
		}
	}
	in.Node.AppArmor = false
	if _, err := Compile(s, CompileInput{ID: in.ID, Node: in.Node, Filter: filter}); err == nil {
		t.Error("a recorded profile on a kernel without AppArmor: got no error")
	}
}
