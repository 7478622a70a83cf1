package node

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func hasLabels() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
}

func needLabels(t *testing.T) {
	t.Helper()
	if !hasLabels() {
		t.Skip("SELinux is missing: the kernel has none enabled; make vm-test")
	}
}

// allowWhatTestsDo turns booleans of SELinux's policy on, where there is one, until restore is called: plugins are scripts
// here, containers make groups of their own, trace, and use capabilities that they ask for.
func allowWhatTestsDo() (restore func(), err error) {
	var was, now []string
	restore = func() { set(was) }
	if !hasLabels() {
		return restore, nil
	}
	for _, name := range []string{
		"podwright_plugin_scripts", "podwright_containers_trace", "container_manage_cgroup", "container_use_host_all_caps", "container_use_userns_all_caps",
	} {
		value, err := os.ReadFile("/sys/fs/selinux/booleans/" + name)
		if err != nil {
			return restore, err
		}
		was, now = append(was, name+"="+string(value[:1])), append(now, name+"=1")
	}
	return restore, set(now)
}

func set(booleans []string) error {
	if len(booleans) == 0 {
		return nil
	}
	if out, err := exec.Command("setsebool", booleans...).CombinedOutput(); err != nil {
		return fmt.Errorf("setsebool %q: %w: %s", booleans, err, out)
	}
	return nil
}

// labelled gives what a node consists of the labels that the policy has for the places of an installed one.
func (n *node) labelled() error {
	var errs []error
	for own, place := range map[string]string{
		"run": "/run/podwright", "netns": "/run/netns", "state": "/var/lib/podwright", "logs": podLogs, "config.toml": "/etc/podwright/config.toml",
		"cni": "/etc/cni/net.d", "plugins": "/opt/cni/bin/bridge", "addresses": "/var/lib/cni/networks", "certs": "/etc/containerd/certs.d", "seccomp": "/var/lib/kubelet/seccomp",
	} {
		errs = append(errs, labelAs(n.path(own), place))
	}
	return errors.Join(errs...)
}

const podLogs = "/var/log/pods"

// labelAs gives a path the label that the policy has for another place, where there is one.
func labelAs(path, place string) error {
	if !hasLabels() {
		return nil
	}
	label, err := exec.Command("matchpathcon", "-n", place).Output()
	if err != nil {
		return fmt.Errorf("label of %s: %w", place, err)
	}
	if out, err := exec.Command("chcon", "-R", clean(string(label)), path).CombinedOutput(); err != nil {
		return fmt.Errorf("label %s as %s: %w: %s", path, place, err, out)
	}
	return nil
}

// label is what the first process has, as the node sees it.
func (c *container) label() string {
	c.p.t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/attr/current", c.info().PID))
	if err != nil {
		c.p.t.Fatal(err)
	}
	return clean(string(raw))
}

func clean(label string) string { return strings.Trim(label, "\x00\n") }

// files are the labels of paths as a process in the container sees them.
func (c *container) files(paths ...string) map[string]string {
	c.p.t.Helper()
	found := map[string]string{}
	for line := range strings.Lines(c.exec(append([]string{"probe", "labels"}, paths...)...)) {
		path, label, _ := strings.Cut(strings.TrimSpace(line), " ")
		found[path] = label
	}
	return found
}

var podLabel = regexp.MustCompile(`^system_u:system_r:container_t:(s0:c[0-9]+,c[0-9]+)$`)

// level is that of a container which asked for nothing.
func (c *container) level() string {
	c.p.t.Helper()
	match := podLabel.FindStringSubmatch(c.label())
	if match == nil {
		c.p.t.Fatalf("label %q: want container_t and a pair of categories", c.label())
	}
	return match[1]
}

func labelled(o *criv1.SELinuxOption) func(*criv1.ContainerConfig) {
	return func(c *criv1.ContainerConfig) { security(c).SelinuxOptions = o }
}

