package node

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// namespaceKinds are those a container always or sometimes has of its own.
var namespaceKinds = []string{"mnt", "pid", "net", "ipc", "uts", "cgroup", "user"}

const readNamespaces = "for n in mnt pid net ipc uts cgroup user; do readlink /proc/self/ns/$n; done"

// namespaces are those of a container's processes, by kind.
func (c *container) namespaces() map[string]string {
	c.p.t.Helper()
	return byKind(c.p.t, c.exec("sh", "-c", readNamespaces))
}

func byKind(t *testing.T, text string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, link := range strings.Fields(text) {
		kind, _, _ := strings.Cut(link, ":")
		found[kind] = link
	}
	if len(found) != len(namespaceKinds) {
		t.Fatalf("namespaces: got %q", text)
	}
	return found
}

// hostNamespaces are the node's: the daemon runs in them as this test does.
func hostNamespaces(t *testing.T) map[string]string {
	t.Helper()
	var links []string
	for _, kind := range namespaceKinds {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		links = append(links, link)
	}
	return byKind(t, strings.Join(links, "\n"))
}

func TestNamespacesAreOwnedOrSharedAsAsked(t *testing.T) {
	n := onNode(t)
	host := hostNamespaces(t)
	for _, test := range []struct {
		name                 string
		change               []func(*criv1.PodSandboxConfig)
		ofHost, ofPod, alone string // kinds
	}{
		{"own network, private processes", []func(*criv1.PodSandboxConfig){ownNetwork}, "user", "net ipc uts", "mnt pid cgroup"},
		{"pod's processes", []func(*criv1.PodSandboxConfig){ownNetwork, podPID}, "user", "net ipc uts pid", "mnt cgroup"},
		{"node's network", nil, "net uts user", "ipc", "mnt pid cgroup"},
		{"node's network, IPC and processes", []func(*criv1.PodSandboxConfig){hostIPC, hostPID}, "net uts ipc pid user", "", "mnt cgroup"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := n.pod(t, test.change...)
			one, two := p.sleeper(nil).namespaces(), p.sleeper(nil).namespaces()
			for _, kind := range strings.Fields(test.ofHost) {
				if one[kind] != host[kind] || two[kind] != host[kind] {
					t.Errorf("%s: got %s and %s, want the node's %s", kind, one[kind], two[kind], host[kind])
				}
			}
			for _, kind := range strings.Fields(test.ofPod) {
				if one[kind] == host[kind] || one[kind] != two[kind] {
					t.Errorf("%s: got %s and %s, want one of the pod's, not the node's %s", kind, one[kind], two[kind], host[kind])
				}
			}
			for _, kind := range strings.Fields(test.alone) {
				if one[kind] == host[kind] || two[kind] == host[kind] || one[kind] == two[kind] {
					t.Errorf("%s: got %s and %s, want each its own, not the node's %s", kind, one[kind], two[kind], host[kind])
				}
			}
		})
	}
}

// statusLine gives one line of a /proc/<pid>/status text.
func statusLine(t *testing.T, text, name string) string {
	t.Helper()
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no %s in %q", name, text)
	return ""
}

// The field's default set: CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW
// SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP.
const defaultCaps = 0xa80425fb

const (
	capNetRaw   = 1 << 13
	capNetAdmin = 1 << 12
	capSysTime  = 1 << 25
)

