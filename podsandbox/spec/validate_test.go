package spec

import (
	"errors"
	"strings"
	"testing"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// wantField checks that err is a FieldError on field.
func wantField(t *testing.T, err error, field string) {
	t.Helper()
	var got *FieldError
	switch {
	case !errors.As(err, &got):
		t.Errorf("got %v, want a FieldError on %s", err, field)
	case got.Field != field:
		t.Errorf("got field %s (%v), want %s", got.Field, err, field)
	case !errors.Is(err, ErrInvalid):
		t.Errorf("%v is not ErrInvalid", err)
	}
}

func TestSandboxesThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		name, field string
		spoil       func(*criv1.PodSandboxConfig)
	}{
		{"no metadata", "metadata.name", func(c *criv1.PodSandboxConfig) { c.Metadata = nil }},
		{"no uid", "metadata.uid", func(c *criv1.PodSandboxConfig) { c.Metadata.Uid = "" }},
		{"newline in a name", "metadata.namespace", func(c *criv1.PodSandboxConfig) { c.Metadata.Namespace = "a\nb" }},
		{"long name", "metadata.name", func(c *criv1.PodSandboxConfig) { c.Metadata.Name = strings.Repeat("a", 254) }},
		{"hostname with a newline", "hostname", func(c *criv1.PodSandboxConfig) { c.Hostname = "a\n127.0.0.1 b" }},
		{"hostname too long", "hostname", func(c *criv1.PodSandboxConfig) { c.Hostname = strings.Repeat("a", 65) }},
		{"relative log directory", "log_directory", func(c *criv1.PodSandboxConfig) { c.LogDirectory = "logs" }},
		{"DNS server by name", "dns_config.servers", func(c *criv1.PodSandboxConfig) { c.DnsConfig = &criv1.DNSConfig{Servers: []string{"dns.example"}} }},
		{"DNS search of two words", "dns_config.searches", func(c *criv1.PodSandboxConfig) { c.DnsConfig = &criv1.DNSConfig{Searches: []string{"a b"}} }},
		{"DNS option with a newline", "dns_config.options", func(c *criv1.PodSandboxConfig) {
			c.DnsConfig = &criv1.DNSConfig{Options: []string{"ndots:1\nnameserver 6.6.6.6"}}
		}},
		{"negative port", "port_mappings[0].container_port", func(c *criv1.PodSandboxConfig) { c.PortMappings = []*criv1.PortMapping{{ContainerPort: -1}} }},
		{"host port beyond", "port_mappings[0].host_port", func(c *criv1.PodSandboxConfig) {
			c.PortMappings = []*criv1.PortMapping{{ContainerPort: 80, HostPort: 65536}}
		}},
		{"host port to nowhere", "port_mappings[0].container_port", func(c *criv1.PodSandboxConfig) { c.PortMappings = []*criv1.PortMapping{{HostPort: 80}} }},
		{"host IP", "port_mappings[0].host_ip", func(c *criv1.PodSandboxConfig) {
			c.PortMappings = []*criv1.PortMapping{{ContainerPort: 80, HostIp: "here"}}
		}},
		{"unknown protocol", "port_mappings[0].protocol", func(c *criv1.PodSandboxConfig) { c.PortMappings = []*criv1.PortMapping{{Protocol: 9}} }},
		{"cgroup parent upwards", "linux.cgroup_parent", func(c *criv1.PodSandboxConfig) { c.Linux.CgroupParent = "/kubepods/../../x" }},
		{"network of a container", "linux.security_context.namespace_options.network", func(c *criv1.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = criv1.NamespaceMode_CONTAINER
		}},
		{"PID of another container", "linux.security_context.namespace_options.pid", func(c *criv1.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = criv1.NamespaceMode_TARGET
		}},
		{"target", "linux.security_context.namespace_options.target_id", func(c *criv1.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.TargetId = "7a46"
		}},
		{"group without user", "linux.security_context.run_as_group", func(c *criv1.PodSandboxConfig) {
			c.Linux.SecurityContext.RunAsGroup = &criv1.Int64Value{Value: 1}
		}},
		{"sysctl of the node", "linux.sysctls", func(c *criv1.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.core_pattern": "x"} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := goodSandbox()
			c.spoil(config)
			wantField(t, ValidateSandbox(config, testNode(2)), c.field)
		})
	}
	wantField(t, ValidateSandbox(nil, testNode(2)), "config")
}

