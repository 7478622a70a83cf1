package spec

import (
	"sort"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	sysctlsField     = "linux.sysctls"
	sysctlValueBytes = 4096
)

// Sysctls gives the sandbox's sysctls by their dotted names, checked, as the node has to write them: a strict grammar (CVE-2022-0811), and only such
// as belong to a namespace the sandbox has of its own (CVE-2022-0532). The map is the caller's.
func Sysctls(config *criv1.PodSandboxConfig) (map[string]string, error) {
	given := config.GetLinux().GetSysctls()
	names := make([]string, 0, len(given))
	for name := range given {
		names = append(names, name)
	}
	sort.Strings(names) // the first error is the same every time
	out := make(map[string]string, len(given))
	own := SandboxNamespaces(config)
	for _, name := range names {
		dotted, ok := dottedSysctl(name)
		if !ok {
			return nil, invalid(sysctlsField, name, "no name of a sysctl")
		}
		if _, twice := out[dotted]; twice {
			return nil, invalid(sysctlsField, name, "given twice")
		}
		namespace, has := sysctlNamespace(dotted, own)
		if namespace == "" {
			return nil, invalid(sysctlsField, name, "belongs to the whole node")
		}
		if !has {
			return nil, invalid(sysctlsField, name, "belongs to the %s namespace, and the sandbox has the node's", namespace)
		}
		if !goodSysctlValue(given[name]) {
			return nil, invalid(sysctlsField, name+"="+given[name], "no value of a sysctl")
		}
		out[dotted] = given[name]
		if user := SandboxUser(config); user != nil && dotted == pingGroups {
			outside, err := groupsOutside(given[name], user.GID)
			if err != nil {
				return nil, err
			}
			out[dotted] = outside
		}
	}
	return out, nil
}

// pingGroups has groups as its value, which the kernel takes for those of whoever writes it.
const pingGroups = "net.ipv4.ping_group_range"

// groupsOutside gives a range of a pod's groups as the node knows them. A range that goes on beyond the pod's last group, as
// the usual one for everybody does, ends with it. What is no range is left for the kernel to refuse.
func groupsOutside(value string, pod specs.LinuxIDMapping) (string, error) {
	fields := strings.Fields(value)
	if len(fields) != 2 {
		return value, nil
	}
	first, err := strconv.ParseUint(fields[0], 10, 32)
	if err != nil {
		return value, nil
	}
	last, err := strconv.ParseUint(fields[1], 10, 32)
	if err != nil || last < first {
		return value, nil // backwards is nobody
	}
	if first >= uint64(pod.Size) {
		return "", invalid(sysctlsField, pingGroups+"="+value, "the pod's user namespace has the groups 0 to %d only", pod.Size-1)
	}
	last = min(last, uint64(pod.Size)-1)
	host := uint64(pod.HostID)
	return strconv.FormatUint(host+first, 10) + " " + strconv.FormatUint(host+last, 10), nil
}

// sysctlNamespace says which namespace a sysctl is kept in, "" for the whole kernel, and whether the sandbox has its
// own. Everything visible below net in a network namespace of one's own belongs to it.
func sysctlNamespace(name string, own Namespaces) (string, bool) {
	switch {
	case strings.HasPrefix(name, "net."):
		return "network", own.Net
	case strings.HasPrefix(name, "fs.mqueue."), strings.HasPrefix(name, "kernel.shm"), strings.HasPrefix(name, "kernel.msg"), name == "kernel.sem":
		return "ipc", own.IPC
	}
	return "", false
}

// dottedSysctl brings a name into the form with dots. The separator is the first of dot and slash in it; the other
// one stands for itself, so that net/ipv4/conf/eth0.1/forwarding is net.ipv4.conf.eth0/1.forwarding (sysctl(8)).
func dottedSysctl(name string) (string, bool) {
	if len(name) > nameBytes {
		return "", false
	}
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '/' {
		name = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, name)
	}
	parts := strings.FieldsFunc(name, func(r rune) bool { return r == '.' || r == '/' })
	separators := strings.Count(name, ".") + strings.Count(name, "/")
	if len(parts) < 2 || separators != len(parts)-1 { // an empty part would have been a ".."
		return "", false
	}
	for _, part := range parts {
		if !goodSysctlPart(part) {
			return "", false
		}
	}
	return name, true
}

func goodSysctlPart(part string) bool {
	alnum := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
	for i := range len(part) {
		if !alnum(part[i]) && part[i] != '-' && part[i] != '_' {
			return false
		}
	}
	return alnum(part[0]) && alnum(part[len(part)-1])
}

func goodSysctlValue(value string) bool {
	for i := range len(value) {
		c := value[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && !strings.ContainsRune(" \t.,:_/-", rune(c)) {
			return false
		}
	}
	return value != "" && len(value) <= sysctlValueBytes
}