func TestCapabilityMasks(t *testing.T) {
	n := onNode(t)
	plain, privileged := n.pod(t), n.pod(t, privilegedPod)
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	all, err := strconv.ParseUint(statusLine(t, string(raw), "CapPrm"), 16, 64) // what podwright holds too
	if err != nil {
		t.Fatal(err)
	}
	caps := func(add, drop, ambient string) func(*criv1.ContainerConfig) {
		return func(c *criv1.ContainerConfig) {
			security(c).Capabilities = &criv1.Capability{
				AddCapabilities: strings.Fields(add), DropCapabilities: strings.Fields(drop), AddAmbientCapabilities: strings.Fields(ambient),
			}
		}
	}
	as := func(uid int64, then func(*criv1.ContainerConfig)) func(*criv1.ContainerConfig) {
		return func(c *criv1.ContainerConfig) {
			then(c)
			security(c).RunAsUser = &criv1.Int64Value{Value: uid}
		}
	}
	for name, test := range map[string]struct {
		pod                          *pod
		change                       func(*criv1.ContainerConfig)
		bounding, effective, ambient uint64
	}{
		"default":                    {plain, caps("", "", ""), defaultCaps, defaultCaps, 0},
		"drop ALL":                   {plain, caps("", "ALL", ""), 0, 0, 0},
		"drop ALL, add one":          {plain, caps("NET_RAW", "ALL", ""), capNetRaw, capNetRaw, 0},
		"add two, drop one":          {plain, caps("NET_ADMIN SYS_TIME", "NET_RAW", ""), defaultCaps&^capNetRaw | capNetAdmin | capSysTime, defaultCaps&^capNetRaw | capNetAdmin | capSysTime, 0},
		"add with CAP_, lower case":  {plain, caps("CAP_NET_ADMIN sys_time", "", ""), defaultCaps | capNetAdmin | capSysTime, defaultCaps | capNetAdmin | capSysTime, 0},
		"add ALL":                    {plain, caps("ALL", "", ""), all, all, 0},
		"add ALL, drop one":          {plain, caps("ALL", "NET_RAW", ""), all &^ capNetRaw, all &^ capNetRaw, 0},
		"privileged":                 {privileged, func(c *criv1.ContainerConfig) { security(c).Privileged = true }, all, all, 0},
		"uid 1000":                   {plain, as(1000, caps("", "", "")), defaultCaps, 0, 0},
		"uid 1000 with ambient ones": {plain, as(1000, caps("", "ALL", "NET_RAW")), capNetRaw, capNetRaw, capNetRaw},
	} {
		text := test.pod.output(test.change, "cat", "/proc/self/status")
		for line, want := range map[string]uint64{"CapBnd": test.bounding, "CapEff": test.effective, "CapPrm": test.effective, "CapAmb": test.ambient, "CapInh": test.ambient} {
			if got := statusLine(t, text, line); got != fmt.Sprintf("%016x", want) {
				t.Errorf("%s: %s: got %s, want %016x", name, line, got, want)
			}
		}
	}
}

func seccomp(kind criv1.SecurityProfile_ProfileType) func(*criv1.ContainerConfig) {
	return func(c *criv1.ContainerConfig) { security(c).Seccomp = &criv1.SecurityProfile{ProfileType: kind} }
}

// results reads the probe's table.
func results(text string) map[string]string {
	table := map[string]string{}
	for line := range strings.Lines(text) {
		if i := strings.LastIndexByte(strings.TrimSpace(line), ' '); i > 0 {
			table[line[:i]] = strings.TrimSpace(line[i:])
		}
	}
	return table
}

// The same capabilities, with and without a filter: what differs is the filter's doing.
func TestRuntimeDefaultBlocksWhatUnconfinedAllows(t *testing.T) {
	p := onNode(t).pod(t)
	free := results(p.output(both(outsideModules, seccomp(criv1.SecurityProfile_Unconfined)), "probe", "syscalls"))
	filtered := results(p.output(both(outsideModules, seccomp(criv1.SecurityProfile_RuntimeDefault)), "probe", "syscalls"))
	blocked := map[string]string{
		"keyctl": "EPERM", "socket AF_ALG": "EPERM", "socket AF_VSOCK": "EPERM", "io_uring_setup": "EPERM", "userfaultfd": "EPERM", "bpf": "EPERM",
		"clock_settime": "EPERM", "init_module": "EPERM", "unshare -U": "EPERM",
	}
	for _, name := range slices.Sorted(maps.Keys(blocked)) {
		t.Logf("%-16s unconfined %-12s RuntimeDefault %s", name, free[name], filtered[name])
		if filtered[name] != blocked[name] {
			t.Errorf("%s with RuntimeDefault: got %q, want %s", name, filtered[name], blocked[name])
		}
		// A kernel with modules checks the capability first, and answers EPERM too.
		if free[name] == blocked[name] && name != "init_module" || free[name] == "" {
			t.Errorf("%s unconfined: got %q, want an answer that is not the filter's", name, free[name])
		}
	}
	for _, name := range []string{"getpid", "newer than any profile"} {
		want := map[string]string{"getpid": "ok", "newer than any profile": "ENOSYS"}[name]
		if free[name] != want || filtered[name] != want {
			t.Errorf("%s: got %q unconfined, %q with RuntimeDefault, want %s", name, free[name], filtered[name], want)
		}
	}
	if got := statusLine(t, p.output(nil, "cat", "/proc/self/status"), "Seccomp"); got != "0" {
		t.Errorf("no profile asked for: got Seccomp %s, want 0, the CRI's default", got)
	}
	// The profile follows the capabilities, as Kubernetes users expect: whoever may set the clock may call it.
	warranted := results(p.output(func(c *criv1.ContainerConfig) {
		outsideModules(c)
		seccomp(criv1.SecurityProfile_RuntimeDefault)(c)
		security(c).Capabilities.AddCapabilities = []string{"SYS_TIME", "SYS_MODULE", "BPF"}
	}, "probe", "syscalls"))
	for _, name := range []string{"clock_settime", "init_module", "bpf"} {
		if warranted[name] == "EPERM" {
			t.Errorf("%s with its capability: got EPERM, want the kernel's own answer", name)
		}
	}
	if warranted["keyctl"] != "EPERM" {
		t.Errorf("keyctl with other capabilities: got %q, want EPERM", warranted["keyctl"])
	}
}

