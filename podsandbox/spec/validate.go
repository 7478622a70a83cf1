package spec

import (
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	imagev1 "github.com/opencontainers/image-spec/specs-go/v1"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	nameBytes     = 253 // the longest name Kubernetes gives an object
	hostnameBytes = 64  // HOST_NAME_MAX, uname(2)
	pathBytes     = 4096
)

// ValidateSandbox refuses what a sandbox's configuration asks for and podwright does not do. The error is a *FieldError.
func ValidateSandbox(config *criv1.PodSandboxConfig, node Node) error {
	if config == nil {
		return invalid("config", "", "missing")
	}
	if err := refuseSet(config.ProtoReflect(), "PodSandboxConfig", ""); err != nil {
		return err
	}
	meta := config.GetMetadata()
	for _, f := range []struct{ field, value string }{{"metadata.name", meta.GetName()}, {"metadata.namespace", meta.GetNamespace()}, {"metadata.uid", meta.GetUid()}} {
		if err := checkName(f.field, f.value); err != nil {
			return err
		}
	}
	if err := checkHostname(config.GetHostname()); err != nil {
		return err
	}
	if dir := config.GetLogDirectory(); dir != "" {
		if err := checkAbsolute("log_directory", dir); err != nil {
			return err
		}
	}
	if err := checkDNS(config.GetDnsConfig()); err != nil {
		return err
	}
	if err := checkPorts(config.GetPortMappings()); err != nil {
		return err
	}
	if err := checkCgroupParent(config.GetLinux().GetCgroupParent()); err != nil {
		return err
	}
	if err := checkSandboxSecurity(config.GetLinux().GetSecurityContext(), node); err != nil {
		return err
	}
	if err := checkWritableCgroups("annotations", config, node); err != nil {
		return err
	}
	_, err := Sysctls(config)
	return err
}

// ValidateContainer refuses what a container's configuration asks for and podwright does not do, alone or with its sandbox's.
func ValidateContainer(config *criv1.ContainerConfig, sandbox *criv1.PodSandboxConfig, node Node) error {
	if config == nil {
		return invalid("config", "", "missing")
	}
	if err := refuseSet(config.ProtoReflect(), "ContainerConfig", ""); err != nil {
		return err
	}
	if err := checkName("metadata.name", config.GetMetadata().GetName()); err != nil {
		return err
	}
	if config.GetImage().GetImage() == "" {
		return invalid("image.image", "", "missing")
	}
	if err := checkProcess(config); err != nil {
		return err
	}
	if _, err := LogPath(config, sandbox); err != nil {
		return err
	}
	if err := checkMounts(config.GetMounts(), sandbox, node); err != nil {
		return err
	}
	if err := checkDevices(config.GetDevices()); err != nil {
		return err
	}
	if _, err := Resources(config.GetLinux().GetResources(), node); err != nil {
		return err
	}
	// The operator may have changed his mind since the sandbox was made.
	if err := checkWritableCgroups("sandbox_config.annotations", sandbox, node); err != nil {
		return err
	}
	return checkContainerSecurity(config, sandbox, node)
}

func checkProcess(config *criv1.ContainerConfig) error {
	for _, f := range []struct {
		field string
		list  []string
	}{{"command", config.GetCommand()}, {"args", config.GetArgs()}} {
		for _, s := range f.list {
			if strings.ContainsRune(s, 0) {
				return invalid(f.field, s, "holds a NUL byte")
			}
		}
	}
	if dir := config.GetWorkingDir(); dir != "" {
		if err := checkAbsolute("working_dir", dir); err != nil {
			return err
		}
	}
	for i, env := range config.GetEnvs() {
		at := indexed("envs", i)
		if !goodEnvName(env.GetKey()) {
			return invalid(at+".key", env.GetKey(), "no name of an environment variable")
		}
		if strings.ContainsRune(string(env.GetValue()), 0) {
			return invalid(at+".value", "", "holds a NUL byte") // the value itself may be a secret
		}
	}
	_, err := StopSignal(config, imagev1.ImageConfig{})
	return err
}

