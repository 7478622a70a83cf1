package node

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// crictlVariable is where the guard found crictl: building it may need a network, and the node has none.
const crictlVariable = "PODWRIGHT_NODE_CRICTL"

// findCrictl builds crictl where it isn't there yet.
func findCrictl() (string, error) {
	out, err := exec.Command("../tools/get", "crictl").Output()
	return strings.TrimSpace(string(out)), err
}

// crictl runs one of its subcommands against the node.
type crictl struct {
	t *testing.T
	n *node
}

func (c crictl) run(args ...string) string {
	c.t.Helper()
	socket := "unix://" + c.n.socket()
	cmd := exec.Command(os.Getenv(crictlVariable), append([]string{"--runtime-endpoint", socket, "--image-endpoint", socket, "--timeout", "30s"}, args...)...)
	var notes bytes.Buffer // what it logs
	cmd.Stderr = &notes
	out, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("crictl %s: %v\n%s%s", strings.Join(args, " "), err, out, &notes)
	}
	return string(out)
}

// has runs a subcommand and looks for words in its output.
func (c crictl) has(words []string, args ...string) string {
	c.t.Helper()
	out := c.run(args...)
	for _, word := range words {
		if !strings.Contains(out, word) {
			c.t.Errorf("crictl %s: got %q, want %q in it", strings.Join(args, " "), out, word)
		}
	}
	return out
}

// lastLine of what crictl prints is the id, where it prints one.
func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// Every subcommand that a person types in a pod's life.
func TestCrictl(t *testing.T) {
	if os.Getenv(crictlVariable) == "" && os.Getenv(roleVariable) != "" {
		t.Skip("crictl is missing: test/e2e/tools/get crictl says why")
	}
	n := onNode(t)
	c := crictl{t, n}
	dir := t.TempDir()
	image := pushUnique(t, "node/by-hand:1", "by hand")
	c.has([]string{"podwright", "v1"}, "version")
	c.has([]string{`"type": "RuntimeReady"`, `"status": true`, "config"}, "info")
	c.has([]string{"sha256:"}, "pull", image)
	c.has([]string{"node/by-hand", "1"}, "images")

	podFile, containerFile := filepath.Join(dir, "pod.json"), filepath.Join(dir, "container.json")
	write(t, podFile, fmt.Sprintf(`{ "metadata": { "name": "by-hand", "namespace": "e2e", "uid": "by-hand" }, "hostname": "by-hand", "log_directory": "%s",
  "linux": { "security_context": { "namespace_options": { "pid": 1 } } } }`, dir))
	write(t, containerFile, fmt.Sprintf(`{ "metadata": { "name": "main" }, "image": { "image": "%s" }, "log_path": "main.log",
  "command": [ "sh", "-c", "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.05; done" ], "linux": {} }`, image))
	pod := lastLine(c.run("runp", podFile))
	t.Cleanup(func() { n.removePod(t, pod) }) // it is gone by then, unless something failed
	c.has([]string{pod[:13], "Ready", "by-hand"}, "pods")
	c.has([]string{pod, "SANDBOX_READY", "netns"}, "inspectp", pod[:13])
	container := lastLine(c.run("create", pod, containerFile, podFile))
	c.has([]string{container}, "start", container)
	c.has([]string{container[:13], "Running", "main"}, "ps")
	c.has([]string{"by-hand"}, "exec", "-s", container, "hostname")
	eventually(t, 10*time.Second, "hello", func() bool { return strings.Contains(c.run("logs", container), "hello") })
	checkInspect(t, c.run("inspect", container), container, pod)
	c.has([]string{container[:13]}, "stop", "--timeout", "10", container[:13])
	c.has([]string{"hello\nbye\n"}, "logs", container)
	c.has([]string{container[:13], "Exited"}, "ps", "-a")
	c.has([]string{container}, "rm", container)
	c.has([]string{pod}, "stopp", pod)
	c.has([]string{pod}, "rmp", pod)
	c.has([]string{"node/by-hand:1"}, "rmi", image)
	if out := c.run("images"); strings.Contains(out, "by-hand") {
		t.Errorf("crictl images after rmi: got %q", out)
	}
	if out := c.run("pods"); strings.Contains(out, "by-hand") {
		t.Errorf("crictl pods after rmp: got %q", out)
	}
}

// checkInspect: verbose inspect carries pid, sandboxID, config, runtimeSpec and the plan.
func checkInspect(t *testing.T, text, container, pod string) {
	t.Helper()
	var inspected struct {
		Status struct {
			ID, State string
		}
		Info struct {
			PID         int
			SandboxID   string
			Config      struct{ Metadata struct{ Name string } }
			RuntimeSpec struct {
				OCIVersion string `json:"ociVersion"`
				Process    struct{ Args []string }
			}
			Plan json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(text), &inspected); err != nil {
		t.Fatalf("crictl inspect: %v\n%s", err, text)
	}
	info := inspected.Info
	if inspected.Status.ID != container || inspected.Status.State != "CONTAINER_RUNNING" || info.SandboxID != pod || info.Config.Metadata.Name != "main" ||
		info.RuntimeSpec.OCIVersion == "" || len(info.RuntimeSpec.Process.Args) != 3 {
		t.Errorf("crictl inspect: got %+v", inspected)
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", info.PID))
	if err != nil || string(comm) != "sh\n" {
		t.Errorf("inspect's pid %d is %q, %v, want the workload", info.PID, comm, err)
	}
	for _, step := range []string{"pivot", "exec", "proc"} {
		if !strings.Contains(string(info.Plan), step) {
			t.Errorf("inspect's plan: got %s, want %q in it", info.Plan, step)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