func TestSandboxesThatAreAccepted(t *testing.T) {
	for name, set := range map[string]func(*criv1.PodSandboxConfig){
		"nothing but metadata":    func(c *criv1.PodSandboxConfig) { c.Linux = nil },
		"empty DNS configuration": func(c *criv1.PodSandboxConfig) { c.DnsConfig = &criv1.DNSConfig{} },
		"slice as cgroup parent":  func(c *criv1.PodSandboxConfig) { c.Linux.CgroupParent = "kubepods-burstable-pod1.slice" },
		"the node's user namespace": func(c *criv1.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &criv1.UserNamespace{Mode: criv1.NamespaceMode_NODE}
		},
		"host port 0":               func(c *criv1.PodSandboxConfig) { c.PortMappings = []*criv1.PortMapping{{ContainerPort: 80}} },
		"annotations of many lines": func(c *criv1.PodSandboxConfig) { c.Annotations = map[string]string{"a": "b\nc\x00"} },
		"root search domain": func(c *criv1.PodSandboxConfig) {
			c.DnsConfig = &criv1.DNSConfig{Searches: []string{"."}, Servers: []string{"fe80::1%eth0"}}
		},
	} {
		config := goodSandbox()
		set(config)
		if err := ValidateSandbox(config, testNode(2)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestContainersThatAreRefused(t *testing.T) {
	security := func(c *criv1.ContainerConfig) *criv1.LinuxContainerSecurityContext { return c.Linux.SecurityContext }
	const sc = "linux.security_context."
	for _, c := range []struct {
		name, field string
		spoil       func(*criv1.ContainerConfig)
	}{
		{"no image", "image.image", func(c *criv1.ContainerConfig) { c.Image = nil }},
		{"NUL in an argument", "args", func(c *criv1.ContainerConfig) { c.Args = []string{"a\x00b"} }},
		{"relative directory", "working_dir", func(c *criv1.ContainerConfig) { c.WorkingDir = "srv" }},
		{"equals sign in a name", "envs[0].key", func(c *criv1.ContainerConfig) { c.Envs = []*criv1.KeyValue{{Key: "A=B"}} }},
		{"NUL in a value", "envs[0].value", func(c *criv1.ContainerConfig) { c.Envs = []*criv1.KeyValue{{Key: "A", Value: []byte("x\x00y")}} }},
		{"log path upwards", "log_path", func(c *criv1.ContainerConfig) { c.LogPath = "a/../../../etc/cron.d/x" }},
		{"absolute log path", "log_path", func(c *criv1.ContainerConfig) { c.LogPath = "/etc/x" }},
		{"relative mount", "mounts[0].container_path", func(c *criv1.ContainerConfig) { c.Mounts[0].ContainerPath = "data" }},
		{"mount over the root", "mounts[0].container_path", func(c *criv1.ContainerConfig) { c.Mounts[0].ContainerPath = "/a/.." }},
		{"mount of nothing", "mounts[0].host_path", func(c *criv1.ContainerConfig) { c.Mounts[0].HostPath = "" }},
		{"mounted twice", "mounts[1].container_path", func(c *criv1.ContainerConfig) {
			c.Mounts = append(c.Mounts, &criv1.Mount{ContainerPath: "/data/", HostPath: "/x"})
		}},
		{"recursive read-only and writable", "mounts[0].recursive_read_only", func(c *criv1.ContainerConfig) { c.Mounts[0].RecursiveReadOnly = true; c.Mounts[0].Readonly = false }},
		{"recursive read-only and propagated", "mounts[0].recursive_read_only", func(c *criv1.ContainerConfig) {
			c.Mounts[0].RecursiveReadOnly, c.Mounts[0].Readonly = true, true
			c.Mounts[0].Propagation = criv1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		}},
		{"mount option of no protection", "mounts[0].mount_options", func(c *criv1.ContainerConfig) { c.Mounts[0].MountOptions = []string{"noexec", "rw"} }},
		{"two mount options in one", "mounts[0].mount_options", func(c *criv1.ContainerConfig) { c.Mounts[0].MountOptions = []string{"noexec,nodev"} }},
		{"empty mount option", "mounts[0].mount_options", func(c *criv1.ContainerConfig) { c.Mounts[0].MountOptions = []string{""} }},
		{"mount over /proc", "mounts[0].container_path", func(c *criv1.ContainerConfig) { c.Mounts[0].ContainerPath = "/proc" }},
		{"mount over /proc/self (CVE-2019-16884)", "mounts[0].container_path", func(c *criv1.ContainerConfig) { c.Mounts[0].ContainerPath = "/proc/self/attr" }},
		{"the same spelt otherwise", "mounts[0].container_path", func(c *criv1.ContainerConfig) { c.Mounts[0].ContainerPath = "//x/../proc/./self" }},
		{"device without permissions", "devices[0].permissions", func(c *criv1.ContainerConfig) {
			c.Devices = []*criv1.Device{{ContainerPath: "/dev/a", HostPath: "/dev/a"}}
		}},
		{"device permissions twice", "devices[0].permissions", func(c *criv1.ContainerConfig) {
			c.Devices = []*criv1.Device{{ContainerPath: "/dev/a", HostPath: "/dev/a", Permissions: "rr"}}
		}},
		{"privileged in a sandbox that is not", sc + "privileged", func(c *criv1.ContainerConfig) { security(c).Privileged = true }},
		{"the node's network", sc + "namespace_options.network", func(c *criv1.ContainerConfig) {
			security(c).NamespaceOptions = &criv1.NamespaceOption{Network: criv1.NamespaceMode_NODE, Pid: criv1.NamespaceMode_CONTAINER}
		}},
		{"the node's processes", sc + "namespace_options.pid", func(c *criv1.ContainerConfig) {
			security(c).NamespaceOptions = &criv1.NamespaceOption{Pid: criv1.NamespaceMode_NODE}
		}},
		{"shared processes where none are", sc + "namespace_options.pid", func(c *criv1.ContainerConfig) {
			security(c).NamespaceOptions = &criv1.NamespaceOption{}
		}},
		{"processes of nobody", sc + "namespace_options.target_id", func(c *criv1.ContainerConfig) {
			security(c).NamespaceOptions = &criv1.NamespaceOption{Pid: criv1.NamespaceMode_TARGET}
		}},
		{"target of its own processes", sc + "namespace_options.target_id", func(c *criv1.ContainerConfig) {
			security(c).NamespaceOptions = &criv1.NamespaceOption{Pid: criv1.NamespaceMode_CONTAINER, TargetId: "7a46"}
		}},
		{"network of another container", sc + "namespace_options.network", func(c *criv1.ContainerConfig) {
			security(c).NamespaceOptions = &criv1.NamespaceOption{Pid: criv1.NamespaceMode_CONTAINER, Network: criv1.NamespaceMode_TARGET, TargetId: "7a46"}
		}},
		{"group without user", sc + "run_as_group", func(c *criv1.ContainerConfig) { security(c).RunAsGroup = &criv1.Int64Value{Value: 1} }},
		{"user by id and name", sc + "run_as_username", func(c *criv1.ContainerConfig) {
			security(c).RunAsUser, security(c).RunAsUsername = &criv1.Int64Value{Value: 1}, "a"
		}},
		{"negative user", sc + "run_as_user", func(c *criv1.ContainerConfig) { security(c).RunAsUser = &criv1.Int64Value{Value: -1} }},
		{"user that wraps to root (CVE-2024-40635)", sc + "run_as_user", func(c *criv1.ContainerConfig) {
			security(c).RunAsUser = &criv1.Int64Value{Value: 1 << 32}
		}},
		{"group that wraps to root", sc + "supplemental_groups", func(c *criv1.ContainerConfig) { security(c).SupplementalGroups = []int64{1 << 32} }},
		{"unknown capability", sc + "capabilities.add_capabilities", func(c *criv1.ContainerConfig) {
			security(c).Capabilities = &criv1.Capability{AddCapabilities: []string{"FLY"}}
		}},
		{"unknown capability dropped", sc + "capabilities.drop_capabilities", func(c *criv1.ContainerConfig) {
			security(c).Capabilities = &criv1.Capability{DropCapabilities: []string{"FLY"}}
		}},
		{"relative masked path", sc + "masked_paths", func(c *criv1.ContainerConfig) { security(c).MaskedPaths = []string{"proc"} }},
		{"Localhost profile without a path (CVE-2023-2431)", sc + "seccomp.localhost_ref", func(c *criv1.ContainerConfig) {
			security(c).Seccomp = &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_Localhost}
		}},
		{"profile path without Localhost", sc + "seccomp.localhost_ref", func(c *criv1.ContainerConfig) {
			security(c).Seccomp = &criv1.SecurityProfile{LocalhostRef: "/x"}
		}},
		{"old seccomp field", sc + "seccomp_profile_path", func(c *criv1.ContainerConfig) { security(c).SeccompProfilePath = "localhost/rel" }},
		{"AppArmor profile on a kernel without", sc + "apparmor.localhost_ref", func(c *criv1.ContainerConfig) {
			security(c).Apparmor = &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_Localhost, LocalhostRef: "x"}
		}},
		{"old AppArmor field", sc + "apparmor.localhost_ref", func(c *criv1.ContainerConfig) { security(c).ApparmorProfile = "localhost/x" }},
		{"old AppArmor field of no kind", sc + "apparmor_profile", func(c *criv1.ContainerConfig) { security(c).ApparmorProfile = "docker-default" }},
		{"unknown signal", "stop_signal", func(c *criv1.ContainerConfig) { c.StopSignal = 999 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, sandbox := goodContainer(), goodSandbox()
			sandbox.LogDirectory = "/var/log/pods/x"
			c.spoil(config)
			wantField(t, ValidateContainer(config, sandbox, testNode(2)), c.field)
		})
	}
	wantField(t, ValidateContainer(nil, goodSandbox(), testNode(2)), "config")
}

// critest sends containers without any namespace option into every kind of sandbox.
func TestAContainerThatSaysNothingFollowsItsSandbox(t *testing.T) {
	for _, c := range []struct {
		sandbox *criv1.NamespaceOption
		want    PIDMode
	}{
		{&criv1.NamespaceOption{Network: criv1.NamespaceMode_NODE, Ipc: criv1.NamespaceMode_NODE, Pid: criv1.NamespaceMode_NODE}, PIDHost},
		{&criv1.NamespaceOption{Pid: criv1.NamespaceMode_CONTAINER}, PIDPrivate},
		{&criv1.NamespaceOption{}, PIDShared},
	} {
		sandbox := goodSandbox()
		sandbox.Linux.SecurityContext.NamespaceOptions = c.sandbox
		config := goodContainer()
		config.Linux = nil
		if err := ValidateContainer(config, sandbox, testNode(2)); err != nil {
			t.Errorf("sandbox %v: %v", c.sandbox, err)
		}
		if got, err := containerPID(nil, sandbox); err != nil || got != c.want {
			t.Errorf("sandbox %v: got PID mode %d, %v, want %d", c.sandbox, got, err, c.want)
		}
	}
	// With options, an unset PID field reads as POD, which is the node's in such a sandbox.
	sandbox := goodSandbox()
	sandbox.Linux.SecurityContext.NamespaceOptions.Pid = criv1.NamespaceMode_NODE
	if got, err := containerPID(&criv1.NamespaceOption{}, sandbox); err != nil || got != PIDHost {
		t.Errorf("got PID mode %d, %v, want the host's", got, err)
	}
}

func TestLSMOptionsDependOnTheNode(t *testing.T) {
	relabel := func(c *criv1.ContainerConfig) { c.Mounts[0].SelinuxRelabel = true }
	apparmor := func(c *criv1.ContainerConfig) { c.Linux.SecurityContext.Apparmor = &criv1.SecurityProfile{} }
	for _, c := range []struct {
		name, field string
		set         func(*criv1.ContainerConfig)
		note        string
	}{
		{"relabel", "", relabel, ""},
		{"apparmor", "", apparmor, "AppArmor RuntimeDefault is not enforced"},
	} {
		in := goodInput()
		c.set(in.Config)
		s, err := Container(in)
		if err != nil {
			t.Errorf("%s on a node without: %v", c.name, err)
		} else if !strings.Contains(strings.Join(Notes(s), "\n"), c.note) {
			t.Errorf("%s: got notes %q, want %q", c.name, Notes(s), c.note)
		}
		if c.field == "" {
			continue
		}
		in.Node.SELinux, in.Node.AppArmor = true, true
		wantField(t, ValidateContainer(in.Config, in.Sandbox.Config, in.Node), c.field)
	}
}

func TestLabelsDependOnTheNode(t *testing.T) {
	const field = "linux.security_context.selinux_options."
	asking := func(o *criv1.SELinuxOption, privileged bool) ContainerInput {
		in := goodInput()
		in.Config.Linux.SecurityContext.SelinuxOptions, in.Config.Linux.SecurityContext.Privileged = o, privileged
		in.Sandbox.Config.Linux.SecurityContext.Privileged = privileged
		return in
	}
	for _, c := range []struct {
		name                     string
		privileged, labels, idle bool
		note                     string
	}{
		{"no SELinux", false, false, false, "selinux_options are not enforced"},
		{"labels", false, true, false, ""},
		{"privileged", true, true, false, "a privileged container's processes are unconfined"},
	} {
		in := asking(&criv1.SELinuxOption{Level: "s0:c1,c2"}, c.privileged)
		if in.Node.SELinux = c.labels; c.labels {
			in.ProcessLabel, in.MountLabel = "u:r:container_t:s0:c1,c2", "u:object_r:container_file_t:s0:c1,c2"
		}
		s, err := Container(in)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		notes := strings.Join(Notes(s), "\n")
		if noted := strings.Contains(notes, "selinux"); noted != (c.note != "") || !strings.Contains(notes, c.note) {
			t.Errorf("%s: got notes %q, want %q", c.name, notes, c.note)
		}
		if s.Process.SelinuxLabel != in.ProcessLabel || s.Linux.MountLabel != in.MountLabel {
			t.Errorf("%s: got labels %q, %q, want %q, %q", c.name, s.Process.SelinuxLabel, s.Linux.MountLabel, in.ProcessLabel, in.MountLabel)
		}
	}
	idle := asking(&criv1.SELinuxOption{Type: "spc_t"}, false)
	idle.Node.SELinuxIdle = true
	wantField(t, ValidateContainer(idle.Config, idle.Sandbox.Config, idle.Node), field+"type")
	for want, o := range map[string]*criv1.SELinuxOption{
		field + "user": {User: "system_u:x"}, field + "role": {Role: "a b"}, field + "type": {Type: "a:b"}, field + "level": {Level: "s0,c4,c5"},
	} {
		in := asking(o, false)
		wantField(t, ValidateContainer(in.Config, in.Sandbox.Config, in.Node), want)
		in.Sandbox.Config.Linux.SecurityContext.SelinuxOptions = o
		wantField(t, ValidateSandbox(in.Sandbox.Config, in.Node), want)
	}
	for _, level := range []string{"s0", "s0-s0", "s0:c0", "s0:c4,c5", "s0:c0.c3,c5", "s0-s0:c0.c1023", "s0:c1-s0:c1,c2"} {
		if in := asking(&criv1.SELinuxOption{Level: level}, false); ValidateContainer(in.Config, in.Sandbox.Config, in.Node) != nil {
			t.Errorf("level %q was refused", level)
		}
	}
}

func TestSeccompProfile(t *testing.T) {
	profile := func(kind criv1.SecurityProfile_ProfileType, ref string) *criv1.SecurityProfile {
		return &criv1.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
	for _, c := range []struct {
		name     string
		security *criv1.LinuxContainerSecurityContext
		kind     SeccompKind
		path     string
	}{
		{"nothing", nil, SeccompUnconfined, ""},
		{"zero profile", &criv1.LinuxContainerSecurityContext{Seccomp: &criv1.SecurityProfile{}}, SeccompRuntimeDefault, ""},
		{"unconfined", &criv1.LinuxContainerSecurityContext{Seccomp: profile(criv1.SecurityProfile_Unconfined, "")}, SeccompUnconfined, ""},
		{"localhost", &criv1.LinuxContainerSecurityContext{Seccomp: profile(criv1.SecurityProfile_Localhost, "/p.json")}, SeccompLocalhost, "/p.json"},
		{"privileged", &criv1.LinuxContainerSecurityContext{Privileged: true, Seccomp: profile(criv1.SecurityProfile_Localhost, "/p.json")}, SeccompUnconfined, ""},
		{"old default", &criv1.LinuxContainerSecurityContext{SeccompProfilePath: "runtime/default"}, SeccompRuntimeDefault, ""},
		{"old localhost", &criv1.LinuxContainerSecurityContext{SeccompProfilePath: "localhost//p.json"}, SeccompLocalhost, "/p.json"},
		{"new wins over old", &criv1.LinuxContainerSecurityContext{SeccompProfilePath: "runtime/default", Seccomp: profile(criv1.SecurityProfile_Unconfined, "")}, SeccompUnconfined, ""},
	} {
		kind, path, err := SeccompProfile(&criv1.ContainerConfig{Linux: &criv1.LinuxContainerConfig{SecurityContext: c.security}})
		if err != nil || kind != c.kind || path != c.path {
			t.Errorf("%s: got %d %q, %v, want %d %q", c.name, kind, path, err, c.kind, c.path)
		}
	}
}

func TestLogPath(t *testing.T) {
	for _, c := range []struct{ dir, name, want string }{
		{"/var/log/pods/x", "main/0.log", "/var/log/pods/x/main/0.log"},
		{"", "main/0.log", ""},
		{"/var/log", "", ""},
	} {
		got, err := LogPath(&criv1.ContainerConfig{LogPath: c.name}, &criv1.PodSandboxConfig{LogDirectory: c.dir})
		if err != nil || got != c.want {
			t.Errorf("%q in %q: got %q, %v, want %q", c.name, c.dir, got, err, c.want)
		}
	}
}

// A long hostile value does not fill the log, and the error names the field first.
func TestFieldErrorsAreShort(t *testing.T) {
	err := invalid("hostname", strings.Repeat("x", 10000), "longer than %d bytes", 64)
	if text := err.Error(); len(text) > 250 || !strings.HasPrefix(text, `hostname "xxx`) {
		t.Errorf("got %d bytes: %s", len(text), text)
	}
}
