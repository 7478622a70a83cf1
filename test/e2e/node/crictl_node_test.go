package node

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// fails runs a subcommand that is refused, and looks for words in what it says.
func (c crictl) fails(words []string, args ...string) {
	c.t.Helper()
	socket := "unix://" + c.n.socket()
	out, err := exec.Command(os.Getenv(crictlVariable), append([]string{"--runtime-endpoint", socket, "--image-endpoint", socket, "--timeout", "30s"}, args...)...).CombinedOutput()
	if err == nil {
		c.t.Errorf("crictl %s: got success: %s", strings.Join(args, " "), out)
	}
	for _, word := range words {
		if !strings.Contains(string(out), word) {
			c.t.Errorf("crictl %s: got %q, want %q in it", strings.Join(args, " "), out, word)
		}
	}
}

// What a person types to look at a node and its images, and the shorthand for a whole pod.
func TestCrictlOfANode(t *testing.T) {
	if os.Getenv(crictlVariable) == "" && os.Getenv(roleVariable) != "" {
		t.Skip("crictl is missing: test/e2e/tools/get crictl says why")
	}
	n := ownNode(t, options{})
	c := crictl{t, n}
	c.has([]string{"cgroup driver", "CGROUPFS"}, "runtime-config")
	c.has(nil, "update-runtime-config", "--pod-cidr", "10.88.0.0/24")
	c.has(nil, "update-runtime-config", "--pod-cidr", "")
	c.fails([]string{"pod CIDR", "10.88.0.0/240"}, "update-runtime-config", "--pod-cidr", "10.88.0.0/240")
	n.watch(t) // not before: the node keeps its pod CIDR
	image := pushUnique(t, "node/looked-at:1", "looked at")
	_, id, _ := strings.Cut(lastLine(c.run("pull", image)), " for ")
	c.has([]string{"sha256:"}, "images", "-q")
	c.has([]string{"looked-at"}, "images", "--digests", image)
	checkInspecti(t, c.run("inspecti", image), image)
	c.fails([]string{"no such image"}, "inspecti", "example.org/absent:1")
	// It is counted some time after a pull, not while somebody waits.
	eventually(t, 10*time.Second, "count of what images take", func() bool {
		return !strings.Contains(strings.Join(strings.Fields(c.run("imagefsinfo", "-o", "json")), ""), `"usedBytes":{"value":"0"}`)
	})
	checkImageFS(t, n, c.run("imagefsinfo", "-o", "json"))
	c.has([]string{n.path("state")}, "imagefsinfo", "-o", "table")
	c.has([]string{"RuntimeReady", "NetworkReady", "recursive_read_only_mounts"}, "info", "-o", "json")

	dir := t.TempDir()
	podFile, containerFile := filepath.Join(dir, "pod.json"), filepath.Join(dir, "container.json")
	write(t, podFile, fmt.Sprintf(`{ "metadata": { "name": "short", "namespace": "e2e", "uid": "short" }, "labels": { "app": "short" }, "log_directory": "%s", "linux": {} }`, dir))
	write(t, containerFile, fmt.Sprintf(`{ "metadata": { "name": "main" }, "image": { "image": "%s" }, "log_path": "main.log", "command": [ "sleep", "1000" ], "linux": {} }`, image))
	container := lastLine(c.run("run", containerFile, podFile))
	pod := strings.TrimSpace(c.run("pods", "-q", "--no-trunc", "--label", "app=short"))
	t.Cleanup(func() { n.removePod(t, pod) }) // it is gone by then, unless something failed
	c.has([]string{container}, "ps", "-q", "--no-trunc", "--pod", pod, "--state", "Running", "--name", "main")
	c.has([]string{container[:13]}, "ps", "--image", image)
	c.has([]string{"short"}, "pods", "--namespace", "e2e", "--name", "short", "--state", "ready")
	c.has([]string{`"runSteps"`, "attach network"}, "inspectp", pod)
	c.has([]string{`"startSteps"`, "start process"}, "inspect", "--output", "json", container)
	c.has([]string{"CONTAINER_RUNNING"}, "inspect", "--output", "go-template", "--template", "{{.status.state}}", container)
	c.fails([]string{"nimplemented"}, "checkpoint", "--export", filepath.Join(dir, "checkpoint.tar"), container)
	c.fails([]string{"NotFound"}, "inspect", strings.Repeat("ab", 32))
	c.has([]string{pod}, "rmp", "-f", pod)
	if left := c.run("ps", "-a", "-q") + c.run("pods", "-q"); strings.TrimSpace(left) != "" {
		t.Errorf("after rmp -f: got %q, want neither pods nor containers", left)
	}
	c.has([]string{"looked-at"}, "rmi", id)
	c.has(nil, "rmi", "--prune")
}

