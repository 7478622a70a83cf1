package node

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestMaskedAndReadOnlyPaths(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.sleeper(func(c *criv1.ContainerConfig) {
		security(c).MaskedPaths = []string{"/proc/kcore", "/proc/acpi", "/data", "/etc/passwd", "/not/there"}
		security(c).ReadonlyPaths = []string{"/proc/sys", "/home", "/not/there/either"}
	})
	for _, test := range []struct{ script, want string }{
		{"cat /etc/passwd | wc -c", "0\n"}, // what is masked is empty, not missing
		{"ls -A /data | wc -l", "0\n"},
		{"touch /data/x 2>&1 | grep -o 'Read-only file system'", "Read-only file system\n"},
		{"touch /home/x 2>&1 | grep -o 'Read-only file system'", "Read-only file system\n"},
		{"(true > /proc/sys/kernel/pid_max) 2>/dev/null || echo refused", "refused\n"},
		{"touch /tmp/x && echo written", "written\n"},
	} {
		if got := c.exec("sh", "-c", test.script); got != test.want {
			t.Errorf("%s: got %q, want %q", test.script, got, test.want)
		}
	}
	// Nothing is masked where nothing is asked for (procMount: Unmasked).
	if got := p.output(nil, "sh", "-c", "grep -c ' /proc/' /proc/self/mountinfo; true"); strings.TrimSpace(got) != "0" {
		t.Errorf("mounts below /proc without masks: got %q, want none", got)
	}
}

func TestReadOnlyRoot(t *testing.T) {
	p := onNode(t).pod(t)
	volume := t.TempDir()
	got := p.output(func(c *criv1.ContainerConfig) {
		security(c).ReadonlyRootfs = true
		c.Mounts = []*criv1.Mount{bind(volume, "/made/for/it")}
	}, "sh", "-c", "touch /x /etc/hosts 2>&1 | grep -c 'Read-only file system'; touch /made/for/it/x /dev/shm/x && echo volumes")
	if got != "2\nvolumes\n" {
		t.Errorf("got %q, want two refusals and writable volumes", got)
	}
	if _, err := os.Stat(filepath.Join(volume, "x")); err != nil {
		t.Errorf("what was written to the volume: %v", err)
	}
}

