package node

import (
	"fmt"
	"os"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Every refusal names what is wrong and leaves nothing: the pod is removed by its own cleanup, and then the leak oracle
// finds the node as before.

func TestSandboxRequestsAreRefused(t *testing.T) {
	n := onNode(t)
	security := func(c *criv1.PodSandboxConfig) *criv1.LinuxSandboxSecurityContext { return c.Linux.SecurityContext }
	for name, test := range map[string]struct {
		change func(*criv1.PodSandboxConfig)
		words  []string
	}{
		"no metadata":           {func(c *criv1.PodSandboxConfig) { c.Metadata = nil }, []string{"metadata.name"}},
		"no uid":                {func(c *criv1.PodSandboxConfig) { c.Metadata.Uid = "" }, []string{"metadata.uid"}},
		"long hostname":         {func(c *criv1.PodSandboxConfig) { c.Hostname = strings.Repeat("a", 65) }, []string{"hostname", "64"}},
		"hostname of two lines": {func(c *criv1.PodSandboxConfig) { c.Hostname = "a\nb" }, []string{"hostname"}},
		"relative log directory": {func(c *criv1.PodSandboxConfig) { c.LogDirectory = "logs" },
			[]string{"log_directory", "logs"}},
		"name server that is none": {func(c *criv1.PodSandboxConfig) { c.DnsConfig = &criv1.DNSConfig{Servers: []string{"ns1"}} }, []string{"servers", "ns1"}},
		"search with a line end": {func(c *criv1.PodSandboxConfig) {
			c.DnsConfig = &criv1.DNSConfig{Searches: []string{"a\nnameserver 6.6.6.6"}}
		}, []string{"searches"}},
		"port that is none": {func(c *criv1.PodSandboxConfig) {
			c.PortMappings = []*criv1.PortMapping{{HostPort: 70000, ContainerPort: 80}}
		}, []string{"port_mappings[0].host_port", "70000"}},
		"cgroup parent outside": {func(c *criv1.PodSandboxConfig) { c.Linux.CgroupParent = "/a/../../b" }, []string{"cgroup_parent", "/a/../../b"}},
		"sysctl of the whole node": {func(c *criv1.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"kernel.core_pattern": "|/bin/evil"}
		}, []string{"sysctls", "kernel.core_pattern"}},
		"sysctl of the node's network": {func(c *criv1.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		}, []string{"net.ipv4.ip_forward", "network namespace"}},
		"sysctl of the node's IPC (CVE-2022-0532)": {func(c *criv1.PodSandboxConfig) {
			hostIPC(c)
			c.Linux.Sysctls = map[string]string{"kernel.shmmax": "1"}
		}, []string{"kernel.shmmax", "ipc"}},
		"sysctl with a second setting in it (CVE-2022-0811)": {func(c *criv1.PodSandboxConfig) {
			ownNetwork(c)
			c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1+kernel.core_pattern=|x"}
		}, []string{"kernel.shm_rmid_forced"}},
		"sysctl by path": {func(c *criv1.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net/../kernel/core_pattern": "x"}
		}, []string{"sysctls"}},
		"user namespace": {func(c *criv1.PodSandboxConfig) {
			security(c).NamespaceOptions.UsernsOptions = &criv1.UserNamespace{Mode: criv1.NamespaceMode_POD}
		}, []string{"userns_options"}},
		"network of another container": {func(c *criv1.PodSandboxConfig) {
			security(c).NamespaceOptions.Network = criv1.NamespaceMode_TARGET
		}, []string{"namespace_options.network", "TARGET"}},
		"group without user": {func(c *criv1.PodSandboxConfig) { security(c).RunAsGroup = &criv1.Int64Value{Value: 5} }, []string{"run_as_group"}},
		"Windows":            {func(c *criv1.PodSandboxConfig) { c.Windows = &criv1.WindowsPodSandboxConfig{} }, []string{"windows"}},
	} {
		resp, err := n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: n.podConfig(test.change)})
		t.Run(name, func(t *testing.T) { wantError(t, err, codes.InvalidArgument, test.words...) })
		if resp.GetPodSandboxId() != "" {
			n.removePod(t, resp.GetPodSandboxId())
		}
	}
	_, err := n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: n.podConfig(), RuntimeHandler: "kata"})
	wantError(t, err, codes.InvalidArgument, "runtime_handler", "kata")
	_, err = n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{})
	wantError(t, err, codes.InvalidArgument, "config")
	list, err := n.ListPodSandbox(ctx(t), &criv1.ListPodSandboxRequest{})
	if err != nil || len(list.GetItems()) != 0 {
		t.Errorf("sandboxes after refusals: got %v, %v, want none", list, err)
	}
}

