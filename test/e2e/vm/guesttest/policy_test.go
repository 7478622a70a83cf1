package guesttest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The test program is also a program for podwright's domain, told by its environment what to do.
const (
	executeFile = "GUESTTEST_EXECUTE" // execute this file, with
	executeAs   = "GUESTTEST_AS"      // this label, if any
	attachTo    = "GUESTTEST_ATTACH"  // or look at this shared memory, then attach it

	traceProcess = "GUESTTEST_TRACE" // or trace this process

	codeRefused = 77 // the policy refused it (EACCES, EPERM)
	codeOther   = 78
)

func TestMain(m *testing.M) {
	var err error
	switch file, memory, process := os.Getenv(executeFile), os.Getenv(attachTo), os.Getenv(traceProcess); {
	case file != "":
		err = execute(file, os.Getenv(executeAs))
	case memory != "":
		err = attach(memory)
	case process != "":
		err = trace(process)
	default:
		os.Exit(m.Run())
	}
	fmt.Fprintln(os.Stderr, err)
	switch {
	case err == nil:
		os.Exit(0)
	case errors.Is(err, os.ErrPermission):
		os.Exit(codeRefused)
	}
	os.Exit(codeOther)
}

func execute(file, label string) error {
	runtime.LockOSThread()
	if label != "" {
		if err := os.WriteFile("/proc/thread-self/attr/exec", []byte(label), 0); err != nil {
			return fmt.Errorf("ask for label %s: %w", label, err)
		}
	}
	return fmt.Errorf("execute %s: %w", file, unix.Exec(file, []string{"true"}, nil))
}

// labelled makes a directory with a label, and in it what is copied from the files.
func labelled(t *testing.T, label string, files ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/lib", "guesttest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, file := range files {
		run(t, "cp", file, filepath.Join(dir, filepath.Base(file)))
	}
	run(t, "chmod", "-R", "a+rX", dir)
	run(t, "chcon", "-R", label, dir)
	return dir
}