// What a container can touch is labelled as its processes are, and what they do is seen: output in the log, answers to
// commands, keys.
func TestLabelsOfProcessesAndFiles(t *testing.T) {
	needLabels(t)
	n := onNode(t)
	ref := n.models(t, "labels/models:1", first(modelFiles("labels")))
	for name, change := range map[string][]func(*criv1.PodSandboxConfig){
		"pod": {ownNetwork}, "pod's processes": {ownNetwork, podPID}, "node's network and processes": {hostPID}, "user namespace": {ownUser},
	} {
		t.Run(name, func(t *testing.T) {
			p := n.pod(t, change...)
			c := p.sleeper(func(c *criv1.ContainerConfig) {
				kubeletLike(c)
				security(c).Seccomp = nil // the default profile has no keyrings
				c.Mounts = []*criv1.Mount{imageMount(ref, "/models", "")}
			})
			process, file := c.label(), "system_u:object_r:container_file_t:"+c.level()
			c.exec("sh", "-c", "echo x >/new && echo y >/dev/shm/new && probe queue new && cat /models/share/models/weights /etc/hosts >/dev/null")
			for path, label := range c.files("/", "/new", "/bin/probe", "/etc/hosts", "/etc/resolv.conf", "/dev", "/dev/pts", "/dev/shm", "/dev/shm/new",
				"/dev/mqueue", "/models", "/models/share/models/weights", "/sys/firmware") {
				if label != file {
					t.Errorf("%s: got label %q, want %q", path, label, file)
				}
			}
			// A queue's type follows from its file system's, by a rule of the policy; its level from who makes it.
			if got := c.files("/dev/mqueue/new")["/dev/mqueue/new"]; !strings.HasSuffix(got, ":"+c.level()) {
				t.Errorf("a message queue has label %q, want level %s", got, c.level())
			}
			if got := clean(c.exec("cat", "/proc/self/attr/current")); got != process {
				t.Errorf("a command has %q, want %q", got, process)
			}
			if got := c.exec("probe", "keyring"); !strings.Contains(got, process) {
				t.Errorf("session keyring of a command %q, want it to have %q", got, process)
			}
			if name == "pod's processes" {
				if got := clean(c.exec("cat", "/proc/1/attr/current")); got != process {
					t.Errorf("the pod's PID 1 has %q, want %q", got, process)
				}
			}
			// By way of a FIFO of another type it would go to /dev/null.
			out := p.start(nil, "sh", "-c", "cat /proc/self/attr/current; echo; probe keyring; echo words >&2")
			out.wait(30 * time.Second)
			if got := strings.Split(out.stream("stdout"), "\n"); clean(got[0]) != process || len(got) < 2 || !strings.Contains(got[1], process) || out.stream("stderr") != "words\n" {
				t.Errorf("got output %q and %q, want %q, a keyring with it, and words", got, out.stream("stderr"), process)
			}
			if r, confirmed := c.explained(); !confirmed {
				t.Errorf("explain differs: %q", differing(r))
			}
		})
	}
}

func first[A, B any](a A, _ B) A { return a }

