package spec

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestSysctls(t *testing.T) {
	hostNet := &criv1.NamespaceOption{Network: criv1.NamespaceMode_NODE}
	hostIPC := &criv1.NamespaceOption{Ipc: criv1.NamespaceMode_NODE}
	for _, c := range []struct {
		key, value string
		options    *criv1.NamespaceOption
		want       string // the dotted key; "" is refused
	}{
		{"net.ipv4.ip_local_port_range", "1024 65000", nil, "net.ipv4.ip_local_port_range"},
		{"net/ipv4/conf/eth0.1/forwarding", "1", nil, "net.ipv4.conf.eth0/1.forwarding"},
		{"kernel.shm_rmid_forced", "1", nil, "kernel.shm_rmid_forced"},
		{"fs.mqueue.msg_max", "100", nil, "fs.mqueue.msg_max"},
		{"kernel.sem", "250\t32000 32 128", nil, "kernel.sem"},
		{"net.ipv4.ip_forward", "1", hostNet, ""}, // CVE-2022-0532
		{"net.ipv4.ip_forward", "1", hostIPC, "net.ipv4.ip_forward"},
		{"kernel.shm_rmid_forced", "1", hostIPC, ""},
		{"kernel.shm_rmid_forced", "1", hostNet, "kernel.shm_rmid_forced"},
		{"kernel.shm_rmid_forced", "1+kernel.core_pattern=|/x", nil, ""}, // CVE-2022-0811
		{"kernel.shm_rmid_forced", "1\nkernel.x=1", nil, ""},
		{"kernel.shm_rmid_forced", "", nil, ""},
		{"kernel.hostname", "x", nil, ""},
		{"kernel.core_pattern", "core", nil, ""},
		{"vm.swappiness", "1", nil, ""},
		{"netfilter.x", "1", nil, ""},
		{"net", "1", nil, ""},
		{"net.", "1", nil, ""},
		{"net..ipv4", "1", nil, ""},
		{"net/../kernel/core_pattern", "1", nil, ""},
		{"net.ipv4/../../kernel.core_pattern", "1", nil, ""},
		{"net.ipv4.ip_forward=1 net.x", "1", nil, ""},
		{"net.ipv4.-x", "1", nil, ""},
		{"net." + strings.Repeat("a", 300), "1", nil, ""},
	} {
		config := &criv1.PodSandboxConfig{Linux: &criv1.LinuxPodSandboxConfig{
			Sysctls:         map[string]string{c.key: c.value},
			SecurityContext: &criv1.LinuxSandboxSecurityContext{NamespaceOptions: c.options},
		}}
		got, err := Sysctls(config)
		if c.want == "" {
			if err == nil {
				t.Errorf("%s=%q with %v: accepted as %v", c.key, c.value, c.options, got)
			} else {
				wantField(t, err, "linux.sysctls")
			}
			continue
		}
		if want := map[string]string{c.want: c.value}; err != nil || !maps.Equal(got, want) {
			t.Errorf("%s=%q: got %v, %v, want %v", c.key, c.value, got, err, want)
		}
	}
}

func TestOneSysctlInTwoSpellingsIsRefused(t *testing.T) {
	_, err := Sysctls(&criv1.PodSandboxConfig{Linux: &criv1.LinuxPodSandboxConfig{
		Sysctls: map[string]string{"net.ipv4.ip_forward": "0", "net/ipv4/ip_forward": "1"},
	}})
	wantField(t, err, "linux.sysctls")
}

func FuzzSysctl(f *testing.F) {
	f.Add("net.ipv4.ip_forward")
	f.Add("net/ipv4/conf/eth0.1/forwarding")
	f.Add("net/../kernel/x")
	f.Fuzz(func(t *testing.T, name string) {
		dotted, ok := dottedSysctl(name)
		if !ok {
			return
		}
		if strings.Contains(dotted, "..") || strings.Contains(dotted, "//") || strings.ContainsAny(dotted, "+ \n\x00=") || strings.HasPrefix(dotted, "/") {
			t.Errorf("%q became %q", name, dotted)
		}
		if again, ok := dottedSysctl(dotted); !ok || again != dotted {
			t.Errorf("%q, dotted %q, became %q", name, dotted, again)
		}
	})
}

func TestPingGroupsAreThePods(t *testing.T) {
	pod := specs.LinuxIDMapping{HostID: 300000, Size: 65536}
	for value, want := range map[string]string{
		"0 65535": "300000 365535", "0\t2147483647": "300000 365535", "5 5": "300005 300005", "65535 4294967295": "365535 365535",
		"1 0": "1 0", "7": "7", "0 x": "0 x", "0 1 2": "0 1 2", "-1 5": "-1 5", "0 4294967296": "0 4294967296", "65536 70000": "",
	} {
		got, err := groupsOutside(value, pod)
		if want == "" {
			wantField(t, err, "linux.sysctls")
		} else if err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", value, got, err, want)
		}
	}
	config := &criv1.PodSandboxConfig{Linux: &criv1.LinuxPodSandboxConfig{Sysctls: map[string]string{pingGroups: "0 65535"}}}
	if got, err := Sysctls(config); err != nil || got[pingGroups] != "0 65535" {
		t.Errorf("without a user namespace: got %v, %v, want it as it was", got, err)
	}
}

func FuzzPingGroups(f *testing.F) {
	f.Add("0 2147483647", uint32(300000), uint32(65536))
	f.Fuzz(func(t *testing.T, value string, host, size uint32) {
		if size == 0 || uint64(host)+uint64(size) > 1<<32-1 {
			return
		}
		got, err := groupsOutside(value, specs.LinuxIDMapping{HostID: host, Size: size})
		if err != nil || got == value {
			return
		}
		var first, last uint64
		if _, err := fmt.Sscanf(got, "%d %d", &first, &last); err != nil || first < uint64(host) || last < first || last >= uint64(host)+uint64(size) {
			t.Errorf("%q in %d ids from %d on became %q", value, size, host, got)
		}
	})
}
