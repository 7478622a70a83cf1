package node

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// make install puts everything in its place, with a configuration that can be used, and leaves what somebody changed.
func TestInstall(t *testing.T) {
	needNode(t)
	dir := t.TempDir()
	install := func() {
		t.Helper()
		// -o: the binaries under test are built already.
		cmd := exec.Command("make", "-C", "../../..", "-o", "build", "install", "BIN="+binDir(), "DESTDIR="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make install: %v\n%s", err, out)
		}
	}
	install()
	for name, mode := range map[string]os.FileMode{
		"usr/local/bin/podwright": 0o755, "usr/local/libexec/podwright/podwright-keeper": 0o755, "usr/local/libexec/podwright/podwright-init": 0o755,
		"etc/podwright/config.toml": 0o644, "etc/systemd/system/podwright.service": 0o644, "etc/crictl.yaml": 0o644,
		"etc/systemd/system/podwright-keeper.service": 0o644, "etc/systemd/system/podwright.slice": 0o644,
		"etc/systemd/system/podwright-keeper.slice": 0o644, "etc/systemd/system/podwright-pods.slice": 0o644,
		"etc/systemd/system/podwright-pods.target":        0o644,
		"etc/kubernetes/kubelet.conf.d/50-podwright.conf": 0o644,
	} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != mode || info.Size() == 0 {
			t.Errorf("%s: got %v, %v, want a file of mode %o", name, info, err, mode)
		}
	}
	out, err := exec.Command(filepath.Join(dir, "usr/local/bin/podwright"), "--config", filepath.Join(dir, "etc/podwright/config.toml"), "config", "check").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "ok" {
		t.Errorf("the installed configuration: %v: %s", err, out)
	}
	kept := []string{"etc/podwright/config.toml", "etc/crictl.yaml", "etc/kubernetes/kubelet.conf.d/50-podwright.conf"}
	for _, name := range kept {
		write(t, filepath.Join(dir, name), "changed by hand")
	}
	install()
	for _, name := range kept {
		if raw, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(raw) != "changed by hand" {
			t.Errorf("%s after a second installation: got %q, %v, want it as it was", name, raw, err)
		}
	}
}
