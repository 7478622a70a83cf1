// Package manifests_test parses every file that operators are given: what is shipped is what the parsers of this
// repository, of CNI and of the kubelet's API take.
package manifests_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/coreos/go-systemd/v22/unit"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"

	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/systemd"
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestSamplesAreCRIMessages(t *testing.T) {
	for name, message := range map[string]proto.Message{"pod.json": &criv1.PodSandboxConfig{}, "container.json": &criv1.ContainerConfig{}} {
		if err := protojson.Unmarshal(read(t, name), message); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCNIExampleIsAConfigurationList(t *testing.T) {
	list, err := libcni.ConfListFromBytes(read(t, "10-podwright-bridge.conflist"))
	if err != nil || len(list.Plugins) != 2 {
		t.Fatalf("got %v, %v, want a list of two plugins", list, err)
	}
}

// unitOptions parses a unit file; of a key that is there twice the last one counts.
func unitOptions(t *testing.T, name string) map[string]string {
	t.Helper()
	options, err := unit.DeserializeOptions(bytes.NewReader(read(t, name)))
	if err != nil || len(options) == 0 {
		t.Fatalf("%s: got %d options, %v", name, len(options), err)
	}
	list := map[string]string{}
	for _, o := range options {
		list[o.Section+"."+o.Name] = o.Value
	}
	return list
}

func TestUnitsKeepContainersRunning(t *testing.T) {
	want := map[string]map[string]string{
		"podwright.service": {
			"Service.Type": "notify", "Service.KillMode": "process", "Service.Delegate": "yes", "Service.ExecStart": "/usr/local/bin/podwright serve",
			"Service.OOMScoreAdjust": "-999", "Service.OOMPolicy": "continue", "Service.Restart": "always", "Service.WatchdogSec": "60s",
			"Service.Slice": "podwright.slice", "Unit.Wants": systemd.KeeperUnit + " " + systemd.PodsTarget, "Unit.Before": "kubelet.service",
		},
		"podwright-keeper.service": {
			"Service.Type": "forking", "Service.KillMode": "process", "Service.ExecStart": "/usr/local/bin/podwright keeper start", "Service.Restart": "no",
			"Service.OOMScoreAdjust": "-999", "Service.OOMPolicy": "continue", "Service.Slice": "podwright-keeper.slice", "Unit.RefuseManualStop": "yes",
		},
		"podwright.slice": {}, "podwright-keeper.slice": {}, cgroup.DefaultSliceParent: {"Unit.StopWhenUnneeded": "yes"}, systemd.PodsTarget: {},
	}
	for name, options := range want {
		got := unitOptions(t, name)
		for key, value := range options {
			if got[key] != value {
				t.Errorf("%s: %s is %q, want %q", name, key, got[key], value)
			}
		}
	}
	// They are started before the daemon and stopped after it.
	after := strings.Fields(unitOptions(t, "podwright.service")["Unit.After"])
	for _, name := range []string{systemd.KeeperUnit, systemd.PodsTarget} {
		if !slices.Contains(after, name) {
			t.Errorf("podwright.service is not after %s: %q", name, after)
		}
	}
	// Limits that workloads inherit are the same whoever started the keeper.
	daemon, keeper := unitOptions(t, "podwright.service"), unitOptions(t, "podwright-keeper.service")
	for key, value := range daemon {
		if strings.HasPrefix(key, "Service.Limit") && keeper[key] != value {
			t.Errorf("%s is %q for the daemon and %q for the keeper", key, value, keeper[key])
		}
	}
}

// systemd's own parser finds what it would ignore with a warning. The programs that units start are not installed here.
func TestUnitsAreWhatSystemdTakes(t *testing.T) {
	program, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze here; the guest of make vm-test has it")
	}
	dir := t.TempDir()
	files, err := filepath.Glob("podwright*.[st]*")
	if err != nil || len(files) != 6 {
		t.Fatalf("found %v, %v, want six units", files, err)
	}
	var units []string
	for _, name := range files {
		text := bytes.ReplaceAll(read(t, name), []byte("/usr/local/bin/podwright"), []byte("/bin/true"))
		units = append(units, filepath.Join(dir, name))
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(program, append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
	if err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func TestClientsAreGivenTheDefaultSocket(t *testing.T) {
	const socket = "unix:///run/podwright/podwright.sock"
	for _, name := range []string{"crictl.yaml", "kubelet-podwright.yaml"} {
		if !bytes.Contains(read(t, name), []byte(socket)) {
			t.Errorf("%s does not name %s", name, socket)
		}
	}
}

// A field that the kubelet does not know would make it refuse the whole file.
func TestKubeletSnippetIsAConfiguration(t *testing.T) {
	var config kubeletv1beta1.KubeletConfiguration
	if err := yaml.UnmarshalStrict(read(t, "kubelet-podwright.yaml"), &config); err != nil {
		t.Fatal(err)
	}
	if config.APIVersion != kubeletv1beta1.SchemeGroupVersion.String() || config.Kind != "KubeletConfiguration" || !config.FeatureGates["PodAndContainerStatsFromCRI"] {
		t.Errorf("got %s %s with gates %v, want a KubeletConfiguration that has statistics come from the runtime", config.APIVersion, config.Kind, config.FeatureGates)
	}
}

// crictl ends on a key that it does not know.
func TestCrictlConfigurationHasKnownKeysOnly(t *testing.T) {
	var config struct {
		RuntimeEndpoint string `json:"runtime-endpoint"`
		ImageEndpoint   string `json:"image-endpoint"`
		Timeout         int    `json:"timeout"`
	}
	if err := yaml.UnmarshalStrict(read(t, "crictl.yaml"), &config); err != nil || config.Timeout < 2 || config.RuntimeEndpoint != config.ImageEndpoint {
		t.Errorf("got %+v, %v", config, err)
	}
}

func TestEveryJSONFileIsJSON(t *testing.T) {
	files, err := filepath.Glob("*.json*")
	if err != nil || len(files) == 0 {
		t.Fatalf("found %v, %v", files, err)
	}
	for _, name := range files {
		if !json.Valid(read(t, name)) {
			t.Errorf("%s is no JSON", name)
		}
	}
}