// refusals are the policy's in the kernel's log after the first so many, those that have all words.
func refusals(t *testing.T, after int, words ...string) []string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(run(t, "dmesg")) {
		if !strings.Contains(line, "avc:") || !strings.Contains(line, "denied") {
			continue
		}
		if after--; after >= 0 {
			continue
		}
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// mark is the number of refusals so far.
func mark(t *testing.T) int { return len(refusals(t, 0)) }

// denied runs a script in the container, which the policy has to refuse: its log says so of this container, with all words.
func (c *container) denied(script string, words ...string) {
	c.p.t.Helper()
	since := mark(c.p.t)
	said := c.refused(script)
	lines := refusals(c.p.t, since, append(words, "scontext="+label(c.p.t, c.pid())+" ")...)
	if len(lines) == 0 {
		c.p.t.Errorf("%s: %s\nno refusal with %q was logged, but:\n%s", script, said, words, strings.Join(refusals(c.p.t, since), "\n"))
	}
	c.p.t.Logf("%s: %s\n%s", script, said, strings.Join(lines, "\n"))
}

// allow turns a boolean of the policy on while the test runs.
func allow(t *testing.T, boolean string) {
	t.Helper()
	run(t, "setsebool", boolean, "on")
	t.Cleanup(func() { run(t, "setsebool", boolean, "off") })
}

// hostPID makes a pod of a test that sees the node's processes, at a level if one is given.
func hostPID(level string) func(*criv1.PodSandboxConfig) {
	return func(config *criv1.PodSandboxConfig) {
		security := config.Linux.SecurityContext
		security.NamespaceOptions.Pid = criv1.NamespaceMode_NODE
		if level != "" {
			security.SelinuxOptions = &criv1.SELinuxOption{Level: level}
		}
	}
}

// withPaths mounts host paths into a container, which has its pod's level.
func withPaths(p *pod, paths map[string]string) func(*criv1.ContainerConfig) {
	return func(config *criv1.ContainerConfig) {
		for host, path := range paths {
			config.Mounts = append(config.Mounts, &criv1.Mount{HostPath: host, ContainerPath: path})
		}
		config.Linux.SecurityContext.SelinuxOptions = p.config.GetLinux().GetSecurityContext().GetSelinuxOptions()
	}
}

// Of three containers with the node's PIDs, uid 0 and one directory of the node, one can do nothing to what is another's
// but where the level is the same: types, users and capabilities are. (Whether a process is there, kill -0, the policy
// doesn't guard.)
func TestCategoriesAloneSeparate(t *testing.T) {
	needs(t, "selinux")
	allow(t, "podwright_containers_trace") // or the policy lets nobody trace at all
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := connect(t)
	paths := map[string]string{
		labelled(t, "system_u:object_r:container_file_t:s0"):          "/shared",
		labelled(t, "system_u:object_r:container_file_t:s0", program): "/program",
	}
	podA, podB := d.pod(hostPID("")), d.pod(hostPID(""))
	a, b := podA.sleeper(withPaths(podA, paths)), podB.sleeper(withPaths(podB, paths))
	labelA, labelB := label(t, a.pid()), label(t, b.pid())
	if labelA == labelB || !strings.Contains(labelA, ":container_t:s0:c") || !strings.Contains(labelB, ":container_t:s0:c") {
		t.Fatalf("got labels %s and %s, want container_t with two different pairs of categories", labelA, labelB)
	}
	_, level, _ := strings.Cut(labelB, ":container_t:")
	podC := d.pod(hostPID(level))
	c := podC.sleeper(withPaths(podC, paths))
	if got := label(t, c.pid()); got != labelB {
		t.Fatalf("a container that asks for level %s has label %s, want %s", level, got, labelB)
	}
	trace := func(other *container) string {
		return traceProcess + "=" + other.pid() + " /program/" + filepath.Base(program)
	}
	for _, own := range []*container{a, b} {
		name, foreign := "/shared/"+own.id, b
		if own == b {
			foreign = a
		}
		own.shell("echo mine >" + name)
		of := "tcontext=" + label(t, foreign.pid()) + " "
		file := ":" + strings.SplitN(label(t, own.pid()), ":", 4)[3] + " tclass=file"
		for script, words := range map[string][]string{
			"cat " + name: {"{ read }", file}, "echo yours >>" + name: {"{ append }", file}, "rm -f " + name: {"{ unlink }", file},
		} {
			foreign.denied(script, words...)
		}
		own.denied("kill -CONT "+foreign.pid(), "{ signal }", of)
		own.denied("kill -KILL "+foreign.pid(), "{ sigkill }", of)
		own.denied("cat /proc/"+foreign.pid()+"/environ", "tclass=dir", of)
		own.denied(trace(foreign), "{ ptrace }", of)
		if got := own.shell("cat " + name); got != "mine" {
			t.Errorf("%s has %q, want it as its owner wrote it", name, got)
		}
	}
	if got := c.shell("echo too >>/shared/" + b.id + " && cat /shared/" + b.id); got != "mine\ntoo" {
		t.Errorf("with B's level, B's file has %q", got)
	}
	c.shell("kill -CONT " + b.pid() + " && cat /proc/" + b.pid() + "/environ >/dev/null && " + trace(b) + " && rm /shared/" + b.id)
	b.shell(trace(c))
	c.denied(trace(a), "{ ptrace }", "tcontext="+labelA+" ")
	b.shell("kill -KILL " + c.pid())
	eventually(t, "the end of C", func() bool { return unix.Access("/proc/"+c.pid(), unix.F_OK) != nil })
}

// trace begins to trace a process, and lets go of it by ending.
func trace(process string) error {
	pid, err := strconv.Atoi(process)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		return fmt.Errorf("trace process %d: %w", pid, err)
	}
	return nil
}

// A container that has the node's whole tree and uid 0 reads of it what the policy says, whatever capabilities it has.
func TestNodesTreeIsNotTheContainers(t *testing.T) {
	needs(t, "selinux")
	allow(t, "container_use_host_all_caps")
	closed := labelled(t, "system_u:object_r:container_file_t:s0", "/etc/hostname") + "/hostname"
	run(t, "chmod", "0", closed)
	run(t, "chown", "7:7", closed)
	p := connect(t).pod()
	c := p.sleeper(func(config *criv1.ContainerConfig) {
		withPaths(p, map[string]string{"/": "/host"})(config)
		config.Linux.SecurityContext.Capabilities = &criv1.Capability{AddCapabilities: []string{"DAC_OVERRIDE", "DAC_READ_SEARCH"}}
	})
	for _, file := range []string{"/etc/hostname", closed} {
		if got := c.shell("cat /host" + file); got == "" {
			t.Errorf("the node's %s is empty, want it read: it is no secret of the policy's", file)
		}
	}
	for script, kind := range map[string]string{
		"cat /host/etc/shadow": ":shadow_t:", "echo x >>/host/etc/passwd": ":etc_t:", "touch /host/root/x": ":user_home_dir_t:",
		"cat /host/etc/podwright/config.toml": ":podwright_etc_t:", "ls /host/var/lib/podwright/records": ":podwright_var_lib_t:",
		"ls /host/var/lib/podwright/containers/" + c.id: ":podwright_layer_t:", "ls /host/run/podwright": ":podwright_runtime_t:",
		"echo 1 >/host/proc/sys/kernel/core_pattern": ":",
	} {
		c.denied(script, kind)
	}
}

