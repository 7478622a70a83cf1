package namespace

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSysctlNamespace(t *testing.T) {
	cases := []struct {
		key  string
		kind Kind
		ok   bool
	}{
		{"net.ipv4.ip_forward", Net, true},
		{"net/ipv4/ip_forward", Net, true},
		{"net.core.somaxconn", Net, true},
		{"net/ipv4/conf/eth0.5/forwarding", Net, true},
		{"kernel.shmmax", IPC, true},
		{"kernel/shm_rmid_forced", IPC, true},
		{"kernel.msgmnb", IPC, true},
		{"kernel.sem", IPC, true},
		{"fs.mqueue.queues_max", IPC, true},
		{"kernel.shmnew", 0, false},
		{"kernel.hostname", 0, false},
		{"kernel/domainname", 0, false},
		{"kernel.core_pattern", 0, false},
		{"kernel.sem.x", 0, false},
		{"vm.swappiness", 0, false},
		{"fs.mqueue", 0, false},
		{"net", 0, false},
		{"net.", 0, false},
		{"net..ipv4", 0, false},
		{"net/../kernel/core_pattern", 0, false},
		{"net.ipv4.//kernel", 0, false},
		{"/net/ipv4/ip_forward", 0, false},
		{"netfilter.x", 0, false},
		{"", 0, false},
	}
	for _, c := range cases {
		if kind, ok := SysctlNamespace(c.key); kind != c.kind || ok != c.ok {
			t.Errorf("SysctlNamespace(%q): got %v, %v; want %v, %v", c.key, kind, ok, c.kind, c.ok)
		}
	}
}

func TestSysctlPathsOfBothForms(t *testing.T) {
	for key, want := range map[string]string{
		"net.ipv4.ip_forward":              "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/5.forwarding":  "net/ipv4/conf/eth0.5/forwarding",
		"net/ipv4/conf/eth0.5/forwarding":  "net/ipv4/conf/eth0.5/forwarding",
		"net.ipv4.conf.eth0-x_y.accept_ra": "net/ipv4/conf/eth0-x_y/accept_ra",
	} {
		if got, err := sysctlPath(key); err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", key, got, err, want)
		}
	}
}

func TestValidateSysctl(t *testing.T) {
	const key = "net.ipv4.ip_local_port_range"
	for _, value := range []string{"1", "-1", "1024 65535", "1024\t65535", "8080,9148-9150", "bbr", "0:1", strings.Repeat("1", maxSysctlValue)} {
		if err := ValidateSysctl(key, value); err != nil {
			t.Errorf("%q: %v", value, err)
		}
	}
	bad := []string{
		"1+kernel.core_pattern=|/var/lib/x", // CVE-2022-0811
		"1=2", "", " ", " 1", "1 ", "1\n", "1\n2", "1\x00", "$(x)", "|/x", "ünï", strings.Repeat("1", maxSysctlValue+1),
	}
	for _, value := range bad {
		if err := ValidateSysctl(key, value); err == nil {
			t.Errorf("value %q is accepted", value)
		}
	}
	for _, key := range []string{"kernel.shm_rmid_forced+net.x", "net.x y", "net." + strings.Repeat("a", 260), "kernel.hostname"} {
		if err := ValidateSysctl(key, "1"); err == nil {
			t.Errorf("key %q is accepted", key)
		}
	}
}

// A key or value that is accepted names a file below net/ or a known IPC one.
func FuzzValidateSysctl(f *testing.F) {
	f.Add("net.ipv4.ip_forward", "1")
	f.Add("net/ipv4/conf/eth0.5/forwarding", "1 2")
	f.Add("kernel.shm_rmid_forced", "1+kernel.core_pattern=x")
	f.Add("net/../kernel/core_pattern", "x")
	f.Fuzz(func(t *testing.T, key, value string) {
		if ValidateSysctl(key, value) != nil {
			return
		}
		path, err := sysctlPath(key)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Clean("/"+path) != "/"+path || strings.ContainsAny(path, "\x00+=;\n ") {
			t.Errorf("key %q: path %q", key, path)
		}
		if !strings.HasPrefix(path, "net/") && !strings.HasPrefix(path, "fs/mqueue/") && !strings.HasPrefix(path, "kernel/") {
			t.Errorf("key %q: path %q", key, path)
		}
		if strings.ContainsAny(value, "\x00+=;\n'\"|&$") {
			t.Errorf("value %q is accepted", value)
		}
	})
}

// CVE-2025-52881: a procfs with something mounted into it is not written through.
func TestWriteSysctlRefusesWhatIsNotProcfs(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	fake := filepath.Join(dir, "ip_forward")
	if err := os.WriteFile(fake, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	const target = "/proc/sys/net/ipv4/ip_forward"
	if err := unix.Mount(fake, target, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	ordinary, err := os.Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer ordinary.Close()
	s := sysctl{key: "net.ipv4.ip_forward", path: "net/ipv4/ip_forward", kind: Net, value: "1"}
	if err := (&Pins{procFile: ordinary}).writeSysctl(s); err == nil {
		t.Error("written through a mount in the node's procfs")
	}
	// A procfs of our own has no such mount: the real setting is written.
	private, err := openProc()
	if err != nil {
		t.Fatal(err)
	}
	defer private.Close()
	if err := (&Pins{procFile: private}).writeSysctl(s); err != nil {
		t.Error(err)
	}
	s.value = "0" // as it was
	if err := (&Pins{procFile: private}).writeSysctl(s); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(fake); err != nil || string(got) != "untouched" {
		t.Errorf("the file mounted there: got %q, %v", got, err)
	}
	// A directory that only looks like procfs isn't taken for it.
	if err := os.MkdirAll(filepath.Join(dir, "sys/net/ipv4"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sys/net/ipv4/ip_forward"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	lookalike, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lookalike.Close()
	if err := (&Pins{procFile: lookalike}).writeSysctl(s); err == nil || !strings.Contains(err.Error(), "not on procfs") {
		t.Errorf("lookalike: got %v", err)
	}
	if err := checkProcRoot(lookalike); err == nil {
		t.Error("a lookalike passes for the root of procfs")
	}
}
