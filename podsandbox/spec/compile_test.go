package spec

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/launch"
)

func goodSpec(t *testing.T) (*specs.Spec, CompileInput) {
	t.Helper()
	in := goodInput()
	s, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	return s, CompileInput{ID: in.ID, Node: in.Node}
}

// What OCI can say and no operation does is an error, not left out.
func TestCompileRefusesWhatItCannotDo(t *testing.T) {
	for name, spoil := range map[string]func(*specs.Spec){
		"hooks":    func(s *specs.Spec) { s.Hooks = &specs.Hooks{} },
		"hostname": func(s *specs.Spec) { s.Hostname = "x" },
		"sysctl":   func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.x": "1"} },
		"user namespace": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		},
		"id mappings":                   func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} },
		"new network namespace":         func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "" },
		"foreign mount namespace":       func(s *specs.Spec) { s.Linux.Namespaces[4].Path = "/x" },
		"no mount namespace":            func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[:3] },
		"SELinux label without SELinux": func(s *specs.Spec) { s.Process.SelinuxLabel = "a:b:c:s0" },
		"AppArmor profile":              func(s *specs.Spec) { s.Process.ApparmorProfile = "x" },
		"file system":                   func(s *specs.Spec) { s.Mounts[0].Type = "ext4" },
		"bind option": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/y", Options: []string{"uid=0"}})
		},
		"idmapped mount without a mapping": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/y", Options: []string{"idmap"}})
		},
		"idmapped mount of users alone": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/y", UIDMappings: []specs.LinuxIDMapping{{Size: 1}}})
		},
		"idmapped new mount": func(s *specs.Spec) {
			s.Mounts[0].UIDMappings, s.Mounts[0].GIDMappings = []specs.LinuxIDMapping{{Size: 1}}, []specs.LinuxIDMapping{{Size: 1}}
		},
		"shared new mount": func(s *specs.Spec) { s.Mounts[0].Options = []string{"rshared"} },
		"intelRdt":         func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} },
		"scheduler":        func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{} },
	} {
		s, in := goodSpec(t)
		spoil(s)
		if _, err := Compile(s, in); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: got %v, want ErrUnsupported", name, err)
		}
	}
	unlabelled, in := goodSpec(t)
	in.Node.SELinux = true
	if _, err := Compile(unlabelled, in); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "process.selinuxLabel missing") {
		t.Errorf("no label where labels are on: got %v, want ErrUnsupported", err)
	}
	for name, spoil := range map[string]func(*specs.Spec){
		"no process":          func(s *specs.Spec) { s.Process = nil },
		"mount over the root": func(s *specs.Spec) { s.Mounts[0].Destination = "/" },
		"relative mount":      func(s *specs.Spec) { s.Mounts[0].Destination = "proc" },
		"unknown capability":  func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{"CAP_FLY"} },
		"unknown rlimit":      func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} },
		"soft above hard": func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 2, Hard: 1}}
		},
		"profile, no filter": func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{} },
		"mask of a shared one": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/y", Options: []string{"rbind", "rshared"}})
			s.Linux.MaskedPaths = []string{"/x/y"}
		},
	} {
		s, in := goodSpec(t)
		spoil(s)
		if _, err := Compile(s, in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	s, in := goodSpec(t)
	in.Filter = make([]byte, 8)
	if _, err := Compile(s, in); !errors.Is(err, ErrInvalid) {
		t.Errorf("filter, no profile: got %v, want ErrInvalid", err)
	}
}

func codes(l *Launchable) []launch.Code {
	list := make([]launch.Code, len(l.Plan.Ops))
	for i, op := range l.Plan.Ops {
		list[i] = op.Code
	}
	return list
}

// The order that init relies on and does not check itself.
func TestPlanOrder(t *testing.T) {
	for _, nnp := range []bool{false, true} {
		in := goodInput()
		in.Config.Linux.SecurityContext.NoNewPrivs = nnp
		in.Seccomp = &specs.LinuxSeccomp{}
		in.Config.Tty = true
		s, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		l, err := Compile(s, CompileInput{ID: in.ID, Node: testNode(1), Filter: make([]byte, 8)})
		if err != nil {
			t.Fatal(err)
		}
		want := []launch.Code{
			launch.OpJoinCgroupV1, launch.OpOOMScore, launch.OpSetns, launch.OpUnshare, launch.OpRoot, launch.OpMountNew, launch.OpMknod,
			launch.OpPivot, launch.OpKeyring, launch.OpSetsid, launch.OpConsole, launch.OpUmask, launch.OpBounding, launch.OpSeccomp,
			launch.OpUser, launch.OpCaps, launch.OpExec,
		}
		if nnp { // then the filter is last, after no_new_privs
			want = slices.DeleteFunc(want, func(c launch.Code) bool { return c == launch.OpSeccomp || c == launch.OpExec })
			want = append(want, launch.OpNoNewPrivs, launch.OpSeccomp, launch.OpExec)
		}
		got, at := codes(l), 0
		for _, code := range want {
			next := slices.Index(got[at:], code)
			if next < 0 {
				t.Fatalf("no_new_privs %t: %s does not come after what it should, in %v", nnp, code, got)
			}
			at += next
		}
		if got[len(got)-1] != launch.OpExec {
			t.Errorf("got last %s, want exec", got[len(got)-1])
		}
	}
}

// Exec takes everything that confines from the container (B28, B29).
func TestExecHasTheContainersPrivileges(t *testing.T) {
	for _, privileged := range []bool{false, true} {
		in := goodInput()
		in.Sandbox.Config.Linux.SecurityContext.Privileged = privileged
		in.Config.Linux.SecurityContext.Privileged = privileged
		in.Config.Linux.SecurityContext.NoNewPrivs = true
		in.Config.Linux.SecurityContext.RunAsUser = &criv1.Int64Value{Value: 1000}
		in.Config.Linux.SecurityContext.SupplementalGroups = []int64{7}
		in.Node.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}}
		var filter []byte
		if !privileged {
			in.Seccomp, filter = &specs.LinuxSeccomp{}, make([]byte, 8)
		}
		s, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		container, err := Compile(s, CompileInput{ID: in.ID, Node: in.Node, Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		exec, err := Exec(ExecInput{ID: in.ID, Spec: ExecSpec(s), Args: []string{"id"}, Node: in.Node, Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		tail := func(l *Launchable) string {
			text, _, _ := strings.Cut(Print(l), "args ")
			return text[strings.Index(text, "keyring"):]
		}
		if got, want := tail(exec), tail(container); got != want {
			t.Errorf("privileged %t: got\n%swant\n%s", privileged, got, want)
		}
		if !slices.Equal(exec.Plan.Env, container.Plan.Env) {
			t.Errorf("got environment %q, want %q", exec.Plan.Env, container.Plan.Env)
		}
	}
}

// Two execs of one container share nothing that either could change (CVE-2021-21334).
func TestExecsShareNoEnvironment(t *testing.T) {
	s, in := goodSpec(t)
	kept := ExecSpec(s)
	kept.Process.Env = append(make([]string, 0, 100), kept.Process.Env...) // room to append into
	first, err := Exec(ExecInput{ID: in.ID, Spec: kept, Args: []string{"a"}, Terminal: true, Node: in.Node})
	if err != nil {
		t.Fatal(err)
	}
	second, err := Exec(ExecInput{ID: in.ID, Spec: kept, Args: []string{"b"}, Node: in.Node})
	if err != nil {
		t.Fatal(err)
	}
	first.Plan.Env[0] = "CHANGED=1"
	if slices.Contains(second.Plan.Env, "CHANGED=1") || slices.Contains(kept.Process.Env, "CHANGED=1") {
		t.Error("a change of one environment shows in another")
	}
}

func TestExecRefusesWhatIsNoCommand(t *testing.T) {
	s, in := goodSpec(t)
	for name, args := range map[string][]string{"nothing": nil, "empty": {""}, "NUL": {"a\x00b"}} {
		_, err := Exec(ExecInput{ID: in.ID, Spec: s, Args: args, Node: in.Node})
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	if _, err := Exec(ExecInput{Args: []string{"a"}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("no spec: got %v, want ErrInvalid", err)
	}
}

func TestSetDirectoryChangesItsOperationOnly(t *testing.T) {
	s, in := goodSpec(t)
	l, err := Compile(s, in)
	if err != nil {
		t.Fatal(err)
	}
	index := slices.IndexFunc(l.Needs, func(n Need) bool { return n.Bind.Target == "/etc/hosts" })
	l.SetDirectory(index, false)
	for _, op := range l.Plan.Ops {
		if op.Code != launch.OpMountFd {
			continue
		}
		if want := op.Fd != index; (op.Number == 1) != want {
			t.Errorf("%s: got directory %d, want %t", op.Step, op.Number, want)
		}
	}
}

// A spec that was stored and read back compiles to the same plan, notes included.
func TestASpecSurvivesItsRecord(t *testing.T) {
	in := goodInput()
	in.Node.MinOOMScoreAdj = 5
	s, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var again specs.Spec
	if err := json.Unmarshal(raw, &again); err != nil {
		t.Fatal(err)
	}
	var plans [2]string
	for i, each := range []*specs.Spec{s, &again} {
		l, err := Compile(each, CompileInput{ID: in.ID, Node: in.Node})
		if err != nil {
			t.Fatal(err)
		}
		plans[i] = Print(l)
	}
	if plans[0] != plans[1] || !strings.Contains(plans[0], "note oom_score_adj 0 raised to 5") {
		t.Errorf("got\n%s\nwant\n%s", plans[1], plans[0])
	}
}

func FuzzMountOptions(f *testing.F) {
	f.Add("bind", "/data", "rbind,rprivate,ro")
	f.Add("tmpfs", "/dev", "nosuid,mode=755")
	f.Fuzz(func(t *testing.T, fsType, target, options string) {
		s, in := goodSpec(t)
		s.Mounts = append(s.Mounts, specs.Mount{Type: fsType, Destination: target, Source: "/s", Options: strings.Split(options, ",")})
		l, err := Compile(s, in)
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("%v is of no kind", err)
			}
			return
		}
		checkLaunchable(t, l)
	})
}
