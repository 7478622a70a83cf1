// Package manifests_test parses every file that operators are given: what is shipped is what the parsers of this
// repository, of CNI and of the kubelet's API take.
package manifests_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"
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

func TestUnitKeepsContainersRunning(t *testing.T) {
	unit := string(read(t, "podwright.service"))
	for _, line := range []string{"Type=notify", "KillMode=process", "Delegate=yes", "ExecStart=/usr/local/bin/podwright serve", "OOMScoreAdjust=-999"} {
		if !strings.Contains(unit, "\n"+line+"\n") {
			t.Errorf("podwright.service lacks %s", line)
		}
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
