package node

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const defaultProfile = "podwright-default"

// hasAppArmor says whether the kernel confines by profiles.
func hasAppArmor() bool {
	raw, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(raw), "Y")
}

func needAppArmor(t *testing.T) {
	t.Helper()
	if !hasAppArmor() {
		t.Skip("AppArmor is missing: the kernel has it not, or off")
	}
}

// profiled is a container that asks for a profile.
func profiled(kind criv1.SecurityProfile_ProfileType, ref string) func(*criv1.ContainerConfig) {
	return func(c *criv1.ContainerConfig) {
		security(c).Apparmor = &criv1.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
}

// mighty has every capability there is.
func mighty(c *criv1.ContainerConfig) {
	security(c).Capabilities = &criv1.Capability{AddCapabilities: []string{"ALL"}}
}

func privilegedContainer(c *criv1.ContainerConfig) { security(c).Privileged = true }

func both(changes ...func(*criv1.ContainerConfig)) func(*criv1.ContainerConfig) {
	return func(c *criv1.ContainerConfig) {
		for _, change := range changes {
			change(c)
		}
	}
}

// parse runs the parser on a profile: "--replace" loads it, "--remove" takes it away.
func parse(t *testing.T, how, text string) {
	t.Helper()
	cmd := exec.Command("apparmor_parser", "--skip-cache", how)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("apparmor_parser %s: %v: %s", how, err, out)
	}
}

// loaded loads a profile for the test.
func loaded(t *testing.T, name, rules string) {
	t.Helper()
	text := fmt.Sprintf("abi <abi/3.0>,\nprofile %s flags=(attach_disconnected) {\n%s\n}\n", name, rules)
	parse(t, "--replace", text)
	t.Cleanup(func() {
		cmd := exec.Command("apparmor_parser", "--remove")
		cmd.Stdin = strings.NewReader(text)
		cmd.Run() // a test may have removed it
	})
}

const readLabel = "cat /proc/self/attr/apparmor/current"

// profile is what confines a new command of the container.
func (c *container) profile() string {
	c.p.t.Helper()
	return strings.TrimSpace(c.exec("sh", "-c", readLabel))
}

// deeds are what AppArmor keeps a container from, whatever else it may: shell commands that succeed where it does not.
var deeds = map[string]string{
	"mount":                    "mkdir -p /m && mount -t tmpfs none /m",
	"bind over /etc":           "mount -o bind /tmp /etc",
	"unmount a mask":           "umount /proc/keys",
	"remount /sys":             "mount -o remount,rw /sys",
	"set a name in kernel":     "echo other >/proc/sys/kernel/domainname",
	"set the memory's limits":  "v=$(cat /proc/sys/vm/swappiness) && echo $v >/proc/sys/vm/swappiness",
	"route interrupts":         "v=$(cat /proc/irq/default_smp_affinity) && echo $v >/proc/irq/default_smp_affinity",
	"reach for the sysrq keys": "echo h >/proc/sysrq-trigger",
	"read the kernel's memory": "head -c 1 /proc/kcore >/dev/null",
	"name an interface":        "echo alias >/sys/class/net/lo/ifalias",
	"read firmware":            "ls /sys/firmware/",
	"read the node's policy":   "mount -t securityfs none /sys/kernel/security; ls /sys/kernel/security/apparmor",
}

// harmless is what the profile leaves alone.
var harmless = map[string]string{
	"write files":             "echo x >/tmp/x && mkdir /tmp/d && ln -s x /tmp/l && rm -r /tmp/x",
	"write to own processes":  "echo 500 >/proc/self/oom_score_adj && echo x >/proc/self/comm",
	"run programs":            "cp /bin/sh /tmp/sh && /tmp/sh -c true",
	"signal within the group": "sleep 100 & kill -TERM $!",
	"System V shared memory":  "v=$(cat /proc/sys/kernel/shmmni) && echo $v >/proc/sys/kernel/shmmni",
	"bind a port":             "nc -l -p 80 & sleep 0.3; kill $!",
	"a tmpfs of its own":      "echo x >/dev/shm/x",
}

func try(table map[string]string) []string {
	var script strings.Builder
	for _, name := range slices.Sorted(maps.Keys(table)) {
		fmt.Fprintf(&script, "if ( %s ) >/dev/null 2>&1; then echo %q; else echo %q; fi\n", table[name], name+" done", name+" refused")
	}
	return []string{"sh", "-c", script.String()}
}