// LogPath is the absolute path of the container's log, or "" where sandbox or container has none. It lies below the
// log directory whatever log_path says (CVE-2025-0750).
func LogPath(config *criv1.ContainerConfig, sandbox *criv1.PodSandboxConfig) (string, error) {
	name, dir := config.GetLogPath(), sandbox.GetLogDirectory()
	if name == "" || dir == "" {
		return "", nil
	}
	if path.IsAbs(name) || hasControl(name) || len(name) > pathBytes || escapes(name) {
		return "", invalid("log_path", name, "must be a relative path inside the log directory")
	}
	if err := checkAbsolute("log_directory", dir); err != nil {
		return "", err
	}
	return path.Join(dir, name), nil
}

func checkMounts(mounts []*criv1.Mount, sandbox *criv1.PodSandboxConfig, node Node) error {
	seen := map[string]bool{}
	for i, m := range mounts {
		at := indexed("mounts", i)
		if err := checkAbsolute(at+".container_path", m.GetContainerPath()); err != nil {
			return err
		}
		if err := checkSource(at, m, sandbox); err != nil {
			return err
		}
		target := path.Clean(m.GetContainerPath())
		switch {
		case target == "/":
			return invalid(at+".container_path", m.GetContainerPath(), "the root cannot be mounted over")
		case seen[target]:
			return invalid(at+".container_path", m.GetContainerPath(), "mounted twice")
		case m.GetImage() == nil && !procTargetAllowed(target, path.Clean(m.GetHostPath())):
			return invalid(at+".container_path", m.GetContainerPath(), "this part of /proc cannot be mounted over")
		case m.GetRecursiveReadOnly() && !node.RecursiveReadOnly:
			return invalid(at+".recursive_read_only", "true", "this node cannot make what is mounted below a mount read-only (Linux 5.12)")
		case m.GetRecursiveReadOnly() && !m.GetReadonly():
			return invalid(at+".recursive_read_only", "true", "needs readonly")
		case m.GetRecursiveReadOnly() && m.GetPropagation() != criv1.MountPropagation_PROPAGATION_PRIVATE:
			return invalid(at+".recursive_read_only", "true", "needs propagation PROPAGATION_PRIVATE: what is mounted later would be writable")
		}
		for _, option := range m.GetMountOptions() {
			if !slices.Contains(protections, option) {
				return invalid(at+".mount_options", option, "want %s", strings.Join(protections, ", "))
			}
		}
		if err := checkMountMappings(at, m, sandbox); err != nil {
			return err
		}
		seen[target] = true
	}
	return nil
}

// checkSource holds a mount to one source.
func checkSource(at string, m *criv1.Mount, sandbox *criv1.PodSandboxConfig) error {
	if m.GetImage() != nil {
		return checkImageMount(at, m, sandbox)
	}
	// An image_sub_path is nothing to refuse here: the kubelet sets it for the subPath of any volume, after it
	// has made it part of host_path.
	return checkAbsolute(at+".host_path", m.GetHostPath())
}

// procTargetAllowed keeps volumes off the files that privileged code reads and writes in /proc: one over
// /proc/self or /proc/sys would take what init means for the kernel (CVE-2019-16884). The exceptions only inform
// programs (lxcfs provides such files), and the host's own /proc as a whole is procfs all the same.
func procTargetAllowed(target, source string) bool {
	switch target {
	case "/proc":
		return source == "/proc"
	case "/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg",
		"/proc/slabinfo", "/proc/net/dev", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled":
		return true
	}
	return !strings.HasPrefix(target, "/proc/")
}

