package cni

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const twoPlugins = `{"cniVersion":"1.0.0","name":"podnet","plugins":[
  {"type":"main","mark":"first"},
  {"type":"chained","mark":"first","capabilities":{"portMappings":true,"bandwidth":false}}]}`

// stdin is what a recorder got, decoded.
type stdin struct {
	Name          string
	Mark          string
	RuntimeConfig map[string]json.RawMessage
	PrevResult    *struct {
		IPs []struct{ Address string }
	}
	Attachments []struct{ ContainerID, IfName string } `json:"cni.dev/valid-attachments"`
}

func decode(t *testing.T, line []string) stdin {
	t.Helper()
	var in stdin
	if len(line) != 7 {
		t.Fatalf("log line %q", line)
	}
	if err := json.Unmarshal([]byte(line[6]), &in); err != nil {
		t.Fatalf("%v: %s", err, line[6])
	}
	return in
}

func heads(lines [][]string) string {
	var out []string
	for _, line := range lines {
		out = append(out, strings.Join(line[:min(len(line), 5)], " "))
	}
	return strings.Join(out, "\n")
}

func recorderNode(t *testing.T, plugins ...string) *node {
	t.Helper()
	n := newNode(t)
	for _, plugin := range plugins {
		n.plugin(plugin, recorder)
	}
	return n
}

// stored is the attachment after a stay in the caller's record.
func stored(t *testing.T, attached *Attachment) *Attachment {
	t.Helper()
	data, err := json.Marshal(attached)
	if err != nil {
		t.Fatal(err)
	}
	back := &Attachment{}
	if err := json.Unmarshal(data, back); err != nil {
		t.Fatal(err)
	}
	return back
}

// B8, B53: DEL gets what ADD got, in reverse order, whatever became of the file.
func TestDetachUsesTheStoredConfiguration(t *testing.T) {
	n := recorderNode(t, "main", "chained", "new")
	n.conf("10-a.conflist", twoPlugins)
	network := n.ready()
	path := netns(t, "att1")
	ctx := context.Background()
	sandbox := pod("sb1", path)
	sandbox.PortMappings = []PortMapping{{HostPort: 80, ContainerPort: 8080, Protocol: "tcp"}}
	sandbox.Annotations = map[string]string{ingressAnnotation: "1M"}
	attached, err := network.Attach(ctx, sandbox)
	if err != nil {
		t.Fatal(err)
	}
	lines := n.lines()
	if got, want := heads(lines), "main ADD sb1 "+path+" eth0\nchained ADD sb1 "+path+" eth0"; got != want {
		t.Fatalf("ADD: got\n%s\nwant\n%s", got, want)
	}
	const args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=sb1;K8S_POD_UID=u-1"
	if lines[0][5] != args {
		t.Errorf("CNI_ARGS: got %s", lines[0][5])
	}
	first, second := decode(t, lines[0]), decode(t, lines[1])
	if first.RuntimeConfig != nil || len(second.RuntimeConfig) != 1 || !strings.Contains(string(second.RuntimeConfig["portMappings"]), `"hostPort":80`) {
		t.Errorf("capabilities: got %s, %s", first.RuntimeConfig, second.RuntimeConfig)
	}
	if first.PrevResult != nil || second.PrevResult == nil {
		t.Error("the previous result is not handed on")
	}
	if got := attached.Inert(); !slices.Equal(got, []string{"bandwidth"}) {
		t.Errorf("inert: got %v", got)
	}
	if got := attached.IPs(); !slices.Equal(got, []string{"10.9.0.2", "fd00::2"}) {
		t.Errorf("addresses: got %v", got)
	}

	n.conf("10-a.conflist", `{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"new"}]}`)
	if err := os.RemoveAll(network.resultsDir()); err != nil {
		t.Fatal(err)
	}
	back := stored(t, attached)
	if got := back.IPs(); !slices.Equal(got, attached.IPs()) {
		t.Errorf("addresses after a restart: got %v", got) // B52
	}
	if err := network.Detach(ctx, sandbox, back); err != nil {
		t.Fatal(err)
	}
	lines = n.lines()
	if got, want := heads(lines), "chained DEL sb1 "+path+" eth0\nmain DEL sb1 "+path+" eth0"; got != want {
		t.Fatalf("DEL: got\n%s\nwant\n%s", got, want)
	}
	for _, line := range lines {
		in := decode(t, line)
		if in.Name != "podnet" || in.Mark != "first" || line[5] != args {
			t.Errorf("DEL: got %v", line)
		}
		if in.PrevResult == nil || len(in.PrevResult.IPs) != 3 || in.PrevResult.IPs[0].Address != "10.9.0.2/24" {
			t.Errorf("previous result: got %+v", in.PrevResult)
		}
	}
	if in := decode(t, lines[0]); !strings.Contains(string(in.RuntimeConfig["portMappings"]), `"hostPort":80`) {
		t.Errorf("capabilities of DEL: got %s", in.RuntimeConfig)
	}
	entries, err := os.ReadDir(network.resultsDir())
	if err != nil || len(entries) > 0 {
		t.Errorf("cache: got %v, %v", entries, err)
	}
}