// TestAppArmorDefaultProfileRefuses runs the same deeds with the same rights, under the default profile and under none.
func TestAppArmorDefaultProfileRefuses(t *testing.T) {
	needAppArmor(t)
	n := onNode(t)
	masked := func(c *criv1.ContainerConfig) { security(c).MaskedPaths = []string{"/proc/keys"} }
	plain, privileged := n.pod(t, ownNetwork), n.pod(t, ownNetwork, privilegedPod)
	free := results(plain.output(both(mighty, masked, profiled(criv1.SecurityProfile_Unconfined, "")), try(deeds)...))
	held := results(plain.output(both(mighty, masked, profiled(criv1.SecurityProfile_RuntimeDefault, "")), try(deeds)...))
	// Privileged, /sys can be written and no path is masked, so that nothing but the profile refuses.
	freeAll := results(privileged.output(privilegedContainer, try(deeds)...))
	heldAll := results(privileged.output(both(privilegedContainer, profiled(criv1.SecurityProfile_Localhost, defaultProfile)), try(deeds)...))
	for _, name := range slices.Sorted(maps.Keys(deeds)) {
		t.Logf("%-26s all capabilities: %-8s RuntimeDefault: %-8s privileged: %-8s with the profile: %s", name, free[name], held[name], freeAll[name], heldAll[name])
		if held[name] != "refused" || heldAll[name] != "refused" {
			t.Errorf("%s under %s: got %q, privileged %q, want it refused", name, defaultProfile, held[name], heldAll[name])
		}
		if free[name] != "done" && freeAll[name] != "done" && !(name == "unmount a mask" && free[name] == "done") {
			t.Errorf("%s without a profile: got %q, privileged %q: the test shows nothing", name, free[name], freeAll[name])
		}
	}
	allowed := results(plain.output(profiled(criv1.SecurityProfile_RuntimeDefault, ""), try(harmless)...))
	for name := range harmless {
		if allowed[name] != "done" {
			t.Errorf("%s under %s: got %q, want it done", name, defaultProfile, allowed[name])
		}
	}
}

// TestAppArmorSeparatesProfiles: in a pod with shared processes, who is confined neither traces nor signals who is not so.
func TestAppArmorSeparatesProfiles(t *testing.T) {
	needAppArmor(t)
	p := onNode(t).pod(t, ownNetwork, podPID)
	find := "pid=$(for d in /proc/[0-9]*; do tr '\\0' ' ' <$d/cmdline | grep -q '^sleep 4242 ' && echo ${d#/proc/}; done); "
	victim := p.start(profiled(criv1.SecurityProfile_Unconfined, ""), "sleep", "4242")
	deeds := find + "probe trace $pid; kill -CONT $pid && echo signalled"
	for _, c := range []struct {
		change func(*criv1.ContainerConfig)
		want   string
	}{
		{profiled(criv1.SecurityProfile_RuntimeDefault, ""), "refused permission denied\n"},
		{profiled(criv1.SecurityProfile_Unconfined, ""), "traced\nsignalled\n"},
	} {
		from := p.sleeper(both(mighty, c.change))
		resp, err := from.tryExec(30, "sh", "-c", deeds)
		if err != nil || string(resp.GetStdout()) != c.want {
			t.Errorf("from %s: got %q %q, %v, want %q", from.profile(), resp.GetStdout(), resp.GetStderr(), err, c.want)
		}
		// The pod's PID 1 is podwright's.
		if got := from.exec("cat", "/proc/1/attr/apparmor/current"); strings.TrimSpace(got) != defaultProfile+" (enforce)" {
			t.Errorf("the pod's PID 1: got %q", got)
		}
	}
	// Containers under one profile are among themselves.
	one, two := p.start(profiled(criv1.SecurityProfile_RuntimeDefault, ""), "sleep", "4343"), p.sleeper(both(mighty, profiled(criv1.SecurityProfile_RuntimeDefault, "")))
	if got := two.exec("sh", "-c", strings.ReplaceAll(deeds, "4242", "4343")); got != "traced\nsignalled\n" {
		t.Errorf("under the same profile: got %q", got)
	}
	one.stop(0)
	victim.stop(0)
}

