package node

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/isolation"
)

// explained is the report of a container, and whether podwright explain found nothing wrong.
func (c *container) explained(flags ...string) (isolation.Report, bool) {
	c.p.t.Helper()
	out, err := c.p.n.podwright(append([]string{"explain", "-o", "json", c.id}, flags...)...)
	var r isolation.Report
	if bad := json.NewDecoder(strings.NewReader(out)).Decode(&r); bad != nil {
		c.p.t.Fatalf("explain: %v\n%s", bad, out)
	}
	return r, err == nil
}

func differing(r isolation.Report) (list []string) {
	for _, f := range r.Findings {
		if f.Differs {
			list = append(list, fmt.Sprintf("%s: %s instead of %s", f.Aspect, f.Enforced, f.Asked))
		}
	}
	return list
}

// kubeletLike is what the kubelet sends for a container of a pod that asks for nothing.
func kubeletLike(c *criv1.ContainerConfig) {
	s := security(c)
	s.Seccomp = &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_RuntimeDefault}
	s.MaskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	s.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	*resources(c) = criv1.LinuxContainerResources{CpuShares: 102, CpuQuota: 20000, CpuPeriod: 100000, MemoryLimitInBytes: 64<<20 + 1, OomScoreAdj: 1000}
}

func restricted(c *criv1.ContainerConfig) {
	kubeletLike(c)
	s := security(c)
	s.NoNewPrivs, s.ReadonlyRootfs, s.RunAsUser = true, true, &criv1.Int64Value{Value: 1000}
	s.RunAsGroup, s.SupplementalGroups = &criv1.Int64Value{Value: 1000}, []int64{2000}
	s.Capabilities = &criv1.Capability{DropCapabilities: []string{"ALL"}}
}

