package spec

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path"
	"path/filepath"
	"testing"

	imagev1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/launch"
)

var update = flag.Bool("update", false, "rewrite the expected files below testdata")

// goldenInput is testdata/<case>/input.json: what is not CRI.
type goldenInput struct {
	CgroupVersion int                 `json:"cgroupVersion"` // 2 when 0
	Capabilities  *uint64             `json:"capabilities"`  // everything when absent
	MinOOMScore   int                 `json:"minOOMScore"`
	PidsLimit     int64               `json:"pidsLimit"`
	Rlimits       []specs.POSIXRlimit `json:"rlimits"`
	Hostname      string              `json:"hostname"`
	Image         imagev1.ImageConfig `json:"image"`
	Passwd        string              `json:"passwd"`
	Group         string              `json:"group"`
	Volumes       map[string]string   `json:"volumes"`
	Devices       []Device            `json:"devices"`
	Seccomp       *specs.LinuxSeccomp `json:"seccomp"`
	AppArmor      string              `json:"appArmor"`
	ProcessLabel  string              `json:"processLabel"`
	MountLabel    string              `json:"mountLabel"`
	Exec          *struct {
		Args     []string `json:"args"`
		Terminal bool     `json:"terminal"`
	} `json:"exec"`
}

func testNode(version int) Node {
	node := Node{
		CgroupVersion: version, Controllers: []string{"cpu", "cpuset", "memory", "pids", "hugetlb", "io", "devices"},
		HugepageSizes: []string{"2MB", "1GB"}, SwapLimit: true,
		Capabilities: 1<<len(capabilityNames) - 1, MinOOMScoreAdj: -1000, UserNamespaces: true, RecursiveReadOnly: true,
	}
	if version == 1 {
		node.Hierarchies = []Hierarchy{
			{Dir: "cpu,cpuacct", Options: []string{"cpu", "cpuacct"}}, {Dir: "memory", Options: []string{"memory"}},
			{Dir: "systemd", Options: []string{"none", "name=systemd"}},
		}
	}
	return node
}

func (g *goldenInput) containerInput(container *criv1.ContainerConfig, sandbox *criv1.PodSandboxConfig) ContainerInput {
	if g.CgroupVersion == 0 {
		g.CgroupVersion = 2
	}
	node := testNode(g.CgroupVersion)
	if g.Capabilities != nil {
		node.Capabilities = *g.Capabilities
	}
	if g.MinOOMScore != 0 {
		node.MinOOMScoreAdj = g.MinOOMScore
	}
	node.AppArmor = g.AppArmor != ""
	node.PidsLimit, node.Rlimits, node.SELinux = g.PidsLimit, g.Rlimits, g.ProcessLabel != ""
	in := ContainerInput{
		ID: "c0ffee", Config: container, Image: g.Image, Passwd: []byte(g.Passwd), Group: []byte(g.Group), Node: node,
		Root: "/run/podwright/containers/c0ffee/rootfs", CgroupsPath: "/kubepods/pod1/c0ffee",
		Volumes: g.Volumes, Devices: g.Devices, Seccomp: g.Seccomp, AppArmor: g.AppArmor, ProcessLabel: g.ProcessLabel, MountLabel: g.MountLabel,
		ImageMounts: map[string]string{},
	}
	for _, m := range container.GetMounts() {
		if m.GetImage() != nil {
			in.ImageMounts[path.Clean(m.GetContainerPath())] = "sha256:abcd"
		}
	}
	const dir = "/run/podwright/sandboxes/5a5a"
	in.Sandbox = SandboxInput{
		ID: "5a5a", Config: sandbox, Hostname: g.Hostname,
		HostsFile: dir + "/hosts", HostnameFile: dir + "/hostname", ResolvConfFile: dir + "/resolv.conf", ShmDir: dir + "/shm",
	}
	of := SandboxNamespaces(sandbox)
	if of.Net {
		in.Sandbox.NetPath = "/run/netns/5a5a"
	}
	if of.IPC {
		in.Sandbox.IPCPath = dir + "/ipc"
	} else {
		in.Sandbox.ShmDir = "/dev/shm"
	}
	if of.UTS {
		in.Sandbox.UTSPath = dir + "/uts"
	}
	if SandboxUser(sandbox) != nil {
		in.Sandbox.UserPath = dir + "/user"
	}
	if TargetID(container) != "" {
		in.TargetPath = "/proc/777/ns/pid"
	}
	if of.PID == PIDShared {
		in.Sandbox.PIDPath = "/proc/4242/ns/pid"
	}
	return in
}

func TestGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/*/container.json")
	if err != nil || len(cases) < 15 {
		t.Fatalf("got %d cases, %v, want at least 15", len(cases), err)
	}
	for _, file := range cases {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) { goldenCase(t, dir) })
	}
}

func goldenCase(t *testing.T, dir string) {
	container, sandbox := &criv1.ContainerConfig{}, &criv1.PodSandboxConfig{}
	var g goldenInput
	for name, into := range map[string]func([]byte) error{
		"container.json": func(b []byte) error { return protojson.Unmarshal(b, container) },
		"sandbox.json":   func(b []byte) error { return protojson.Unmarshal(b, sandbox) },
		"input.json":     func(b []byte) error { return strictJSON(b, &g) },
	} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := into(b); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	in := g.containerInput(container, sandbox)
	if err := ValidateSandbox(sandbox, in.Node); err != nil {
		t.Fatalf("sandbox: %v", err)
	}
	s, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	compare(t, filepath.Join(dir, "spec.json"), append(shown, '\n'))

	var filter []byte
	if s.Linux.Seccomp != nil {
		filter = make([]byte, 16)
	}
	l, err := Compile(s, CompileInput{ID: in.ID, Node: in.Node, Filter: filter})
	if err != nil {
		t.Fatal(err)
	}
	checkLaunchable(t, l)
	compare(t, filepath.Join(dir, "plan.txt"), []byte(Print(l)))

	if g.Exec == nil {
		return
	}
	l, err = Exec(ExecInput{ID: in.ID, Spec: ExecSpec(s), Args: g.Exec.Args, Terminal: g.Exec.Terminal, Node: in.Node, Filter: filter})
	if err != nil {
		t.Fatal(err)
	}
	checkLaunchable(t, l)
	compare(t, filepath.Join(dir, "exec.txt"), []byte(Print(l)))
}

func strictJSON(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// checkLaunchable holds what every plan must: init reads it, each need is used, table and needs agree.
func checkLaunchable(t *testing.T, l *Launchable) {
	t.Helper()
	decoded, err := decodePlan(l)
	if err != nil {
		t.Errorf("init could not read the plan: %v", err)
		return
	}
	used := map[int]bool{}
	if l.User != nil {
		used[l.User.Index] = true
	}
	for _, op := range decoded.Ops {
		used[op.Fd] = true
	}
	if len(l.Needs) != len(l.Plan.Fds) {
		t.Errorf("got %d needs for a table of %d", len(l.Needs), len(l.Plan.Fds))
	}
	for i, n := range l.Needs {
		if !used[i] || n.Kind == 0 {
			t.Errorf("need %d (%v) is used by no operation", i, n)
		}
	}
}

func compare(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (-update rewrites it):\ngot  %s\nwant %s", file, got, want)
	}
}

func TestReaperGolden(t *testing.T) {
	for version, file := range map[int]string{1: "testdata/reaper-v1.txt", 2: "testdata/reaper-v2.txt"} {
		l, err := Reaper(ReaperInput{ID: "5a5a", Node: testNode(version), NetPath: "/run/netns/5a5a", IPCPath: "/ipc", UTSPath: "/uts"})
		if err != nil {
			t.Fatal(err)
		}
		checkLaunchable(t, l)
		compare(t, file, []byte(Print(l)))
	}
}

func TestLabelledReaperGolden(t *testing.T) {
	node := testNode(2)
	node.SELinux = true
	l, err := Reaper(ReaperInput{
		ID: "5a5a", Node: node, NetPath: "/run/netns/5a5a", IPCPath: "/ipc", UTSPath: "/uts",
		ProcessLabel: "system_u:system_r:container_t:s0:c1,c2", MountLabel: "system_u:object_r:container_file_t:s0:c1,c2",
	})
	if err != nil {
		t.Fatal(err)
	}
	checkLaunchable(t, l)
	compare(t, "testdata/reaper-labelled.txt", []byte(Print(l)))
}

func decodePlan(l *Launchable) (*launch.Plan, error) { return launch.Decode(l.Plan.Encode()) }