// refusal is a change of a container's configuration that may not be obeyed.
type refusal struct {
	change func(*criv1.ContainerConfig)
	code   codes.Code
	words  []string
}

func security(c *criv1.ContainerConfig) *criv1.LinuxContainerSecurityContext {
	return c.Linux.SecurityContext
}

func resources(c *criv1.ContainerConfig) *criv1.LinuxContainerResources { return c.Linux.Resources }

func bind(host, target string) *criv1.Mount {
	return &criv1.Mount{HostPath: host, ContainerPath: target}
}

func testRefusals(t *testing.T, p *pod, refusals map[string]refusal) {
	for name, test := range refusals {
		before := p.files()
		id, err := p.tryCreate(p.containerConfig(test.change, "true"))
		t.Run(name, func(t *testing.T) {
			code := test.code
			if code == 0 {
				code = codes.InvalidArgument
			}
			wantError(t, err, code, test.words...)
			if after := p.files(); len(after) != len(before) {
				t.Errorf("files of containers: got %v, before %v", after, before)
			}
		})
		if id != "" {
			(&container{p: p, id: id}).remove()
		}
	}
	list, err := p.n.ListContainers(ctx(t), &criv1.ListContainersRequest{})
	if err != nil || len(list.GetContainers()) != 0 {
		t.Errorf("containers after refusals: got %v, %v, want none", list, err)
	}
}

// files are what containers have in the state and run directories.
func (p *pod) files() []string {
	p.t.Helper()
	var names []string
	for _, dir := range []string{"state/containers", "run/containers", "state/records/containers"} {
		entries, err := os.ReadDir(p.n.path(dir))
		if err != nil && !os.IsNotExist(err) {
			p.t.Fatal(err)
		}
		for _, entry := range entries {
			names = append(names, dir+"/"+entry.Name())
		}
	}
	return names
}

