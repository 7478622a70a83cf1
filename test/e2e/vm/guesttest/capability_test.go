package guesttest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Root of an ordinary pod can do what entry points of images begin with. A capability that a pod has to ask for works
// where the node's policy lets it.
func TestCapabilitiesOfAPodWork(t *testing.T) {
	needs(t, "any")
	p := connect(t).pod(func(config *criv1.PodSandboxConfig) {
		config.Linux.SecurityContext.NamespaceOptions.Network = criv1.NamespaceMode_POD
	})
	const admin = "ip link set dev lo mtu 65000"
	c := p.sleeper(nil)
	c.shell("echo x >/x && chmod 600 /x && chown 7:8 /x && cat /x && chroot / true && echo u:x:7:8::/:/bin/true >/etc/passwd && su u")
	c.refused(admin)

	c = p.sleeper(func(config *criv1.ContainerConfig) {
		config.Linux.SecurityContext.Capabilities = &criv1.Capability{AddCapabilities: []string{"NET_ADMIN"}}
	})
	if lsm() == "selinux" {
		const boolean = "container_use_host_all_caps"
		c.refused(admin)
		if said := run(t, "podwright", "check"); !strings.Contains(said, "setsebool -P "+boolean+" on") {
			t.Errorf("podwright check says nothing of %s:\n%s", boolean, said)
		}
		allow(t, boolean)
		if said := run(t, "podwright", "check"); strings.Contains(said, boolean) {
			t.Errorf("podwright check names %s, which is on:\n%s", boolean, said)
		}
	}
	c.shell(admin)
}

// A pod with the node's IPC namespace can list what services of the node have there, and use nothing of it.
func TestSharedMemoryOfTheNodeIsListedAndNotUsed(t *testing.T) {
	needs(t, "selinux")
	said := run(t, "runcon", "-l", "s0", "bash", "-c", "ipcmk -M 4096") // of a service of the node
	memory := said[strings.LastIndex(said, " ")+1:]
	t.Cleanup(func() { run(t, "ipcrm", "-m", memory) })
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := labelled(t, "system_u:object_r:container_file_t:s0", program)
	p := connect(t).pod(func(config *criv1.PodSandboxConfig) {
		config.Linux.SecurityContext.NamespaceOptions.Ipc = criv1.NamespaceMode_NODE
	})
	c := p.sleeper(withPaths(p, map[string]string{dir: "/program"}))
	stdout, stderr, code, err := c.exec("sh", "-c", attachTo+"="+memory+" /program/"+filepath.Base(program))
	if err != nil || code != codeRefused {
		t.Errorf("attach memory %s of the node's: got code %d, %v, stdout %q, stderr %q, want code %d", memory, code, err, stdout, stderr, codeRefused)
	}
}

func attach(memory string) error {
	id, err := strconv.Atoi(memory)
	if err != nil {
		return err
	}
	var is unix.SysvShmDesc
	if _, err := unix.SysvShmCtl(id, unix.IPC_STAT, &is); err != nil {
		return fmt.Errorf("look at shared memory %d: %v", id, err) // not %w: it is refused where it should not be
	}
	_, err = unix.SysvShmAttach(id, 0, 0)
	return err
}