// TestExplainConfirmsWhatHolds reads back the isolation of every kind of pod.
func TestExplainConfirmsWhatHolds(t *testing.T) {
	n := onNode(t)
	volume := t.TempDir()
	for _, c := range []struct {
		name string
		pod  []func(*criv1.PodSandboxConfig)
		make func(*criv1.ContainerConfig)
	}{
		{"plain", nil, kubeletLike}, {"restricted", []func(*criv1.PodSandboxConfig){ownNetwork}, restricted},
		{"processes shared in the pod", []func(*criv1.PodSandboxConfig){ownNetwork, podPID}, kubeletLike},
		{"the host's processes and IPC", []func(*criv1.PodSandboxConfig){hostPID, hostIPC}, kubeletLike},
		{"user namespace", []func(*criv1.PodSandboxConfig){ownUser}, restricted},
		{"privileged", []func(*criv1.PodSandboxConfig){privilegedPod}, func(c *criv1.ContainerConfig) { security(c).Privileged = true }},
		{"read-only volume", nil, func(c *criv1.ContainerConfig) {
			c.Mounts = []*criv1.Mount{{ContainerPath: "/v", HostPath: volume, Readonly: true, RecursiveReadOnly: true}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			main := n.pod(t, c.pod...).sleeper(c.make)
			r, confirmed := main.explained()
			if list := differing(r); !confirmed || len(list) > 0 || len(r.Findings) < 20 || r.PID != main.info().PID {
				t.Errorf("got %d findings of process %d, differences %q", len(r.Findings), r.PID, list)
			}
			// The filter itself, which stops the process for a moment.
			r, confirmed = main.explained("--read-filter")
			if want := "filter " + r.FilterDigest; !confirmed || r.FilterDigest != "" && finding(r, "seccomp").Enforced != want {
				t.Errorf("the filter is %q, want %q: %q", finding(r, "seccomp").Enforced, want, differing(r))
			}
			if r.FilterDigest == "" && finding(r, "seccomp") != (isolation.Finding{Aspect: "seccomp", Asked: "unconfined", Enforced: "unconfined"}) {
				t.Errorf("without a filter: got %+v", finding(r, "seccomp"))
			}
			if got := strings.TrimSpace(main.exec("echo", "still here")); got != "still here" {
				t.Errorf("afterwards: got %q", got)
			}
		})
	}
}

// finding is what a report says of one aspect.
func finding(r isolation.Report, aspect string) isolation.Finding {
	for _, f := range r.Findings {
		if f.Aspect == aspect {
			return f
		}
	}
	return isolation.Finding{Aspect: aspect, Asked: "absent"}
}

func TestExplainNamesWhosePIDNamespaceIsShared(t *testing.T) {
	n := onNode(t)
	p, sharing := n.pod(t), n.pod(t, podPID)
	target := p.sleeper(nil)
	for c, want := range map[*container]string{
		target: "its own", p.sleeper(joining(target.id)): "container " + target.id + "'s", sharing.sleeper(nil): "the sandbox's",
	} {
		r, confirmed := c.explained()
		if got := finding(r, "pid namespace"); !confirmed || got.Asked != want || got.Enforced != want {
			t.Errorf("got %+v, want %s", got, want)
		}
	}
}

// TestExplainNamesWhatIsBroken takes away from a running container what holds it.
func TestExplainNamesWhatIsBroken(t *testing.T) {
	n := onNode(t)
	c := n.pod(t).sleeper(kubeletLike)
	inside := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("nsenter", append([]string{"-m", "-t", fmt.Sprint(c.info().PID)}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	inside("umount", "/proc/keys")
	inside("umount", "/proc/sys")
	score := fmt.Sprintf("/proc/%d/oom_score_adj", c.info().PID)
	if err := os.WriteFile(score, []byte("999"), 0o644); err != nil {
		t.Fatal(err)
	}
	raiseMemoryLimit(t, c)
	r, confirmed := c.explained()
	var got []string
	for _, f := range r.Findings {
		if f.Differs {
			got = append(got, f.Aspect)
		}
	}
	want := []string{"oom_score_adj", "masked path /proc/keys", "read-only path /proc/sys", memoryLimitFile(t, c)}
	if confirmed || !slices.Equal(got, want) {
		t.Errorf("%q differ, want %q; exit code 0: %v", got, want, confirmed)
	}
	table, err := n.podwright("explain", c.id)
	if err == nil || strings.Count(table, "!!") != len(want) || !strings.Contains(table, "4 of ") {
		t.Errorf("the table: %v\n%s", err, table)
	}
	c.stop(0)
	if out, err := n.podwright("explain", c.id); err == nil || !strings.Contains(out, "only what runs can be looked at") {
		t.Errorf("a stopped container: got %q, %v", out, err)
	}
}

func memoryLimitFile(t *testing.T, c *container) string {
	t.Helper()
	if matches, _ := filepath.Glob("/sys/fs/cgroup/memory/memory.limit_in_bytes"); len(matches) > 0 {
		return "memory.limit_in_bytes"
	}
	return "memory.max"
}

func raiseMemoryLimit(t *testing.T, c *container) {
	t.Helper()
	root := "/sys/fs/cgroup"
	if memoryLimitFile(t, c) != "memory.max" {
		root += "/memory"
	}
	if err := os.WriteFile(filepath.Join(root, c.info().CgroupPath, memoryLimitFile(t, c)), []byte("134217728"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestCheckTellsWhatTheHostLacks runs podwright check where pods can run, and where they can't.
func TestCheckTellsWhatTheHostLacks(t *testing.T) {
	n := onNode(t)
	type checks struct {
		Checks []struct{ Name, State, Found, Do string }
	}
	look := func(change func(config string) string) (checks, error) {
		t.Helper()
		config, err := os.ReadFile(n.path("config.toml"))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(file, []byte(change(string(config))), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := n.podwright("--config", file, "check", "-o", "json")
		var c checks
		if bad := json.NewDecoder(strings.NewReader(out)).Decode(&c); bad != nil {
			t.Fatalf("check: %v\n%s", bad, out)
		}
		return c, err
	}
	state := func(c checks, name string) string {
		for _, k := range c.Checks {
			if k.Name == name {
				if (k.State != "ok") != (k.Do != "") {
					t.Errorf("%+v: what is not ok comes with what to do", k)
				}
				return k.State
			}
		}
		return "absent"
	}
	c, err := look(func(config string) string { return config })
	for _, name := range []string{"kernel", "namespaces", "control groups", "mounts", "seccomp", "programs", "pod network (CNI)", "user namespaces"} {
		if got := state(c, name); got != "ok" {
			t.Errorf("%s is %s on a node that runs pods", name, got)
		}
	}
	if err != nil {
		t.Error(err)
	}
	empty := t.TempDir()
	c, err = look(func(config string) string {
		return strings.NewReplacer(n.path("cni"), empty, "pids_limit = 64\n", "pids_limit = 64\ninit_binary = \"/nowhere\"\n").Replace(config)
	})
	if err == nil || state(c, "programs") != "missing" || state(c, "pod network (CNI)") != "limited" {
		t.Errorf("without init and network: %v, %+v", err, c)
	}
}

// faultyInit builds an init that leaves one step out, or does it wrong.
func faultyInit(t *testing.T, fault string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "podwright-init")
	build := exec.Command("go", "build", "-tags", "fault_"+fault, "-o", program, "github.com/podwright/podwright/cmd/podwright-init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

// A filter that is there and lets everything through is found by reading it back, and not by counting filters.
func TestReadFilterNoticesAnotherFilter(t *testing.T) {
	n := ownNode(t, options{runtime: fmt.Sprintf("init_binary = %q\n", faultyInit(t, "filter"))})
	c := n.pod(t).sleeper(kubeletLike)
	if r, confirmed := c.explained(); !confirmed || finding(r, "seccomp").Enforced != "a filter" {
		t.Errorf("without reading it: got %+v", finding(r, "seccomp"))
	}
	r, confirmed := c.explained("--read-filter")
	if f := finding(r, "seccomp"); confirmed || !f.Differs || f.Enforced == f.Asked || !strings.HasPrefix(f.Enforced, "filter sha256:") {
		t.Errorf("got %+v, want another filter's digest, marked", f)
	}
}

// Containers are counted by what holds for them, some seconds after their start.
func TestMetricCountsContainersThatAreIsolatedLess(t *testing.T) {
	address := freeAddress(t)
	n := ownNode(t, options{config: fmt.Sprintf("[metrics]\naddress = %q\nisolation_interval = \"2s\"\n", address)})
	p := n.pod(t)
	good, weak := p.sleeper(kubeletLike), p.sleeper(kubeletLike)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // or the daemon keeps a connection
	counts := func(confirmed, weaker int) func() bool {
		return func() bool {
			resp, err := client.Get("http://" + address + "/metrics")
			if err != nil {
				return false
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			return err == nil && strings.Contains(string(text), fmt.Sprintf("podwright_container_isolation{isolation=\"confirmed\"} %d\n", confirmed)) &&
				strings.Contains(string(text), fmt.Sprintf("podwright_container_isolation{isolation=\"weaker\"} %d\n", weaker))
		}
	}
	eventually(t, 60*time.Second, "count of two that are confirmed", counts(2, 0))
	raiseMemoryLimit(t, weak)
	eventually(t, 60*time.Second, "count of one that is weaker", counts(1, 1))
	if log := n.logTail(); !strings.Contains(log, "isolated less than was asked") || !strings.Contains(log, weak.id) || strings.Contains(log, "less than was asked\" containerID=\""+good.id) {
		t.Errorf("the log does not name %s: %s", weak.id, log)
	}
	weak.stop(0)
	eventually(t, 60*time.Second, "count without the one that ended", counts(1, 0))
}

// TestWeakIsolationIsRefused runs nodes whose init leaves one step out: explain names it, and with
// refuse_weak_isolation the container does not stay.
func TestWeakIsolationIsRefused(t *testing.T) {
	faults := map[string]string{
		"seccomp": "seccomp is unconfined, asked was filter sha256:", "mask": "masked path /proc/keys is visible",
		"rlimit": "RLIMIT_NOFILE is", "caps": "bounding capabilities is",
	}
	if hasLabels() {
		faults["wronglabel"] = "security label is system_u:system_r:spc_t:"
	}
	if hasAppArmor() {
		faults["label"] = "security label is unconfined, asked was podwright-default"
	}
	for fault, named := range faults {
		t.Run(fault, func(t *testing.T) {
			weak := faultyInit(t, fault)
			init := fmt.Sprintf("init_binary = %q\n[runtime.rlimits]\nnofile = { soft = 100, hard = 200 }\n", weak)
			n := ownNode(t, options{runtime: init})
			c := n.pod(t).sleeper(kubeletLike)
			r, confirmed := c.explained()
			if confirmed || !strings.Contains(strings.ReplaceAll(strings.Join(differing(r), ";"), ": ", " is "), strings.SplitN(named, ",", 2)[0]) {
				t.Errorf("differences %q, want one that says %q", differing(r), named)
			}
			c.stop(0)
			if err := n.halt(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			config, err := os.ReadFile(n.path("config.toml"))
			if err != nil {
				t.Fatal(err)
			}
			strict := strings.Replace(string(config), "init_binary", "refuse_weak_isolation = true\ninit_binary", 1)
			if err := os.WriteFile(n.path("config.toml"), []byte(strict), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := n.serve(); err != nil {
				t.Fatal(err)
			}
			refused := n.pod(t).create(kubeletLike, "sleep", "1000")
			if err := refused.tryStart(); err == nil || !strings.Contains(err.Error(), named) {
				t.Errorf("start: got %v, want an error with %q", err, named)
			}
			if s := refused.status(); s.GetState() != criv1.ContainerState_CONTAINER_EXITED || s.GetReason() != "StartError" || !strings.Contains(s.GetMessage(), named) {
				t.Errorf("got state %v, reason %q, message %q", s.GetState(), s.GetReason(), s.GetMessage())
			}
		})
	}
	n := ownNode(t, options{runtime: "refuse_weak_isolation = true\n"})
	if got := n.pod(t).output(restricted, "id", "-u"); strings.TrimSpace(got) != "1000" {
		t.Errorf("with everything in place: got %q", got)
	}
}
