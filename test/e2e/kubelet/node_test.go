package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// nodeIP is the lab's address: a kubelet wants an interface with a default route.
const nodeIP = "10.90.0.2"

// makeNode makes namespaces a machine on which nothing of the real one changes: what is written is in work.
func makeNode(work string) error {
	for _, step := range []struct {
		what string
		do   func() error
	}{
		// As systemd has it, in a peer group of the lab's own.
		{"share mounts", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "") }},
		{"mount /proc", func() error {
			return unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		}},
		{"mount cgroups", func() error { return run("../tools/cgroup-subtree", "mount") }},
		{"mount /run", func() error { return unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755") }},
		{"make directories private", func() error { return privateDirs(work) }},
		{"hide systemd-run", hideSystemd},
		{"name the node", func() error { return unix.Sethostname([]byte("lab")) }},
		{"make the network", makeNetwork},
		{"configure", func() error { return configure(work) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// privateDirs keeps what is written below them in the lab.
func privateDirs(work string) error {
	for _, dir := range []string{"/etc", "/opt", "/var/lib", "/var/log"} {
		upper, workDir := filepath.Join(work, "upper", dir), filepath.Join(work, "overlay", dir)
		for _, d := range []string{upper, workDir, dir} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount("overlay", dir, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, workDir)); err != nil {
			return fmt.Errorf("mount overlay on %s: %w", dir, err)
		}
	}
	// Overlay can't be the upper layer of another one, nor be mapped for a user namespace.
	for _, dir := range []string{"/var/lib/podwright", "/var/lib/kubelet", "/var/lib/cni", "/var/lib/lab", "/var/log/pods"} {
		source := filepath.Join(work, "real", dir)
		for _, d := range []string{source, dir} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(source, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", dir, err)
		}
	}
	return nil
}

// hideSystemd: a kubelet that finds the program mounts volumes by it, and there is no systemd to ask.
func hideSystemd() error {
	err := unix.Mount("/dev/null", "/usr/bin/systemd-run", "", unix.MS_BIND, "")
	if err == unix.ENOENT {
		return nil
	}
	return err
}

func makeNetwork() error {
	for _, line := range []string{
		"link set lo up",
		"link add eth0 type veth peer name far",
		"address add " + nodeIP + "/24 dev eth0",
		"link set far up",
		"link set eth0 up",
		"route add default via 10.90.0.1",
	} {
		if err := run("ip", strings.Fields(line)...); err != nil {
			return err
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
}

// configure writes what an operator would: the files that make install and the README give, and a kubelet's own.
func configure(work string) error {
	if err := os.RemoveAll("/etc/cni/net.d"); err != nil {
		return err
	}
	for _, dir := range []string{"/etc/cni/net.d", "/opt/cni/bin", "/etc/podwright", dropIns, staticPods, "/var/lib/lab/hooks", filepath.Join(work, "tmp")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount(os.Getenv(pluginsVariable), "/opt/cni/bin", "", unix.MS_BIND, ""); err != nil {
		return err
	}
	for target, source := range map[string]string{
		"/etc/cni/net.d/10-podwright-bridge.conflist": "../../../manifests/10-podwright-bridge.conflist",
		dropIns + "/50-podwright.conf":                "../../../manifests/kubelet-podwright.yaml",
		kubeletConfig:                                 "kubelet.yaml",
	} {
		text, err := os.ReadFile(source)
		if err == nil {
			err = os.WriteFile(target, text, 0o644)
		}
		if err != nil {
			return err
		}
	}
	for path, text := range map[string]string{
		"/etc/hosts":                  "127.0.0.1 localhost\n" + nodeIP + " lab\n",
		"/etc/podwright/config.toml":  "[metrics]\naddress = \"" + metricsAddress + "\"\n",
		"/etc/kubernetes/resolv.conf": "nameserver 192.0.2.53\nsearch lab.example\n",
		"/var/lib/lab/greeting":       "hello from the node\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