func TestLabelledTerminalsAndInput(t *testing.T) {
	needLabels(t)
	p := onNode(t).pod(t)
	tty := p.start(func(c *criv1.ContainerConfig) { c.Tty, c.Stdin = true, true }, "sh", "-c", "echo ready; probe labels $(tty) /dev/console; while read line; do echo got $line; done")
	eventually(t, 30*time.Second, "output", func() bool { return strings.Contains(tty.stream("stdout"), "/dev/console ") })
	file := "system_u:object_r:container_file_t:" + tty.level()
	if got := tty.stream("stdout"); strings.Count(got, file) != 2 {
		t.Errorf("got %q, want two files with %q", got, file)
	}
	s := mustOpenSPDY(t, tty.attachURL(func(r *criv1.AttachRequest) { r.Stdin, r.Tty = true, true }), v4, "error", "stdin", "stdout", "resize")
	eventually(t, 30*time.Second, "answer", func() bool {
		io.WriteString(s.streams["stdin"], "typed\n")
		return strings.Contains(s.out["stdout"].String(), "got typed\r\n")
	})
	s.conn.Close()

	piped := p.start(withStdin, "sh", "-c", "while read line; do echo got $line; done")
	s = mustOpenSPDY(t, piped.attachURL(func(r *criv1.AttachRequest) { r.Stdin, r.Stderr = true, true }), v4, "error", "stdin", "stdout", "stderr")
	eventually(t, 30*time.Second, "answer", func() bool {
		io.WriteString(s.streams["stdin"], "piped\n")
		return strings.Contains(s.out["stdout"].String(), "got piped\n")
	})
	s.conn.Close()

	session := mustOpenSPDY(t, piped.execURL(terminal, "sh", "-c", "probe labels $(tty); cat /proc/self/attr/current"), v4, "error", "stdin", "stdout", "resize")
	session.end()
	if got := session.out["stdout"].String(); !strings.Contains(got, file) || !strings.Contains(got, piped.label()) {
		t.Errorf("a command's terminal shows %q, want %q and %q", got, file, piped.label())
	}
}

func TestLabelsThatAreAskedFor(t *testing.T) {
	needLabels(t)
	n := onNode(t)
	plain, asking := n.pod(t), n.pod(t, func(c *criv1.PodSandboxConfig) {
		c.Linux.SecurityContext.SelinuxOptions = &criv1.SELinuxOption{Level: "s0:c20,c10"}
	})
	level := plain.sleeper(nil).level()
	for _, c := range []struct {
		name          string
		pod           *pod
		change        func(*criv1.ContainerConfig)
		process, file string
	}{
		{"the pod's level", asking, nil, "container_t:s0:c10,c20", "s0:c10,c20"},
		{"own level", asking, labelled(&criv1.SELinuxOption{Level: "s0:c30,c40"}), "container_t:s0:c30,c40", "s0:c30,c40"},
		{"no categories", plain, labelled(&criv1.SELinuxOption{Level: "s0"}), "container_t:s0", "s0"},
		{"own type, the pod's level", asking, labelled(&criv1.SELinuxOption{Type: "spc_t"}), "spc_t:s0:c10,c20", "s0:c10,c20"},
		{"own type, the sandbox's categories", plain, labelled(&criv1.SELinuxOption{Type: "spc_t"}), "spc_t:" + level, level},
	} {
		main := c.pod.sleeper(c.change)
		main.exec("touch", "/new")
		if got := main.label(); got != "system_u:system_r:"+c.process {
			t.Errorf("%s: got %q, want %s", c.name, got, c.process)
		}
		if got := main.files("/new")["/new"]; got != "system_u:object_r:container_file_t:"+c.file {
			t.Errorf("%s: a new file has %q, want level %s", c.name, got, c.file)
		}
	}
	const field = "linux.security_context.selinux_options."
	for want, o := range map[string]*criv1.SELinuxOption{
		field + `type "no_such_t"`: {Type: "no_such_t"}, field + `level "s5"`: {Level: "s5"}, field + `level "s0,c1,c2"`: {Level: "s0,c1,c2"},
		field + `user "nobody_u"`: {User: "nobody_u"}, field + `role "no_such_r"`: {Role: "no_such_r"},
	} {
		_, err := plain.tryCreate(plain.containerConfig(labelled(o), "true"))
		wantError(t, err, codes.InvalidArgument, want)
		_, err = n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: n.podConfig(func(c *criv1.PodSandboxConfig) { c.Linux.SecurityContext.SelinuxOptions = o })})
		wantError(t, err, codes.InvalidArgument, want)
	}
}