// Podwright's domain executes no file of a container without the label of a container's domain: what a start that forgot
// it would do.
func TestForgottenLabelIsRefusedByThePolicy(t *testing.T) {
	needs(t, "selinux")
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(labelled(t, "system_u:object_r:podwright_exec_t:s0", program), filepath.Base(program))
	for kind, want := range map[string]int{"container_file_t": codeRefused, "container_ro_file_t": codeRefused, "container_var_lib_t": codeRefused, "podwright_layer_t": codeRefused} {
		file := filepath.Join(labelled(t, "system_u:object_r:"+kind+":s0", "/bin/busybox"), "busybox")
		since := mark(t)
		if got := inDomain(t, own, file, ""); got != want {
			t.Errorf("%s without a label: got code %d, want %d; %v", kind, got, want, refusals(t, since))
		}
		t.Logf("%s: %s", kind, strings.Join(refusals(t, since, ":podwright_t:"), "\n"))
	}
	file := filepath.Join(labelled(t, "system_u:object_r:container_file_t:s0", "/bin/busybox"), "busybox")
	for _, domain := range []string{"container_t:s0:c1,c2", "spc_t:s0"} {
		since := mark(t)
		if got := inDomain(t, own, file, "system_u:system_r:"+domain); got != 0 {
			t.Errorf("as %s: got code %d, want 0; %v", domain, got, refusals(t, since))
		}
	}
	for _, domain := range []string{"unconfined_t", "init_t", "initrc_t", "kernel_t"} {
		if got := inDomain(t, own, file, "system_u:system_r:"+domain+":s0"); got != codeRefused {
			t.Errorf("as %s: got code %d, want %d", domain, got, codeRefused)
		}
	}
}

// inDomain has systemd start program, which has the label of podwright's, to execute file as label says; it gives the
// exit code.
func inDomain(t *testing.T, program, file, label string) int {
	t.Helper()
	cmd := exec.CommandContext(ctx(t), "systemd-run", "--quiet", "--wait", "--collect", "-E", executeFile+"="+file, "-E", executeAs+"="+label, program)
	out, err := cmd.CombinedOutput()
	if len(out) > 0 {
		t.Logf("%s", out)
	}
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return 0
}

// Nothing that podwright does for ordinary pods is refused by its policy, or would be if the policy were silent about it.
func TestOrdinaryPodsMeetNoRefusal(t *testing.T) {
	needs(t, "selinux")
	d := connect(t)
	since := mark(t)
	for _, network := range []criv1.NamespaceMode{criv1.NamespaceMode_NODE, criv1.NamespaceMode_POD} {
		p := d.pod(func(config *criv1.PodSandboxConfig) {
			config.Linux.SecurityContext.NamespaceOptions.Network = network
			config.PortMappings = []*criv1.PortMapping{{ContainerPort: 80, HostPort: 18080}}
			if network == criv1.NamespaceMode_NODE {
				config.PortMappings = nil
			}
		})
		volume := labelled(t, "system_u:object_r:container_file_t:s0")
		c := p.sleeper(withPaths(p, map[string]string{volume: "/volume"}))
		if got := c.shell("echo again >/dev/stdout"); got != "again" {
			t.Errorf("a command opened its output and wrote %q, want again", got)
		}
		if got := c.shell("echo hello >/volume/x && cat /volume/x && df /dev/shm >/dev/null && echo $$ >/dev/shm/y"); got != "hello" {
			t.Errorf("exec wrote %q, want hello", got)
		}
		for _, call := range []func() error{
			func() error {
				_, err := d.ContainerStats(ctx(t), &criv1.ContainerStatsRequest{ContainerId: c.id})
				return err
			},
			func() error {
				_, err := d.ContainerStatus(ctx(t), &criv1.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
				return err
			},
			func() error { _, err := d.ListPodSandboxStats(ctx(t), &criv1.ListPodSandboxStatsRequest{}); return err },
			func() error {
				_, err := d.StopContainer(ctx(t), &criv1.StopContainerRequest{ContainerId: c.id, Timeout: 30})
				return err
			},
		} {
			if err := call(); err != nil {
				t.Error(err)
			}
		}
		p.remove()
	}
	for _, line := range refusals(t, since, "scontext=system_u:system_r:podwright_t") {
		// What the kernel asks at each transition: a plugin's iptables has its own environment and limits, as it should.
		if strings.Contains(line, ":iptables_t:") && strings.Contains(line, "tclass=process") {
			continue
		}
		t.Error(line)
	}
	for _, line := range refusals(t, since, "podwright") {
		t.Log(line)
	}
}