func TestVolumes(t *testing.T) {
	p := onNode(t).pod(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"file": "hello\n", "secret": "no\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(dir, dir+"-link"); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir + "-link")
	mounts := []*criv1.Mount{
		bind(dir, "/volume"), {HostPath: dir, ContainerPath: "/fixed", Readonly: true}, bind(dir+"-link", "/by/link"),
		bind(filepath.Join(dir, "file"), "/etc/one-file"), bind("/dev/null", "/data/seed"),
	}
	c := p.sleeper(func(c *criv1.ContainerConfig) { c.Mounts = mounts })
	for _, test := range []struct{ script, want string }{
		{"cat /volume/file /by/link/file /etc/one-file", "hello\nhello\nhello\n"},
		{"touch /fixed/x 2>&1 | grep -o 'Read-only file system'", "Read-only file system\n"},
		{"wc -c < /data/seed", "0\n"},
		{"touch /volume/new && ls /fixed/new", "/fixed/new\n"},
	} {
		if got := c.exec("sh", "-c", test.script); got != test.want {
			t.Errorf("%s: got %q, want %q", test.script, got, test.want)
		}
	}
	if got := c.status().GetMounts(); !slices.EqualFunc(got, mounts, func(a, b *criv1.Mount) bool {
		return a.GetHostPath() == b.GetHostPath() && a.GetContainerPath() == b.GetContainerPath() && a.GetReadonly() == b.GetReadonly()
	}) {
		t.Errorf("status mounts: got %v, want those of the request, as given", got)
	}
}

// A source may vanish between create and start: the start fails, the source is named.
func TestVolumeThatVanishedFailsTheStart(t *testing.T) {
	p := onNode(t).pod(t)
	dir := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := p.create(func(c *criv1.ContainerConfig) { c.Mounts = []*criv1.Mount{bind(dir, "/volume")} }, "true")
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	wantError(t, c.tryStart(), codes.InvalidArgument, dir)
	if s := c.status(); s.GetReason() != "StartError" {
		t.Errorf("got %v, want EXITED with StartError", s)
	}
}

func TestPropagation(t *testing.T) {
	n := onNode(t)
	p := n.pod(t, privilegedPod)
	source := t.TempDir()
	if err := unix.Mount("volume", source, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(source, unix.MNT_DETACH)
	if err := unix.Mount("", source, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"host", "guest"} {
		if err := os.Mkdir(filepath.Join(source, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	with := func(mode criv1.MountPropagation) *container {
		return p.sleeper(func(c *criv1.ContainerConfig) {
			c.Mounts = []*criv1.Mount{{HostPath: source, ContainerPath: "/volume", Propagation: mode}}
			security(c).Privileged = true
		})
	}
	private, slave, shared := with(criv1.MountPropagation_PROPAGATION_PRIVATE), with(criv1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER),
		with(criv1.MountPropagation_PROPAGATION_BIDIRECTIONAL)
	host := filepath.Join(source, "host")
	if err := unix.Mount("late", host, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(host, unix.MNT_DETACH)
	for _, test := range []struct {
		name string
		c    *container
		sees bool
	}{{"private", private, false}, {"host to container", slave, true}, {"bidirectional", shared, true}} {
		if got := strings.Contains(test.c.exec("cat", "/proc/self/mountinfo"), " /volume/host "); got != test.sees {
			t.Errorf("%s: sees the host's mount: got %v, want %v", test.name, got, test.sees)
		}
		test.c.exec("mount", "-t", "tmpfs", "inner", "/volume/guest")
		table, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Contains(string(table), source+"/guest "), test.name == "bidirectional"; got != want {
			t.Errorf("%s: the host sees the container's mount: got %v, want %v", test.name, got, want)
		}
	}
	shared.exec("umount", "/volume/guest")
}

// Read-only reaches the mounts below a volume where that is asked for, and only there.
// protectedVolume holds a program, a set-user-ID one and a device, each also on a file system mounted below.
func protectedVolume(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", below, "tmpfs", 0, "mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(below, unix.MNT_DETACH) })
	probe, err := os.ReadFile(os.Getenv(workVariable) + "/probe")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, below} {
		err := os.WriteFile(d+"/suid-probe", probe, 0o755)
		if err == nil {
			err = os.Chmod(d+"/suid-probe", 0o4755|os.ModeSetuid)
		}
		if err == nil {
			err = unix.Mknod(d+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
		}
		if err == nil {
			err = os.Chmod(d+"/null", 0o666)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestMountOptionsProtectVolumes(t *testing.T) {
	n := onNode(t)
	dir := protectedVolume(t)
	s, err := n.Status(ctx(t), &criv1.StatusRequest{})
	if err != nil || !s.GetFeatures().GetMountOptions() || !s.GetRuntimeHandlers()[0].GetFeatures().GetRecursiveReadOnlyMounts() {
		t.Errorf("features: got %v, %v, want mount options and recursively read-only mounts among them", s, err)
	}
	testRefusals(t, n.pod(t), map[string]refusal{
		"no protection": {change: func(c *criv1.ContainerConfig) {
			c.Mounts = []*criv1.Mount{{HostPath: dir, ContainerPath: "/v", MountOptions: []string{"nodev", "sync"}}}
		}, words: []string{"mounts[0].mount_options", "sync", "noexec"}},
	})
	for name, change := range map[string][]func(*criv1.PodSandboxConfig){"the node's users": nil, "users of its own": {ownUser}} {
		t.Run(name, func(t *testing.T) {
			c := n.pod(t, change...).sleeper(func(c *criv1.ContainerConfig) {
				outsideModules(c)
				security(c).RunAsUser = &criv1.Int64Value{Value: 1000}
				options := security(c).GetNamespaceOptions().GetUsernsOptions()
				for at, list := range map[string][]string{"/none": nil, "/noexec": {"noexec"}, "/nodev": {"nodev"}, "/nosuid": {"nosuid"}, "/all": {"nosuid", "nodev", "noexec", "nodev"}} {
					m := bind(dir, at)
					m.MountOptions, m.UidMappings, m.GidMappings = list, options.GetUids(), options.GetGids()
					c.Mounts = append(c.Mounts, m)
				}
			})
			for at, want := range map[string]string{"/none": "exec dev suid", "/noexec": "dev", "/nodev": "exec suid", "/nosuid": "exec dev", "/all": ""} {
				for _, below := range []string{"", "/below"} {
					// A file system without a mapping sets no user ID that the pod does not have.
					script := "cd " + at + below + "; ./suid-probe id >/tmp/id 2>/dev/null && echo exec; (echo x >null) 2>/dev/null && echo dev; grep -q 'euid 0 ' /tmp/id && echo suid; true"
					want := want
					if change != nil && below != "" {
						want = strings.TrimSpace(strings.ReplaceAll(want, "suid", ""))
					}
					if got := strings.Join(strings.Fields(c.exec("sh", "-c", "rm -f /tmp/id; "+script)), " "); got != want {
						t.Errorf("%s%s: got %q, want %q", at, below, got, want)
					}
				}
			}
		})
	}
	id := n.imageStatus(t, mustTestImage(t)).GetId()
	got := n.pod(t).output(func(c *criv1.ContainerConfig) {
		c.Mounts = []*criv1.Mount{imageMount(id, "/tools", "bin"), imageMount(id, "/data/tools", "bin")}
		c.Mounts[1].MountOptions = []string{"noexec"}
	}, "sh", "-c", "/tools/probe id >/dev/null && echo executed; /data/tools/probe id 2>&1 | grep -c 'Permission denied'")
	if got != "executed\n1\n" {
		t.Errorf("an image mount: got %q, want it executable unless noexec is asked for", got)
	}
}

func TestRecursiveReadOnlyVolumes(t *testing.T) {
	p := onNode(t).pod(t)
	dir := t.TempDir()
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("below", below, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(below, unix.MNT_DETACH)
	testRefusals(t, p, map[string]refusal{
		"recursively read-only and writable": {change: func(c *criv1.ContainerConfig) {
			c.Mounts = []*criv1.Mount{{HostPath: dir, ContainerPath: "/v", RecursiveReadOnly: true}}
		}, words: []string{"recursive_read_only"}},
		"recursively read-only and propagated": {change: func(c *criv1.ContainerConfig) {
			c.Mounts = []*criv1.Mount{{HostPath: dir, ContainerPath: "/v", Readonly: true, RecursiveReadOnly: true, Propagation: criv1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}}
		}, words: []string{"recursive_read_only"}},
	})
	got := p.output(func(c *criv1.ContainerConfig) {
		outsideModules(c)
		c.Mounts = []*criv1.Mount{
			{HostPath: dir, ContainerPath: "/plain", Readonly: true}, {HostPath: dir, ContainerPath: "/all", Readonly: true, RecursiveReadOnly: true},
		}
	}, "sh", "-c", "for d in /plain /plain/below /all /all/below; do touch $d/x 2>/dev/null && echo $d; done; true")
	if got != "/plain/below\n" {
		t.Errorf("writable: got %q, want /plain/below alone", got)
	}
}

// hangingFileSystem is mounted on dir until the returned function is called.
func hangingFileSystem(t *testing.T, dir string) (release func()) {
	t.Helper()
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("FUSE is missing: %v", err)
	}
	// Nobody answers what the kernel asks this file system, so that every look below it waits.
	if err := unix.Mount("hung", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", device)); err != nil {
		unix.Close(device)
		t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		unix.Close(device)
		unix.Unmount(dir, unix.MNT_DETACH)
	})
}

// A source or device that hangs, as one on a dead server does, ends with its caller's patience and holds nobody else up.
func TestHungPathHoldsUpNobodyElse(t *testing.T) {
	n := onNode(t)
	for name, use := range map[string]func(c *criv1.ContainerConfig, path string){
		"mount source": func(c *criv1.ContainerConfig, path string) { c.Mounts = []*criv1.Mount{bind(path, "/volume")} },
		"device": func(c *criv1.ContainerConfig, path string) {
			c.Devices = []*criv1.Device{{HostPath: path, ContainerPath: "/dev/hung", Permissions: "r"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := n.pod(t)
			dir := t.TempDir()
			release := hangingFileSystem(t, dir)
			defer release()
			path := filepath.Join(dir, "hung")
			config := p.containerConfig(func(c *criv1.ContainerConfig) { use(c, path) }, "true")
			create := func() error {
				short, cancel := contextWithTimeout(time.Second)
				defer cancel()
				_, err := n.CreateContainer(short, &criv1.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
				return err
			}
			wantError(t, create(), codes.DeadlineExceeded)
			wantError(t, create(), codes.DeadlineExceeded)
			if op := n.op(t, "create container", "look at mounts and devices", name); op.WaitsFor[0].Name != path {
				t.Errorf("got %+v, want the path named", op)
			}
			begin := time.Now()
			if got := p.output(nil, "echo", "lively"); got != "lively\n" {
				t.Errorf("another container of the pod: got %q", got)
			}
			if got := n.pod(t).output(nil, "echo", "lively"); got != "lively\n" {
				t.Errorf("another pod: got %q", got)
			}
			if took := time.Since(begin); took > patient(5*time.Second) {
				t.Errorf("they took %s", took)
			}
			release()
			eventually(t, 10*time.Second, "the create's end", func() bool { return len(n.ops(t)) == 0 })
		})
	}
}

// An image's VOLUME is a directory of the container's own, filled with what the image has there, and gone with it.
func TestImageVolumesAreFilledFromTheImage(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	image := n.pulled(t, "node/volume:1", v1.Config{Volumes: map[string]struct{}{"/data": {}, "/empty": {}}})
	use := func(c *criv1.ContainerConfig) { c.Image.Image = image }
	const look = "cat /data/seed; readlink /data/link; stat -c '%a' /data /data/seed; ls -A /empty | wc -l; grep -c -e ' /data ' -e ' /empty ' /proc/self/mountinfo; echo changed > /data/seed"
	const want = "from the image\nseed\n750\n640\n0\n2\n"
	for range 2 { // the second container has a volume of its own
		if got := p.output(use, "sh", "-c", look); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	covered := p.output(func(c *criv1.ContainerConfig) {
		use(c)
		c.Mounts = []*criv1.Mount{bind("/dev/shm", "/data")}
	}, "sh", "-c", "ls /data/seed 2>/dev/null || echo covered")
	if covered != "covered\n" {
		t.Errorf("a VOLUME under a mount of the request: got %q", covered)
	}
}

func TestDevices(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	names := strings.Fields(p.output(nil, "ls", "/dev"))
	for _, want := range []string{"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "fd", "stdin", "stdout", "stderr"} {
		if !slices.Contains(names, want) {
			t.Errorf("/dev: got %v, want %s in it", names, want)
		}
	}
	// /dev/kmsg is the host's log: not given unless asked for.
	denied := p.output(outsideModules, "sh", "-c", "mknod /tmp/kmsg c 1 11 && (head -c 1 /tmp/kmsg 2>&1 | grep -o 'Operation not permitted')")
	if denied != "Operation not permitted\n" {
		t.Errorf("a node of the container's own making: got %q, want it denied", denied)
	}
	given := p.output(func(c *criv1.ContainerConfig) {
		outsideModules(c)
		c.Devices = []*criv1.Device{{HostPath: "/dev/full", ContainerPath: "/dev/given", Permissions: "r"}}
	}, "sh", "-c", "head -c 2 /dev/given | wc -c; (echo x > /dev/given) 2>&1 | grep -o -e 'Operation not permitted' -e 'No space left'; stat -c '%t:%T' /dev/given")
	// Only reading is allowed for it; /dev/full itself is a default device and so may be written.
	if !strings.HasPrefix(given, "2\n") || !strings.HasSuffix(given, "1:7\n") {
		t.Errorf("a device that was asked for: got %q", given)
	}
	privileged := n.pod(t, privilegedPod)
	if got := privileged.output(func(c *criv1.ContainerConfig) { security(c).Privileged = true }, "sh", "-c", "ls /dev/kmsg && mount -t tmpfs x /mnt 2>/dev/null || mkdir /mnt && mount -t tmpfs x /mnt && echo mounted"); !strings.Contains(got, "/dev/kmsg") || !strings.Contains(got, "mounted") {
		t.Errorf("privileged: got %q, want the host's devices and mount(2)", got)
	}
}

func TestCgroupViewBeginsAtTheContainer(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.sleeper(nil)
	for line := range strings.Lines(c.exec("cat", "/proc/self/cgroup")) {
		if fields := strings.SplitN(strings.TrimSpace(line), ":", 3); fields[2] != "/" && !strings.HasPrefix(fields[2], "/..") {
			t.Errorf("got %q, want the root of the container's own view", line)
		}
	}
	got := c.exec("sh", "-c", "cd /sys/fs/cgroup; for d in . */; do mkdir $d/x 2>&1 | grep -o 'Read-only file system'; done | sort -u; find . -name 'podwright*' | wc -l")
	if got != "Read-only file system\n0\n" {
		t.Errorf("the view of cgroups: got %q, want it read-only and without podwright's groups", got)
	}
}

func TestSandboxFilesAndSharedMemory(t *testing.T) {
	n := onNode(t)
	p := n.pod(t, ownNetwork, func(c *criv1.PodSandboxConfig) {
		c.Hostname = "web"
		c.DnsConfig = &criv1.DNSConfig{Servers: []string{"10.1.2.3", "fd00::1"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:5"}}
	})
	one, two := p.sleeper(nil), p.sleeper(nil)
	if got, want := one.exec("cat", "/etc/resolv.conf"), "search a.example b.example\nnameserver 10.1.2.3\nnameserver fd00::1\noptions ndots:5\n"; got != want {
		t.Errorf("resolv.conf: got %q, want %q", got, want)
	}
	if got := one.exec("sh", "-c", "cat /etc/hostname; hostname; grep -c web /etc/hosts; grep -c localhost /etc/hosts"); !strings.HasPrefix(got, "web\nweb\n") {
		t.Errorf("hostname: got %q", got)
	}
	one.exec("sh", "-c", "echo shared > /dev/shm/note")
	if got := two.exec("cat", "/dev/shm/note"); got != "shared\n" {
		t.Errorf("/dev/shm of the second container: got %q", got)
	}
	if got := one.exec("sh", "-c", "dd if=/dev/zero of=/dev/shm/big bs=1M count=70 2>&1 | grep -o 'No space left'; rm /dev/shm/big; df -k /dev/shm | tail -1"); !strings.HasPrefix(got, "No space left\n") {
		t.Errorf("70 MiB in /dev/shm: got %q, want it full at 64 MiB", got)
	}
	if got := two.exec("cat", "/etc/hostname"); got != "web\n" {
		t.Errorf("files after /dev/shm was filled: got %q", got)
	}
	nodes, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	for what, dns := range map[string]*criv1.DNSConfig{"no dns_config": nil, "an empty dns_config": {}} {
		without := n.pod(t, func(c *criv1.PodSandboxConfig) { c.DnsConfig = dns })
		if got := without.output(nil, "cat", "/etc/resolv.conf"); got != string(nodes) {
			t.Errorf("resolv.conf with %s: got %q, want the node's %q", what, got, nodes)
		}
	}
	host := n.pod(t, hostIPC).sleeper(nil)
	if got := host.exec("ls", "/dev/shm"); strings.Contains(got, "note") {
		t.Errorf("/dev/shm of a hostIPC pod: got %q, want the node's, not another pod's", got)
	}
}

func TestSysctlsHoldInTheSandboxAlone(t *testing.T) {
	n := onNode(t)
	read := func(name string) string {
		text, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	names := []string{"net/ipv4/ip_unprivileged_port_start", "kernel/shm_rmid_forced", "fs/mqueue/msg_max"}
	before := map[string]string{}
	for _, name := range names {
		before[name] = read(name)
	}
	p := n.pod(t, ownNetwork, func(c *criv1.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "79", "kernel.shm_rmid_forced": "1", "fs/mqueue/msg_max": "77", "net.ipv4.conf.eth0.log_martians": "1"}
	})
	got := p.output(nil, "sh", "-c", "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/shm_rmid_forced fs/mqueue/msg_max net/ipv4/conf/eth0/log_martians")
	if got != "79\n1\n77\n1\n" {
		t.Errorf("in the sandbox: got %q, want what was asked for", got)
	}
	for _, name := range names {
		if now := read(name); now != before[name] {
			t.Errorf("%s of the node: got %q, want %q as before", name, now, before[name])
		}
	}
}

func TestTerminal(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.start(func(c *criv1.ContainerConfig) { c.Tty = true }, "sh", "-c", "tty; echo $TERM; test -t 0 -a -t 1 -a -t 2 && echo terminal; stat -c %t:%T /dev/console; echo to stderr >&2")
	if s := c.wait(settleTime); s.GetExitCode() != 0 {
		t.Errorf("exit code %d", s.GetExitCode())
	}
	want := "/dev/pts/0\nxterm\nterminal\n88:0\nto stderr\n" // major 0x88: a slave of devpts, bound to /dev/console
	if got := c.stream("stdout"); got != want || c.stream("stderr") != "" {
		t.Errorf("got %q and stderr %q, want %q, all on stdout, without carriage returns (B40)", got, c.stream("stderr"), want)
	}
}
