package guesttest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A tmpfs that is mounted in a volume belongs to it. One that is mounted elsewhere as well, and a disk, keep their labels.
func TestTmpfsInAVolumeIsLabelledWithIt(t *testing.T) {
	needs(t, "selinux")
	volume := labelled(t, "system_u:object_r:container_var_lib_t:s0")
	others := labelled(t, "system_u:object_r:var_t:s0")
	at := func(target, source, kind string, flags uintptr) {
		t.Helper()
		if err := os.MkdirAll(target, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(source, target, kind, flags, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	}
	at(filepath.Join(volume, "own"), "none", "tmpfs", 0)
	at(filepath.Join(others, "shared"), "none", "tmpfs", 0)
	at(filepath.Join(volume, "shared"), filepath.Join(others, "shared"), "", unix.MS_BIND)
	at(filepath.Join(volume, "bound"), others, "", unix.MS_BIND)
	kept := map[string]string{}
	for _, name := range []string{"shared", "bound"} {
		kept[name] = run(t, "stat", "-c", "%C", filepath.Join(volume, name))
	}
	p := connect(t).pod()
	c := p.sleeper(func(config *criv1.ContainerConfig) {
		config.Mounts = []*criv1.Mount{{HostPath: volume, ContainerPath: "/volume", SelinuxRelabel: true}}
	})
	c.shell("echo x >/volume/x && echo y >/volume/own/y")
	c.refused("echo z >/volume/shared/z")
	c.refused("echo z >/volume/bound/z")
	if got := run(t, "stat", "-c", "%C", filepath.Join(volume, "own")); !strings.Contains(got, ":container_file_t:s0:c") {
		t.Errorf("the tmpfs has label %s, want the container's", got)
	}
	for name, want := range kept {
		if got := run(t, "stat", "-c", "%C", filepath.Join(volume, name)); got != want {
			t.Errorf("%s: got label %s, want it left as %s", name, got, want)
		}
	}
}