// TestAppArmorProfileOfEveryKind: whoever says nothing gets the default, the privileged get none, and init's ways into a
// container, as a user, without new privileges, in a user namespace, all come to the profile.
func TestAppArmorProfileOfEveryKind(t *testing.T) {
	needAppArmor(t)
	n := onNode(t)
	loaded(t, "podwright-test-open", "file, network, capability, signal, ptrace, mount,")
	const enforced, open, none = defaultProfile + " (enforce)", "podwright-test-open (enforce)", "unconfined"
	old := func(text string) func(*criv1.ContainerConfig) {
		return func(c *criv1.ContainerConfig) { security(c).ApparmorProfile = text }
	}
	for _, c := range []struct {
		name string
		pod  []func(*criv1.PodSandboxConfig)
		make func(*criv1.ContainerConfig)
		want string
	}{
		{"nothing said", nil, nil, enforced},
		{"RuntimeDefault", nil, profiled(criv1.SecurityProfile_RuntimeDefault, ""), enforced},
		{"RuntimeDefault, by the old field", nil, old("runtime/default"), enforced},
		{"a user without privileges", []func(*criv1.PodSandboxConfig){ownNetwork}, restricted, enforced},
		{"filtered", nil, kubeletLike, enforced},
		{"processes shared in the pod", []func(*criv1.PodSandboxConfig){podPID}, restricted, enforced},
		{"the node's processes", []func(*criv1.PodSandboxConfig){hostPID}, kubeletLike, enforced},
		{"user namespace", []func(*criv1.PodSandboxConfig){ownUser}, restricted, enforced},
		{"a terminal", nil, func(c *criv1.ContainerConfig) { c.Tty = true }, enforced},
		{"Unconfined", nil, profiled(criv1.SecurityProfile_Unconfined, ""), none},
		{"Unconfined, by the old field", nil, old("unconfined"), none},
		{"Localhost", nil, profiled(criv1.SecurityProfile_Localhost, "podwright-test-open"), open},
		{"Localhost with the old field's prefix", nil, profiled(criv1.SecurityProfile_Localhost, "localhost/podwright-test-open"), open},
		{"Localhost, by the old field", nil, old("localhost/podwright-test-open"), open},
		{"the new field wins", nil, both(old("localhost/missing"), profiled(criv1.SecurityProfile_Localhost, "podwright-test-open")), open},
		{"privileged", []func(*criv1.PodSandboxConfig){privilegedPod}, privilegedContainer, none},
		{"privileged, RuntimeDefault", []func(*criv1.PodSandboxConfig){privilegedPod}, both(privilegedContainer, profiled(criv1.SecurityProfile_RuntimeDefault, "")), none},
		{"privileged with a profile", []func(*criv1.PodSandboxConfig){privilegedPod}, both(privilegedContainer, profiled(criv1.SecurityProfile_Localhost, "podwright-test-open")), open},
	} {
		t.Run(c.name, func(t *testing.T) {
			main := n.pod(t, c.pod...).sleeper(c.make)
			if got := main.label(); got != c.want {
				t.Errorf("the container: got %q, want %q", got, c.want)
			}
			if got := main.profile(); got != c.want {
				t.Errorf("a command in it: got %q, want %q", got, c.want)
			}
			r, confirmed := main.explained()
			shown := false
			for _, f := range r.Findings {
				shown = shown || f.Aspect == "security label" && f.Enforced == c.want
			}
			if list := differing(r); !confirmed || !shown {
				t.Errorf("explain: differences %q, label shown: %v", list, shown)
			}
			main.stop(1)
			if code := main.status().GetExitCode(); code != 137 && code != 143 {
				t.Errorf("stopped: exit code %d", code)
			}
		})
	}
}

// TestAppArmorLocalhostProfile holds a workload to a profile of the node's, with its output, and says clearly what is missing.
func TestAppArmorLocalhostProfile(t *testing.T) {
	needAppArmor(t)
	p := onNode(t).pod(t)
	const name = "podwright-test-deny-write"
	loaded(t, name, "file,\nsignal,\ndeny /** w,")
	confined := profiled(criv1.SecurityProfile_Localhost, name)
	c := p.start(confined, "sh", "-c", "echo begun; touch /tmp/x; echo code $?")
	if code := c.wait(30 * time.Second).GetExitCode(); code != 0 {
		t.Errorf("got exit code %d", code)
	}
	// The streams are the daemon's files, which the profile forbids to write: they must work all the same.
	if out, said := c.stream("stdout"), c.stream("stderr"); out != "begun\ncode 1\n" || !strings.Contains(said, "Permission denied") {
		t.Errorf("got %q and %q, want a refused write", out, said)
	}
	running, created := p.sleeper(confined), p.create(confined, "true")
	resp, err := running.tryExec(30, "touch", "/tmp/x")
	if err != nil || resp.GetExitCode() == 0 || !strings.Contains(string(resp.GetStderr()), "Permission denied") {
		t.Errorf("exec: got code %d, %q, %v", resp.GetExitCode(), resp.GetStderr(), err)
	}

	_, err = p.tryCreate(p.containerConfig(profiled(criv1.SecurityProfile_Localhost, "no-such-profile"), "true"))
	wantError(t, err, codes.InvalidArgument, "apparmor.localhost_ref", `"no-such-profile"`, "not loaded")
	_, err = p.tryCreate(p.containerConfig(func(c *criv1.ContainerConfig) { security(c).ApparmorProfile = "localhost/no-such-profile" }, "true"))
	wantError(t, err, codes.InvalidArgument, `"no-such-profile"`, "not loaded")
	for _, ref := range []string{"", "unconfined", "two\nlines"} {
		_, err = p.tryCreate(p.containerConfig(profiled(criv1.SecurityProfile_Localhost, ref), "true"))
		wantError(t, err, codes.InvalidArgument, "apparmor.localhost_ref")
	}

	// Somebody takes the profile away.
	parse(t, "--remove", "profile "+name+" {}")
	wantError(t, created.tryStart(), codes.FailedPrecondition, name, "not loaded any more")
	if s := created.status(); s.GetReason() != "StartError" || !strings.Contains(s.GetMessage(), name) {
		t.Errorf("the failed start: got %q %q", s.GetReason(), s.GetMessage())
	}
	if _, err := running.tryExec(30, "true"); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("exec without the profile: got %v, want an error that names it", err)
	}
	if r, confirmed := running.explained(); confirmed || len(differing(r)) != 1 || !strings.Contains(differing(r)[0], "security label") {
		t.Errorf("explain: got differences %q, want that of the label", differing(r))
	}
	running.stop(0)
}