func TestContainerRequestsAreRefused(t *testing.T) {
	p := onNode(t).pod(t)
	testRefusals(t, p, map[string]refusal{
		"no name":          {change: func(c *criv1.ContainerConfig) { c.Metadata.Name = "" }, words: []string{"metadata.name"}},
		"no image":         {change: func(c *criv1.ContainerConfig) { c.Image.Image = "" }, words: []string{"image.image"}},
		"image not pulled": {change: func(c *criv1.ContainerConfig) { c.Image.Image = "127.0.0.1:1/absent:1" }, code: codes.NotFound, words: []string{"127.0.0.1:1/absent:1"}},
		"malformed image":  {change: func(c *criv1.ContainerConfig) { c.Image.Image = "UPPER/case::" }, words: []string{"UPPER/case::"}},
		"missing host path": {change: func(c *criv1.ContainerConfig) { c.Mounts = []*criv1.Mount{bind("/no/such/path", "/mnt")} },
			words: []string{"mounts[0].host_path", "/no/such/path"}},
		"relative container path": {change: func(c *criv1.ContainerConfig) { c.Mounts = []*criv1.Mount{bind("/tmp", "mnt")} }, words: []string{"mounts[0].container_path"}},
		"mount over the root":     {change: func(c *criv1.ContainerConfig) { c.Mounts = []*criv1.Mount{bind("/tmp", "/")} }, words: []string{"mounts[0].container_path"}},
		"mount over /proc/sys":    {change: func(c *criv1.ContainerConfig) { c.Mounts = []*criv1.Mount{bind("/tmp", "/proc/sys")} }, words: []string{"/proc/sys"}},
		"two mounts in one place": {change: func(c *criv1.ContainerConfig) { c.Mounts = []*criv1.Mount{bind("/tmp", "/a"), bind("/tmp", "/a/")} },
			words: []string{"mounts[1].container_path"}},
		"missing device": {change: func(c *criv1.ContainerConfig) {
			c.Devices = []*criv1.Device{{HostPath: "/dev/none", ContainerPath: "/dev/none", Permissions: "rw"}}
		}, words: []string{"devices[0].host_path", "/dev/none"}},
		"device that is none": {change: func(c *criv1.ContainerConfig) {
			c.Devices = []*criv1.Device{{HostPath: "/etc/passwd", ContainerPath: "/dev/x", Permissions: "rw"}}
		}, words: []string{"/etc/passwd"}},
		"device permissions": {change: func(c *criv1.ContainerConfig) {
			c.Devices = []*criv1.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rwx"}}
		}, words: []string{"permissions", "rwx"}},
		"CDI device":           {change: func(c *criv1.ContainerConfig) { c.CDIDevices = []*criv1.CDIDevice{{Name: "vendor/x=1"}} }, words: []string{"CDI_devices"}},
		"log path up and out":  {change: func(c *criv1.ContainerConfig) { c.LogPath = "../../../etc/cron.d/x" }, words: []string{"log_path", "../../../etc/cron.d/x"}},
		"absolute log path":    {change: func(c *criv1.ContainerConfig) { c.LogPath = "/etc/passwd" }, words: []string{"log_path"}},
		"stop signal":          {change: func(c *criv1.ContainerConfig) { c.StopSignal = 999 }, words: []string{"stop_signal", "999"}},
		"name of a variable":   {change: func(c *criv1.ContainerConfig) { c.Envs = []*criv1.KeyValue{{Key: "A=B", Value: []byte("x")}} }, words: []string{"envs[0].key", "A=B"}},
		"runtime handler":      {change: func(c *criv1.ContainerConfig) { c.Image.RuntimeHandler = "kata" }, words: []string{"runtime_handler"}},
		"Windows":              {change: func(c *criv1.ContainerConfig) { c.Windows = &criv1.WindowsContainerConfig{} }, words: []string{"windows"}},
		"no program":           {change: func(c *criv1.ContainerConfig) { c.Command = nil }, words: []string{"command"}},
		"relative working dir": {change: func(c *criv1.ContainerConfig) { c.WorkingDir = "x" }, words: []string{"working_dir"}},
	})
}

func TestImpossibleResourcesAreRefused(t *testing.T) {
	p := onNode(t).pod(t)
	testRefusals(t, p, map[string]refusal{
		"negative memory": {change: func(c *criv1.ContainerConfig) { resources(c).MemoryLimitInBytes = -5 }, words: []string{"memory_limit_in_bytes", "-5"}},
		"swap below memory": {change: func(c *criv1.ContainerConfig) {
			resources(c).MemoryLimitInBytes, resources(c).MemorySwapLimitInBytes = 1<<27, 1<<26
		}, words: []string{"memory_swap_limit_in_bytes"}},
		"swap alone":           {change: func(c *criv1.ContainerConfig) { resources(c).MemorySwapLimitInBytes = 1 << 26 }, words: []string{"memory_swap_limit_in_bytes"}},
		"shares":               {change: func(c *criv1.ContainerConfig) { resources(c).CpuShares = 1 << 40 }, words: []string{"cpu_shares"}},
		"period":               {change: func(c *criv1.ContainerConfig) { resources(c).CpuPeriod = 5 }, words: []string{"cpu_period", "5"}},
		"quota":                {change: func(c *criv1.ContainerConfig) { resources(c).CpuQuota = 10 }, words: []string{"cpu_quota", "10"}},
		"cpus":                 {change: func(c *criv1.ContainerConfig) { resources(c).CpusetCpus = "0-x" }, words: []string{"cpuset_cpus", "0-x"}},
		"cpus of another size": {change: func(c *criv1.ContainerConfig) { resources(c).CpusetCpus = "0,70000" }, words: []string{"cpuset_cpus"}},
		"OOM score":            {change: func(c *criv1.ContainerConfig) { resources(c).OomScoreAdj = 1001 }, words: []string{"oom_score_adj", "1001"}},
		"huge page size": {change: func(c *criv1.ContainerConfig) {
			resources(c).HugepageLimits = []*criv1.HugepageLimit{{PageSize: "3 cats"}}
		}, words: []string{"page_size", "3 cats"}},
		"file of the process list": {change: func(c *criv1.ContainerConfig) { resources(c).Unified = map[string]string{"cgroup.procs": "1"} }, words: []string{"unified"}},
	})
}