func checkInspecti(t *testing.T, text, image string) {
	t.Helper()
	var got struct {
		Status struct {
			ID       string
			RepoTags []string
			Size     string
		}
		Info map[string]any
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil || !strings.HasPrefix(got.Status.ID, "sha256:") || len(got.Status.RepoTags) != 1 || got.Status.RepoTags[0] != image ||
		got.Status.Size == "" || got.Status.Size == "0" || got.Info["digest"] == nil {
		t.Errorf("crictl inspecti: got %s, %v, want id, tag, size and the verbose digest", text, err)
	}
}

func checkImageFS(t *testing.T, n *node, text string) {
	t.Helper()
	var got struct {
		Status struct {
			ImageFilesystems []struct {
				Timestamp string
				FsID      struct{ Mountpoint string }
				UsedBytes struct{ Value string }
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil || len(got.Status.ImageFilesystems) != 1 {
		t.Fatalf("crictl imagefsinfo: %v\n%s", err, text)
	}
	fs := got.Status.ImageFilesystems[0]
	if !strings.HasPrefix(fs.FsID.Mountpoint, n.path("state")) || fs.UsedBytes.Value == "" || fs.UsedBytes.Value == "0" || fs.Timestamp == "" {
		t.Errorf("crictl imagefsinfo: got %+v, want the store's directory, bytes and time", fs)
	}
	if _, err := os.Stat(fs.FsID.Mountpoint); err != nil {
		t.Error(err)
	}
	if nanos, err := time.ParseDuration(fs.Timestamp + "ns"); err != nil || time.Since(time.Unix(0, int64(nanos))).Abs() > time.Minute {
		t.Errorf("crictl imagefsinfo: time %s, %v", fs.Timestamp, err)
	}
}

// Every subcommand that crictl has is typed in one of these tests, or there is a reason.
func TestEveryCrictlSubcommandIsTyped(t *testing.T) {
	if os.Getenv(crictlVariable) == "" && os.Getenv(roleVariable) != "" {
		t.Skip("crictl is missing: test/e2e/tools/get crictl says why")
	}
	needNode(t)
	reasons := map[string]string{
		"completion": "talks to no runtime", "config": "talks to no runtime", "help": "talks to no runtime",
	}
	files, err := filepath.Glob("*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("found %v, %v", files, err)
	}
	var sources strings.Builder
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sources.Write(raw)
	}
	help, err := exec.Command(os.Getenv(crictlVariable), "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(help), "COMMANDS:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	count := 0
	for line := range strings.Lines(list) {
		name := strings.Trim(strings.Fields(line)[0], ",")
		count++
		// As an argument of one of the helpers, or of the command itself.
		typed := regexp.MustCompile(`(\.run\(|\.has\(.*|\.fails\(.*|ctl\(|exec\.Command\(os\.Getenv\(crictlVariable\).*)"` + name + `"`)
		if !typed.MatchString(sources.String()) && reasons[name] == "" {
			t.Errorf("crictl %s is typed nowhere", name)
		}
	}
	if count < 30 {
		t.Errorf("found %d subcommands in %q, want what crictl has", count, help)
	}
}