func TestPrivilegedContainersAreUnconfinedAndSaySo(t *testing.T) {
	needLabels(t)
	p := onNode(t).pod(t, privilegedPod)
	level := p.sleeper(nil).level() // one that is not, beside
	main := p.sleeper(func(c *criv1.ContainerConfig) {
		security(c).Privileged, security(c).SelinuxOptions = true, &criv1.SELinuxOption{Type: "container_t"}
	})
	if got := main.label(); got != "system_u:system_r:spc_t:s0" {
		t.Errorf("got %q, want spc_t", got)
	}
	if got := clean(main.exec("cat", "/proc/self/attr/current")); got != "system_u:system_r:spc_t:s0" {
		t.Errorf("a command has %q, want spc_t", got)
	}
	if got := main.files("/")["/"]; got != "system_u:object_r:container_file_t:"+level {
		t.Errorf("its root has %q, want the pod's level %s", got, level)
	}
	if r, confirmed := main.explained(); !confirmed || !strings.Contains(strings.Join(r.Notes, "\n"), "selinux_options label the container's files only") {
		t.Errorf("notes %q, differences %q", r.Notes, differing(r))
	}
}

// Three categories are three pairs: a fourth sandbox has to wait until one is removed, whatever daemon is asked.
func TestPairsOfCategoriesAreOnePodsUntilItIsRemoved(t *testing.T) {
	needLabels(t)
	n := ownNode(t, options{config: "[selinux]\ncategory_range = 3\n"})
	var pods []*pod
	levels := map[string]bool{}
	for range 3 {
		p := n.pod(t)
		first, second := p.sleeper(nil), p.sleeper(nil)
		if first.label() != second.label() {
			t.Errorf("two containers of a pod have %q and %q", first.label(), second.label())
		}
		levels[first.level()] = true
		pods = append(pods, p)
	}
	if len(levels) != 3 {
		t.Errorf("three pods have levels %v", levels)
	}
	full := func() {
		t.Helper()
		_, err := n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: n.podConfig()})
		wantError(t, err, codes.Unavailable, "no pair of SELinux categories is free")
	}
	full()
	if err := n.halt(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := n.serve(); err != nil {
		t.Fatal(err)
	}
	full()
	was := pods[0].sleeper(nil).level()
	if _, err := n.StopPodSandbox(ctx(t), &criv1.StopPodSandboxRequest{PodSandboxId: pods[0].id}); err != nil {
		t.Fatal(err)
	}
	full()
	n.removePod(t, pods[0].id)
	if got := n.pod(t).sleeper(nil).level(); got != was {
		t.Errorf("the pod after the removal has %s, want the only free %s", got, was)
	}
}

// An init that forgets the label starts nothing: in some policies that would be a privileged container.
func TestAForgottenLabelStartsNothing(t *testing.T) {
	needLabels(t)
	weak := filepath.Join(t.TempDir(), "podwright-init")
	build := exec.Command("go", "build", "-tags", "fault_label", "-o", weak, "github.com/podwright/podwright/cmd/podwright-init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n := ownNode(t, options{runtime: fmt.Sprintf("init_binary = %q\n", weak)})
	c := n.pod(t).create(nil, "sh", "-c", "echo ran")
	err := c.tryStart()
	if err == nil || !strings.Contains(err.Error(), "attr/exec") {
		t.Errorf("start: got %v, want an error that names the attribute", err)
	}
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_EXITED || s.GetReason() != "StartError" {
		t.Errorf("got state %v, reason %q", s.GetState(), s.GetReason())
	}
	if got := c.stream("stdout"); got != "" {
		t.Errorf("the container wrote %q", got)
	}
	_, err = n.RunPodSandbox(ctx(t), &criv1.RunPodSandboxRequest{Config: n.podConfig(podPID)})
	if err == nil || !strings.Contains(err.Error(), "attr/exec") {
		t.Errorf("a pod with a PID 1: got %v, want an error that names the attribute", err)
	}
}
