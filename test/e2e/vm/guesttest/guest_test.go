package guesttest

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The guest is what the other tests take it for: without that, they would show nothing.
func TestGuestIsAProductionNode(t *testing.T) {
	needs(t, "any")
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		t.Errorf("/sys/fs/cgroup: type %#x, %v, want cgroup v2", fs.Type, err)
	}
	if name, err := os.ReadFile("/proc/1/comm"); err != nil || strings.TrimSpace(string(name)) != "systemd" {
		t.Errorf("PID 1 is %q, %v, want systemd", name, err)
	}
	if state := run(t, "systemctl", "is-active", "podwright"); state != "active" {
		t.Errorf("podwright.service is %s, want active", state)
	}
}

func TestSELinuxEnforces(t *testing.T) {
	needs(t, "selinux")
	if got := run(t, "getenforce"); got != "Enforcing" {
		t.Errorf("SELinux is %s, want Enforcing", got)
	}
	if modules := run(t, "semodule", "-l"); strings.Contains(modules, "permissive_") {
		t.Errorf("a domain is permissive: %s", modules)
	}
	// What lets a refusal pass says so in the log, whoever made it permissive.
	for line := range strings.Lines(run(t, "dmesg")) {
		if strings.Contains(line, "avc:") && strings.Contains(line, "denied") && strings.Contains(line, "permissive=1") {
			t.Errorf("not enforced: %s", line)
		}
	}
}

func TestAppArmorIsOn(t *testing.T) {
	needs(t, "apparmor")
	if on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || strings.TrimSpace(string(on)) != "Y" {
		t.Errorf("AppArmor is enabled: %q, %v, want Y", on, err)
	}
}

// All that podwright is of processes has the domain that its policy confines; what they execute starts there.
func TestPodwrightIsConfined(t *testing.T) {
	needs(t, "selinux")
	connect(t).pod().sleeper(nil)
	for _, name := range []string{"podwright", "pw-anchor", "pw-keeper"} {
		for _, pid := range strings.Fields(run(t, "pgrep", "-x", name)) {
			if context := label(t, pid); context != "system_u:system_r:podwright_t:s0" {
				t.Errorf("%s (%s) runs as %s, want podwright_t", name, pid, context)
			}
		}
	}
}

func TestPodRunsFromStartToEnd(t *testing.T) {
	needs(t, "any")
	d := connect(t)
	c := d.pod().sleeper(nil)
	if got := c.shell("echo hello"); got != "hello" {
		t.Errorf("exec wrote %q, want hello", got)
	}
	if _, err := d.StopContainer(ctx(t), &criv1.StopContainerRequest{ContainerId: c.id, Timeout: 30}); err != nil {
		t.Error(err)
	}
	resp, err := d.ContainerStatus(ctx(t), &criv1.ContainerStatusRequest{ContainerId: c.id})
	if err != nil || resp.GetStatus().GetExitCode() != 0 {
		t.Errorf("after its stop signal: %v, %v, want exit code 0", resp.GetStatus(), err)
	}
}