// B10
func TestDetachWithoutNamespaceHasAnEmptyPath(t *testing.T) {
	n := recorderNode(t, "fake")
	n.conf("10-a.conflist", fakeConf)
	network := n.ready()
	ctx := context.Background()
	bare := filepath.Join(t.TempDir(), "netns") // a file that a reboot or crash left
	if err := os.WriteFile(bare, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", "/run/netns/gone", bare} {
		attached, err := network.Attach(ctx, pod("sb1", "/run/netns/whatever"))
		if err != nil {
			t.Fatal(err)
		}
		_ = n.lines()
		if err := network.Detach(ctx, pod("sb1", path), attached); err != nil {
			t.Errorf("%q: %v", path, err)
		}
		if got := heads(n.lines()); got != "fake DEL sb1  eth0" {
			t.Errorf("%q: got %s", path, got)
		}
	}
}

// B9
func TestDetachErrorCountsOnlyAfterAResult(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", recorder+`[ "$CNI_COMMAND" = ADD ] || { echo '{"code":7,"msg":"cannot"}'; exit 1; }`)
	n.conf("10-a.conflist", fakeConf)
	network := n.ready()
	ctx := context.Background()
	sandbox := pod("sb1", "/run/netns/x")
	planned, err := network.Plan(sandbox)
	if err != nil {
		t.Fatal(err)
	}
	if len(n.lines()) != 0 {
		t.Error("Plan executes plugins")
	}
	if err := network.Detach(ctx, sandbox, stored(t, planned)); err != nil {
		t.Errorf("planned only: %v", err)
	}
	if got := heads(n.lines()); got != "fake DEL sb1  eth0" {
		t.Errorf("planned only: got %s", got)
	}
	if err := network.Detach(ctx, sandbox, nil); err != nil {
		t.Errorf("nothing stored: %v", err)
	}
	if got := heads(n.lines()); got != "fake DEL sb1  eth0" {
		t.Errorf("nothing stored: got %s", got)
	}
	if err := network.Add(ctx, planned); err != nil {
		t.Fatal(err)
	}
	wantError(t, network.Detach(ctx, sandbox, planned), `detach network "podnet": plugin fake: cannot`)
}

func TestDetachOfNothingWithoutConfigurationIsDone(t *testing.T) {
	n := newNode(t)
	network := n.start()
	if err := network.Detach(context.Background(), pod("sb1", ""), nil); err != nil {
		t.Error(err)
	}
}