// Without no_new_privs the filter is loaded before the user changes, with it afterwards: it holds both ways, and for
// set-uid programs.
func TestFilterHoldsForUsersWithAndWithoutNoNewPrivs(t *testing.T) {
	p := onNode(t).pod(t)
	for _, nnp := range []bool{false, true} {
		change := func(kind criv1.SecurityProfile_ProfileType) func(*criv1.ContainerConfig) {
			return func(c *criv1.ContainerConfig) {
				seccomp(kind)(c)
				security(c).NoNewPrivs, security(c).RunAsUser = nnp, &criv1.Int64Value{Value: 1000}
			}
		}
		status := p.output(change(criv1.SecurityProfile_RuntimeDefault), "cat", "/proc/self/status")
		for line, want := range map[string]string{"NoNewPrivs": map[bool]string{false: "0", true: "1"}[nnp], "Seccomp": "2", "Seccomp_filters": "1"} {
			if got := statusLine(t, status, line); got != want {
				t.Errorf("no_new_privs %v: %s: got %s, want %s", nnp, line, got, want)
			}
		}
		if got := statusLine(t, status, "Uid"); got != "1000\t1000\t1000\t1000" {
			t.Errorf("no_new_privs %v: Uid: got %q", nnp, got)
		}
		free := results(p.output(change(criv1.SecurityProfile_Unconfined), "probe", "syscalls"))
		filtered := results(p.output(change(criv1.SecurityProfile_RuntimeDefault), "probe", "syscalls"))
		for _, name := range []string{"keyctl", "io_uring_setup"} {
			if free[name] == "EPERM" || filtered[name] != "EPERM" {
				t.Errorf("no_new_privs %v: %s: got %q unconfined, %q with RuntimeDefault", nnp, name, free[name], filtered[name])
			}
		}
		id := p.output(change(criv1.SecurityProfile_RuntimeDefault), "suid-probe", "id")
		if want := map[bool]string{false: "uid 1000 euid 0", true: "uid 1000 euid 1000"}[nnp]; !strings.HasPrefix(id, want) {
			t.Errorf("no_new_privs %v: a set-uid program is %q, want %q", nnp, id, want)
		}
	}
}

func TestLocalhostProfileHoldsForWorkloadAndExec(t *testing.T) {
	p := onNode(t).pod(t)
	file := p.n.path("seccomp", "no-mkdir.json")
	profile := `{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [ { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 } ] }`
	if err := os.WriteFile(file, []byte(profile), 0o644); err != nil {
		t.Fatal(err)
	}
	c := p.start(func(c *criv1.ContainerConfig) {
		security(c).Seccomp = &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_Localhost, LocalhostRef: file}
	}, "sh", "-c", "mkdir /tmp/a; sleep 1000")
	resp, err := c.tryExec(10, "mkdir", "/tmp/b")
	if err != nil || resp.GetExitCode() == 0 || !strings.Contains(string(resp.GetStderr()), "No space left on device") {
		t.Errorf("mkdir by exec: got %v, %v, want the profile's error 28", resp, err)
	}
	c.stop(0)
	if got := c.stream("stderr"); !strings.Contains(got, "No space left on device") {
		t.Errorf("mkdir by the workload: got %q, want the profile's error 28", got)
	}
}