func checkDevices(devices []*criv1.Device) error {
	for i, d := range devices {
		at := indexed("devices", i)
		if err := checkAbsolute(at+".container_path", d.GetContainerPath()); err != nil {
			return err
		}
		if err := checkAbsolute(at+".host_path", d.GetHostPath()); err != nil {
			return err
		}
		if path.Clean(d.GetContainerPath()) == "/" {
			return invalid(at+".container_path", d.GetContainerPath(), "no place for a device")
		}
		if !goodAccess(d.GetPermissions()) {
			return invalid(at+".permissions", d.GetPermissions(), "want one or more of r, w and m, each once")
		}
	}
	return nil
}

func goodAccess(s string) bool {
	for i, r := range s {
		if !strings.ContainsRune("rwm", r) || strings.ContainsRune(s[:i], r) {
			return false
		}
	}
	return s != ""
}

func checkDNS(dns *criv1.DNSConfig) error {
	for _, s := range dns.GetServers() {
		if _, err := netip.ParseAddr(s); err != nil {
			return invalid("dns_config.servers", s, "no IP address")
		}
	}
	for _, f := range []struct {
		field string
		list  []string
	}{{"dns_config.searches", dns.GetSearches()}, {"dns_config.options", dns.GetOptions()}} {
		for _, s := range f.list {
			if s == "" || len(s) > 255 || hasControl(s) || strings.ContainsAny(s, " #;") {
				return invalid(f.field, s, "must be one word of resolv.conf")
			}
		}
	}
	return nil
}

func checkPorts(ports []*criv1.PortMapping) error {
	for i, p := range ports {
		at := indexed("port_mappings", i)
		if n := p.GetContainerPort(); n < 0 || n > 65535 {
			return invalid(at+".container_port", strconv.Itoa(int(n)), "no port number")
		}
		if n := p.GetHostPort(); n < 0 || n > 65535 {
			return invalid(at+".host_port", strconv.Itoa(int(n)), "no port number")
		}
		if p.GetHostPort() > 0 && p.GetContainerPort() == 0 {
			return invalid(at+".container_port", "0", "a host port needs one")
		}
		if ip := p.GetHostIp(); ip != "" {
			if _, err := netip.ParseAddr(ip); err != nil {
				return invalid(at+".host_ip", ip, "no IP address")
			}
		}
	}
	return nil
}

func checkHostname(name string) error {
	if len(name) > hostnameBytes {
		return invalid("hostname", name, "longer than %d bytes", hostnameBytes)
	}
	for _, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && r != '-' && r != '.' && r != '_' {
			return invalid("hostname", name, "want letters, digits, dots and dashes")
		}
	}
	return nil
}

// checkCgroupParent accepts both drivers' forms: a path, or the name of a slice.
func checkCgroupParent(parent string) error {
	if parent == "" {
		return nil
	}
	if hasControl(parent) || len(parent) > pathBytes || escapes(strings.TrimLeft(parent, "/")) {
		return invalid("linux.cgroup_parent", parent, "no path below the cgroup root")
	}
	return nil
}

func checkName(field, value string) error {
	switch {
	case value == "":
		return invalid(field, "", "missing")
	case len(value) > nameBytes:
		return invalid(field, value, "longer than %d bytes", nameBytes)
	case hasControl(value):
		return invalid(field, value, "holds a control character")
	}
	return nil
}

func checkAbsolute(field, value string) error {
	switch {
	case value == "":
		return invalid(field, "", "missing")
	case !path.IsAbs(value):
		return invalid(field, value, "must be an absolute path")
	case len(value) >= pathBytes:
		return invalid(field, value, "longer than %d bytes", pathBytes-1)
	case strings.ContainsRune(value, 0):
		return invalid(field, value, "holds a NUL byte")
	}
	return nil
}

func indexed(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

// escapes says whether a relative path has an element "..".
func escapes(p string) bool {
	for _, part := range strings.Split(p, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

func hasControl(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] == 0x7f {
			return true
		}
	}
	return false
}
