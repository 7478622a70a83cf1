package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	userBase, groupBase = 200000, 300000
	mappedIDs           = 65536
)

// ownUser gives a pod a user namespace; it then has the other namespaces too.
func ownUser(c *criv1.PodSandboxConfig) {
	options := c.Linux.SecurityContext.NamespaceOptions
	options.Network = criv1.NamespaceMode_POD
	options.UsernsOptions = &criv1.UserNamespace{
		Uids: []*criv1.IDMapping{{HostId: userBase, Length: mappedIDs}}, Gids: []*criv1.IDMapping{{HostId: groupBase, Length: mappedIDs}},
	}
}

func diskOwner(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// userPods are the ways a pod with a user namespace can have its processes.
var userPods = map[string][]func(*criv1.PodSandboxConfig){
	"processes of its own": {ownUser}, "processes shared in the pod": {ownUser, podPID},
}

func TestUserNamespaceShiftsProcessesAndNothingOnDisk(t *testing.T) {
	n := onNode(t)
	for name, change := range userPods {
		t.Run(name, func(t *testing.T) {
			volume := t.TempDir()
			if err := os.WriteFile(filepath.Join(volume, "roots"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			p := n.pod(t, change...)
			c := p.sleeper(func(c *criv1.ContainerConfig) {
				options := c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
				c.Mounts = []*criv1.Mount{
					{ContainerPath: "/mapped", HostPath: volume, UidMappings: options.GetUids(), GidMappings: options.GetGids()},
					{ContainerPath: "/plain", HostPath: volume},
				}
			})
			info := c.info()
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", info.PID))
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"Uid:\t200000\t200000\t200000\t200000", "Gid:\t300000\t300000\t300000\t300000"} {
				if !strings.Contains(string(status), want) {
					t.Errorf("status on the node: got %s, want %q in it", status, want)
				}
			}
			for command, want := range map[string]string{
				"cat /proc/self/uid_map": "0 200000 65536", "cat /proc/self/gid_map": "0 300000 65536", "id -u": "0",
				"touch /made /mapped/made && stat -c %u:%g /made /mapped/made": "0:0 0:0",
				"stat -c %u:%g /mapped/roots /plain/roots":                     "0:0 65534:65534",
				"cat /plain/roots || echo no":                                  "no", "cat /mapped/roots": "x",
				"mknod /node c 1 3 2>/dev/null || echo no":                     "no",
				"stat -c %u:%g /etc/hosts /dev/shm /etc/resolv.conf":           "0:0 0:0 0:0",
				"echo x >/dev/null && head -c 3 /dev/zero | wc -c":             "3",
				"echo 1 >/dev/shm/a && stat -c %u:%g /dev/shm/a":               "0:0",
				"ip link set lo up && cat /sys/class/net/lo/operstate | wc -l": "1",
			} {
				got := strings.Join(strings.Fields(c.exec("sh", "-c", command)), " ")
				if got != want {
					t.Errorf("%s: got %q, want %q", command, got, want)
				}
			}
			upper := n.path("state", "containers", c.id, "upper")
			for path, want := range map[string]string{upper + "/made": "0:0", volume + "/made": "0:0"} {
				if got := diskOwner(t, path); got != want {
					t.Errorf("owner on disk of %s: got %s, want %s", path, got, want)
				}
			}
			if !strings.HasSuffix(info.CgroupPath, c.id) { // B59, CVE-2025-47291
				t.Errorf("cgroup %q, want the container's", info.CgroupPath)
			}
		})
	}
}

func TestUserNamespaceRunsUsersTerminalsAndExits(t *testing.T) {
	n := onNode(t)
	for name, change := range userPods {
		t.Run(name, func(t *testing.T) {
			p := n.pod(t, change...)
			if got := p.output(func(c *criv1.ContainerConfig) {
				c.Linux.SecurityContext.RunAsUser, c.Linux.SecurityContext.RunAsGroup = &criv1.Int64Value{Value: 1000}, &criv1.Int64Value{Value: 2000}
				c.Linux.SecurityContext.SupplementalGroups = []int64{3000}
			}, "sh", "-c", "id -u; id -g; id -G; echo again >/dev/stdout"); strings.Join(strings.Fields(got), " ") != "1000 2000 2000 3000 again" {
				t.Errorf("identity: got %q", got)
			}
			if got := p.output(func(c *criv1.ContainerConfig) { c.Tty = true }, "sh", "-c", "tty; stat -c %u:%g /dev/console"); !strings.Contains(got, "/dev/console") && !strings.Contains(got, "/dev/pts/0") {
				t.Errorf("terminal: got %q", got)
			}
			_, err := p.tryCreate(p.containerConfig(func(c *criv1.ContainerConfig) {
				c.Linux.SecurityContext.RunAsUser = &criv1.Int64Value{Value: mappedIDs}
			}, "true"))
			wantError(t, err, codes.InvalidArgument, "run_as_user", "65536")
			_, err = p.tryCreate(p.containerConfig(func(c *criv1.ContainerConfig) {
				options := c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
				c.Mounts = []*criv1.Mount{{ContainerPath: "/x", HostPath: "/proc/sys", UidMappings: options.GetUids(), GidMappings: options.GetGids()}}
			}, "true"))
			wantError(t, err, codes.InvalidArgument, "mounts[0].host_path", "/proc/sys", "file system proc")
		})
	}
}

// A command's streams belong to the pod's user as the container's own do, so that it may open them again by name.
func TestUserNamespaceCommandsReopenTheirOutput(t *testing.T) {
	p := onNode(t).pod(t, ownUser)
	for _, uid := range []int64{0, 1000} {
		c := p.sleeper(func(c *criv1.ContainerConfig) { c.Linux.SecurityContext.RunAsUser = &criv1.Int64Value{Value: uid} })
		if got := c.exec("sh", "-c", "echo again >/dev/stdout"); got != "again\n" {
			t.Errorf("as %d: got %q", uid, got)
		}
	}
}

func TestUserNamespaceOutlivesTheDaemon(t *testing.T) {
	n := onNode(t)
	p := n.pod(t, ownUser)
	c := p.sleeper(nil)
	n.restart(t, syscall.SIGKILL, func() {})
	if got := n.sandboxState(t, p.id); got != criv1.PodSandboxState_SANDBOX_READY {
		t.Errorf("sandbox after a restart: %v", got)
	}
	if got := strings.Fields(c.exec("cat", "/proc/self/uid_map")); len(got) != 3 || got[1] != "200000" {
		t.Errorf("uid_map after a restart: got %q", got)
	}
	if got := strings.Fields(p.output(nil, "cat", "/proc/self/uid_map")); len(got) != 3 || got[1] != "200000" {
		t.Errorf("uid_map of a container started after it: got %q", got)
	}
}