func TestContradictorySecurityIsRefused(t *testing.T) {
	p := onNode(t).pod(t)
	namespaces := func(change func(*criv1.NamespaceOption)) func(*criv1.ContainerConfig) {
		return func(c *criv1.ContainerConfig) {
			options := &criv1.NamespaceOption{Network: criv1.NamespaceMode_NODE, Pid: criv1.NamespaceMode_CONTAINER}
			change(options)
			security(c).NamespaceOptions = options
		}
	}
	testRefusals(t, p, map[string]refusal{
		"privileged in a sandbox that isn't": {change: func(c *criv1.ContainerConfig) { security(c).Privileged = true }, words: []string{"privileged"}},
		"the node's processes":               {change: namespaces(func(o *criv1.NamespaceOption) { o.Pid = criv1.NamespaceMode_NODE }), words: []string{"namespace_options.pid", "NODE"}},
		"the pod's processes without any":    {change: namespaces(func(o *criv1.NamespaceOption) { o.Pid = criv1.NamespaceMode_POD }), words: []string{"namespace_options.pid", "POD"}},
		"the node's IPC":                     {change: namespaces(func(o *criv1.NamespaceOption) { o.Ipc = criv1.NamespaceMode_NODE }), words: []string{"namespace_options.ipc"}},
		"another container's processes": {change: namespaces(func(o *criv1.NamespaceOption) {
			o.Pid, o.TargetId = criv1.NamespaceMode_TARGET, "x"
		}), code: codes.NotFound, words: []string{"namespace_options.target_id", "\"x\""}},
		"processes of no container": {change: namespaces(func(o *criv1.NamespaceOption) { o.Pid = criv1.NamespaceMode_TARGET }), words: []string{"namespace_options.target_id", "missing"}},
		"unknown user name":         {change: func(c *criv1.ContainerConfig) { security(c).RunAsUsername = "mallory" }, words: []string{"mallory"}},
		"user id out of range":      {change: func(c *criv1.ContainerConfig) { security(c).RunAsUser = &criv1.Int64Value{Value: 1 << 32} }, words: []string{"run_as_user", "4294967296"}},
		"negative user id":          {change: func(c *criv1.ContainerConfig) { security(c).RunAsUser = &criv1.Int64Value{Value: -1} }, words: []string{"run_as_user", "-1"}},
		"group without a user":      {change: func(c *criv1.ContainerConfig) { security(c).RunAsGroup = &criv1.Int64Value{Value: 1} }, words: []string{"run_as_group"}},
		"unknown capability":        {change: func(c *criv1.ContainerConfig) { security(c).Capabilities.AddCapabilities = []string{"SYS_MAGIC"} }, words: []string{"add_capabilities", "SYS_MAGIC"}},
		"unknown enum of groups":    {change: func(c *criv1.ContainerConfig) { security(c).SupplementalGroupsPolicy = 77 }, words: []string{"supplemental_groups_policy", "77"}},
		"masked root":               {change: func(c *criv1.ContainerConfig) { security(c).MaskedPaths = []string{"/"} }, words: []string{"masked_paths"}},
		"seccomp without a path (CVE-2023-2431)": {change: func(c *criv1.ContainerConfig) {
			security(c).Seccomp = &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_Localhost}
		}, words: []string{"localhost_ref"}},
		"seccomp profile that is missing": {change: func(c *criv1.ContainerConfig) {
			security(c).Seccomp = &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_Localhost, LocalhostRef: p.n.path("seccomp", "none.json")}
		}, words: []string{"none.json"}},
		"seccomp profile outside the directory": {change: func(c *criv1.ContainerConfig) {
			security(c).Seccomp = &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_Localhost, LocalhostRef: "/etc/passwd"}
		}, words: []string{"/etc/passwd"}},
		"AppArmor profile": {change: func(c *criv1.ContainerConfig) {
			security(c).Apparmor = &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_Localhost, LocalhostRef: "x"}
		}, words: []string{"apparmor"}},
	})
}