// A chain that fails in the middle: DEL goes to all of it.
func TestFailedAddCanBeDetached(t *testing.T) {
	n := recorderNode(t, "main")
	n.plugin("chained", recorder+`[ "$CNI_COMMAND" = ADD ] && exit 1; exit 0`)
	n.conf("10-a.conflist", twoPlugins)
	network := n.ready()
	ctx := context.Background()
	attached, err := network.Attach(ctx, pod("sb1", "/x"))
	wantError(t, err, `attach network "podnet": plugin chained: ADD: exit status 1`)
	_ = n.lines()
	if err := network.Detach(ctx, pod("sb1", "/x"), stored(t, attached)); err != nil {
		t.Error(err)
	}
	if got, want := heads(n.lines()), "chained DEL sb1  eth0\nmain DEL sb1  eth0"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestSeveralNetworks(t *testing.T) {
	n := recorderNode(t, "a", "b")
	n.cfg.MaxConfNum = 2
	n.conf("10-a.conflist", `{"cniVersion":"1.0.0","name":"neta","plugins":[{"type":"a","capabilities":{"portMappings":true}}]}`)
	n.conf("20-b.conflist", `{"cniVersion":"1.0.0","name":"netb","plugins":[{"type":"b","capabilities":{"portMappings":true,"cgroupPath":true}}]}`)
	network := n.ready()
	ctx := context.Background()
	sandbox := pod("sb1", "/x")
	sandbox.CgroupPath = "/pods/1"
	sandbox.PortMappings = []PortMapping{{HostPort: 80, ContainerPort: 80}}
	attached, err := network.Attach(ctx, sandbox)
	if err != nil {
		t.Fatal(err)
	}
	lines := n.lines()
	if got, want := heads(lines), "a ADD sb1 /x eth0\nb ADD sb1 /x eth1"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if a, b := decode(t, lines[0]), decode(t, lines[1]); len(a.RuntimeConfig) != 1 || len(b.RuntimeConfig) != 1 || b.RuntimeConfig["cgroupPath"] == nil {
		t.Errorf("capabilities: got %s, %s", a.RuntimeConfig, b.RuntimeConfig)
	}
	// The one that fails doesn't keep the other from its DEL.
	if err := os.Remove(filepath.Join(n.cfg.BinDirs[0], "b")); err != nil {
		t.Fatal(err)
	}
	wantError(t, network.Detach(ctx, sandbox, attached), `detach network "netb": plugin b: no such executable`)
	if got, want := heads(n.lines()), "a DEL sb1  eth0"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestImpossiblePodsAreRefusedBeforeAnyPlugin(t *testing.T) {
	n := recorderNode(t, "fake")
	n.conf("10-a.conflist", fakeConf)
	network := n.ready()
	for name, change := range map[string]func(*Pod){
		"an id that is a path":    func(p *Pod) { p.SandboxID = "../x" },
		"no id":                   func(p *Pod) { p.SandboxID = "" },
		"no namespace":            func(p *Pod) { p.NetnsPath = "" },
		"a name with a semicolon": func(p *Pod) { p.Name = "a;K8S_POD_UID=b" },
		"a bandwidth of words":    func(p *Pod) { p.Annotations = map[string]string{egressAnnotation: "fast"} },
	} {
		sandbox := pod("sb1", "/x")
		change(&sandbox)
		if attached, err := network.Attach(context.Background(), sandbox); err == nil || attached != nil {
			t.Errorf("%s: got %v, %v", name, attached, err)
		}
	}
	if lines := n.lines(); len(lines) > 0 {
		t.Errorf("executed: %v", lines)
	}
}

func TestForgedAttachmentIsRefused(t *testing.T) {
	n := recorderNode(t, "fake")
	network := n.start()
	const good = `{"cniVersion":"1.0.0","name":"podnet","plugins":[{"type":"fake"}]}`
	for name, attached := range map[string]*Attachment{
		"id":        {SandboxID: "../x", Networks: []attachedMember{{Network: "podnet", IfName: "eth0", Config: []byte(good)}}},
		"another":   {SandboxID: "sb2", Networks: []attachedMember{{Network: "podnet", IfName: "eth0", Config: []byte(good)}}},
		"network":   {SandboxID: "sb1", Networks: []attachedMember{{Network: "../podnet", IfName: "eth0", Config: []byte(good)}}},
		"interface": {SandboxID: "sb1", Networks: []attachedMember{{Network: "podnet", IfName: "../eth0", Config: []byte(good)}}},
		"plugin":    {SandboxID: "sb1", Networks: []attachedMember{{Network: "podnet", IfName: "eth0", Config: []byte(`{"name":"podnet","plugins":[{"type":"../fake"}]}`)}}},
		"config":    {SandboxID: "sb1", Networks: []attachedMember{{Network: "podnet", IfName: "eth0"}}},
	} {
		if err := network.Detach(context.Background(), pod("sb1", ""), attached); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if lines := n.lines(); len(lines) > 0 {
		t.Errorf("executed: %v", lines)
	}
}

func TestIPsOfOtherResults(t *testing.T) {
	for name, c := range map[string]struct {
		result string
		want   []string
	}{
		"0.2.0":                {`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.5/24"},"ip6":{"ip":"fd00::5/64"}}`, []string{"10.0.0.5", "fd00::5"}},
		"0.4.0":                {`{"cniVersion":"0.4.0","ips":[{"version":"6","address":"fd00::5/64"},{"version":"4","address":"10.0.0.5/24"}]}`, []string{"fd00::5", "10.0.0.5"}},
		"no interface":         {`{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.5/24"}]}`, []string{"10.0.0.5"}},
		"index out of range":   {`{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.5/24","interface":7}]}`, []string{"10.0.0.5"}},
		"another name inside":  {`{"cniVersion":"1.0.0","interfaces":[{"name":"net0","sandbox":"/x"}],"ips":[{"address":"10.0.0.5/24","interface":0}]}`, []string{"10.0.0.5"}},
		"v4 mapped":            {`{"cniVersion":"1.0.0","ips":[{"address":"::ffff:10.0.0.5/120"}]}`, []string{"10.0.0.5"}},
		"none":                 {`{"cniVersion":"1.0.0"}`, nil},
		"nothing":              {``, nil},
		"rubbish":              {`[1]`, nil},
		"null in the list":     {`{"cniVersion":"0.4.0","ips":[null]}`, nil},
		"an unknown version":   {`{"cniVersion":"7.0.0","ips":[{"address":"10.0.0.5/24"}]}`, nil},
		"an address of rubble": {`{"cniVersion":"1.0.0","ips":[{"address":"x"}]}`, nil},
	} {
		attached := &Attachment{Networks: []attachedMember{{IfName: "eth0", Result: []byte(c.result)}}}
		if got := attached.IPs(); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
	if got := (*Attachment)(nil).IPs(); got != nil {
		t.Errorf("nil: got %v", got)
	}
}

// B54
func TestGCTakesAwayWhatIsUnknown(t *testing.T) {
	n := recorderNode(t, "old", "new")
	n.conf("10-a.conflist", `{"cniVersion":"1.0.0","name":"before","plugins":[{"type":"old","mark":"first"}]}`)
	network := n.ready()
	ctx := context.Background()
	for _, id := range []string{"kept", "stale"} {
		if _, err := network.Attach(ctx, pod(id, "/x")); err != nil {
			t.Fatal(err)
		}
	}
	n.conf("10-a.conflist", `{"cniVersion":"1.1.0","name":"after","plugins":[{"type":"new"}]}`)
	for network.state.Load().networks[0].name != "after" {
		time.Sleep(10 * time.Millisecond)
	}
	awaitStatus(t, network, "")
	_ = n.lines()
	if err := network.GC(ctx, func() []string { return []string{"kept", "unreadable"} }); err != nil {
		t.Fatal(err)
	}
	lines := slices.DeleteFunc(n.lines(), func(line []string) bool { return line[1] == "STATUS" })
	if got, want := heads(lines), "old DEL stale  eth0\nnew GC   "; got != want {
		t.Fatalf("got\n%q\nwant\n%q", got, want)
	}
	if in := decode(t, lines[0]); in.Mark != "first" || in.PrevResult == nil {
		t.Errorf("DEL: got %+v, want the configuration and result of then", in)
	}
	if in := decode(t, lines[1]); len(in.Attachments) != 2 || in.Attachments[0].ContainerID != "kept" || in.Attachments[0].IfName != "eth0" {
		t.Errorf("GC: got %+v", in.Attachments)
	}
}

func TestGCRunsAlone(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", recorder+`[ "$CNI_COMMAND" = GC ] && sleep 0.5; exit 0`)
	n.conf("10-a.conflist", `{"cniVersion":"1.1.0","name":"podnet","plugins":[{"type":"fake"}]}`)
	network := n.ready()
	ctx := context.Background()
	began := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- network.GC(ctx, func() []string { close(began); return nil })
	}()
	<-began
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := network.Attach(short, pod("sb1", "/x")); err == nil {
		t.Error("ADD runs beside GC")
	}
	if _, err := network.Attach(ctx, pod("sb2", "/x")); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	default:
		t.Error("ADD ended before GC")
	}
}

// Whatever a record holds, looking at it and checking it does no harm.
func FuzzAttachment(f *testing.F) {
	f.Add([]byte(`{"sandboxID":"sb1","networks":[{"network":"podnet","ifName":"eth0","config":{"name":"podnet","plugins":[{"type":"a"}]},"result":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1/24"}]}}]}`))
	f.Add([]byte(`{"networks":[{"result":{"cniVersion":"0.2.0","ip4":null,"routes":[null]}}]}`))
	f.Add([]byte(`{"networks":[{"result":{"cniVersion":"0.4.0","interfaces":[null],"ips":[{"address":"10.0.0.1/24","interface":-1}]}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		attached := &Attachment{}
		if json.Unmarshal(data, attached) != nil {
			return
		}
		for _, ip := range attached.IPs() {
			if ip == "" || strings.ContainsAny(ip, "/ ") {
				t.Errorf("address %q", ip)
			}
		}
		attached.Inert()
		if attached.check() != nil {
			return
		}
		for i := range attached.Networks {
			member := &attached.Networks[i]
			name := member.Network + "-" + attached.SandboxID + "-" + member.IfName
			if name != filepath.Base(name) {
				t.Errorf("cache file %q", name)
			}
		}
		if _, err := json.Marshal(attached); err != nil {
			t.Errorf("can't be stored again: %v", err)
		}
	})
}