func policyRevision(t *testing.T) string {
	t.Helper()
	f, err := os.Open("/sys/kernel/security/apparmor/revision")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buffer := make([]byte, 64)
	count, err := f.Read(buffer) // a second read waits for the next change
	if err != nil {
		t.Fatal(err)
	}
	return string(buffer[:count])
}

// TestAppArmorDefaultProfileIsThere: a start loads the profile where it is missing or another one, and leaves it alone where it
// is not; whoever needs it brings it back.
func TestAppArmorDefaultProfileIsThere(t *testing.T) {
	needAppArmor(t)
	n := ownNode(t, options{})
	p := n.pod(t)
	if got := p.sleeper(nil).profile(); got != defaultProfile+" (enforce)" {
		t.Fatalf("got %q", got)
	}
	before := policyRevision(t)
	n.restart(t, os.Interrupt, func() {})
	if after := policyRevision(t); after != before {
		t.Errorf("a restart loaded the same profile again: revision %s, then %s", before, after)
	}
	parse(t, "--remove", "profile "+defaultProfile+" {}")
	if got := p.sleeper(nil).profile(); got != defaultProfile+" (enforce)" {
		t.Errorf("after its removal: got %q", got)
	}
	parse(t, "--replace", "abi <abi/3.0>,\nprofile "+defaultProfile+" flags=(complain) { file, }")
	if got := p.sleeper(nil).profile(); got != defaultProfile+" (enforce)" {
		t.Errorf("after it was made to complain only: got %q", got)
	}
	parse(t, "--replace", "abi <abi/3.0>,\nprofile "+defaultProfile+" { file, capability, network, signal, mount, }")
	n.restart(t, os.Interrupt, func() {})
	if got := results(p.output(mighty, try(deeds)...)); got["mount"] != "refused" {
		t.Errorf("after another profile of that name and a restart: mount is %q", got["mount"])
	}
}

// TestAppArmorSettings: the default profile can be another one or none, and the containers that say nothing can be left alone.
func TestAppArmorSettings(t *testing.T) {
	needAppArmor(t)
	loaded(t, "podwright-test-open", "file, network, capability, signal, ptrace, mount,")
	for _, c := range []struct{ name, settings, unset, runtimeDefault string }{
		{"another profile", "apparmor_default_profile = \"podwright-test-open\"\n", "podwright-test-open (enforce)", "podwright-test-open (enforce)"},
		{"left alone", "apparmor_when_unset = \"Unconfined\"\n", "unconfined", defaultProfile + " (enforce)"},
		{"none", "apparmor_default_profile = \"\"\n", "unconfined", "apparmor_default_profile"},
		{"one that is missing", "apparmor_default_profile = \"no-such-profile\"\n", "unconfined", "\"no-such-profile\": the profile is not loaded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := ownNode(t, options{runtime: c.settings}).pod(t, podPID)
			main := p.sleeper(nil)
			if got := main.profile(); got != c.unset {
				t.Errorf("nothing said: got %q, want %q", got, c.unset)
			}
			notes := strings.Join(main.info().Notes, "\n")
			if refused := !strings.Contains(c.runtimeDefault, "(enforce)"); refused != strings.Contains(notes, "AppArmor does not confine this container") {
				t.Errorf("nothing said: got notes %q", notes)
			}
			id, err := p.tryCreate(p.containerConfig(profiled(criv1.SecurityProfile_RuntimeDefault, ""), "sleep", "1000"))
			if !strings.Contains(c.runtimeDefault, "(enforce)") {
				wantError(t, err, codes.FailedPrecondition, "apparmor.profile_type", "RuntimeDefault", c.runtimeDefault)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			asked := &container{p: p, id: id}
			if err := asked.tryStart(); err != nil {
				t.Fatal(err)
			}
			if got := asked.profile(); got != c.runtimeDefault {
				t.Errorf("RuntimeDefault: got %q, want %q", got, c.runtimeDefault)
			}
		})
	}
}