func TestBadSeccompProfilesAreRefusedWithThePlace(t *testing.T) {
	p := onNode(t).pod(t)
	refusals := map[string]refusal{}
	for name, test := range map[string]struct{ text, word string }{
		"no JSON":        {`{ "defaultAction": `, "JSON"},
		"unknown action": {`{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [ { "names": ["read"], "action": "SCMP_ACT_LAUGH" } ] }`, "SCMP_ACT_LAUGH"},
		"unknown field":  {`{ "defaultAction": "SCMP_ACT_ALLOW", "syscals": [] }`, "syscals"},
	} {
		file := p.n.path("seccomp", strings.ReplaceAll(name, " ", "-")+".json")
		if err := os.WriteFile(file, []byte(test.text), 0o644); err != nil {
			t.Fatal(err)
		}
		refusals[name] = refusal{change: func(c *criv1.ContainerConfig) {
			security(c).Seccomp = &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_Localhost, LocalhostRef: file}
		}, words: []string{file, test.word}}
	}
	testRefusals(t, p, refusals)
}

func TestAbsurdImageConfigsAreRefusedB48B49(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	refusals := map[string]refusal{}
	for name, test := range map[string]struct {
		config v1.Config
		word   string
	}{
		"user beyond 32 bits":       {v1.Config{User: "4294967296"}, "4294967296"},
		"user beyond 64 bits":       {v1.Config{User: "99999999999999999999"}, "99999999999999999999"},
		"user that nobody knows":    {v1.Config{User: "mallory"}, "mallory"},
		"volume over /proc":         {v1.Config{Volumes: map[string]struct{}{"/proc/self": {}}}, "/proc/self"},
		"volume that climbs":        {v1.Config{Volumes: map[string]struct{}{"/x/../..": {}}}, "Volumes"},
		"environment without names": {v1.Config{Env: []string{"=x"}}, "Env"},
		"stop signal":               {v1.Config{StopSignal: "SIGLAUGH"}, "SIGLAUGH"},
		"directory with a line end": {v1.Config{WorkingDir: "/a\nb"}, "WorkingDir"},
	} {
		image := n.pulled(t, "node/"+strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), "/", "")+":1", test.config)
		refusals[name] = refusal{change: func(c *criv1.ContainerConfig) { c.Image.Image = image }, words: []string{test.word}}
	}
	testRefusals(t, p, refusals)
}

// Some entries are too many for any image, so that pulling them is refused.
func TestImageConfigsOfThousandsAreNotPulledB49(t *testing.T) {
	n := onNode(t)
	many := make([]string, 5000)
	for i := range many {
		many[i] = fmt.Sprintf("V%d=x", i)
	}
	name, err := push("node/thousands:1", v1.Config{Env: many})
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.images.PullImage(ctx(t), &criv1.PullImageRequest{Image: &criv1.ImageSpec{Image: name}})
	wantError(t, err, codes.InvalidArgument, name, "Env")
	if s, err := n.images.ImageStatus(ctx(t), &criv1.ImageStatusRequest{Image: &criv1.ImageSpec{Image: name}}); err != nil || s.GetImage() != nil {
		t.Errorf("image after the refusal: got %v, %v, want none", s, err)
	}
}

func TestMalformedReferencesAreRefused(t *testing.T) {
	n := onNode(t)
	for _, ref := range []string{"", "127.0.0.1:1/UPPER", "a b", "host/name@sha256:short", "x:", "../x", strings.Repeat("a", 5000)} {
		image := &criv1.ImageSpec{Image: ref}
		_, err := n.images.PullImage(ctx(t), &criv1.PullImageRequest{Image: image})
		wantError(t, err, codes.InvalidArgument)
		if len(ref) < 100 && ref != "" {
			wantError(t, err, codes.InvalidArgument, ref)
		}
		if _, err := n.images.ImageStatus(ctx(t), &criv1.ImageStatusRequest{Image: image}); err == nil && ref == "" {
			t.Errorf("ImageStatus(%q): got success, want a refusal", ref)
		}
	}
	_, err := n.images.PullImage(ctx(t), &criv1.PullImageRequest{Image: &criv1.ImageSpec{Image: "127.0.0.1:1/x:1"}})
	wantError(t, err, codes.Unknown, "127.0.0.1:1")
}
