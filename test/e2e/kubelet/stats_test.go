package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// podStats is what these tests look at of the kubelet's summary.
type podStats struct {
	PodRef struct{ Name string }
	CPU    struct {
		UsageNanoCores       *uint64
		UsageCoreNanoSeconds *uint64
	}
	Memory     struct{ WorkingSetBytes *uint64 }
	Network    *struct{ RxBytes, TxBytes *uint64 }
	Containers []struct {
		Name string
		CPU  struct {
			UsageNanoCores       *uint64
			UsageCoreNanoSeconds *uint64
		}
		Memory struct{ WorkingSetBytes, RSSBytes *uint64 }
		Rootfs struct{ UsedBytes *uint64 }
	}
}

// some says whether there is a figure, and that it is not zero.
func some(figures ...*uint64) bool {
	for _, f := range figures {
		if f == nil || *f == 0 {
			return false
		}
	}
	return true
}

// runningContainers names all of the steady pods as "pod/container".
func runningContainers(t *testing.T) []string {
	t.Helper()
	var names []string
	for name := range identities(t) {
		names = append(names, name)
	}
	if len(names) < len(steady) {
		t.Fatalf("got containers %v of pods %v", names, steady)
	}
	return names
}

func TestSummaryHasEveryContainerAndThePodsNetwork(t *testing.T) {
	mustRun(t, steady...)
	want := runningContainers(t)
	// Writable layers are counted, and use per second is a difference, so both come some time after the start.
	mustEventually(t, time.Minute, "complete statistics", func() error {
		var summary struct{ Pods []podStats }
		text, err := get("/stats/summary")
		if err == nil {
			err = json.Unmarshal([]byte(text), &summary)
		}
		if err != nil {
			return err
		}
		return complete(summary.Pods, want)
	})
}

func complete(pods []podStats, want []string) error {
	found := map[string]bool{}
	var errs []error
	for _, p := range pods {
		pod := strings.TrimSuffix(p.PodRef.Name, "-lab")
		for _, c := range p.Containers {
			found[pod+"/"+c.Name] = true
			if !some(c.CPU.UsageCoreNanoSeconds, c.Memory.WorkingSetBytes, c.Memory.RSSBytes, c.Rootfs.UsedBytes) || c.CPU.UsageNanoCores == nil {
				errs = append(errs, fmt.Errorf("container %s of pod %s lacks a figure: %+v", c.Name, pod, c))
			}
		}
		if !some(p.CPU.UsageCoreNanoSeconds, p.Memory.WorkingSetBytes) {
			errs = append(errs, fmt.Errorf("pod %s lacks a figure: %+v", pod, p))
		}
		// A pod on the node's network has no figures of its own.
		if pod != "hostnet" && (p.Network == nil || !some(p.Network.RxBytes, p.Network.TxBytes)) {
			errs = append(errs, fmt.Errorf("pod %s lacks its network: %+v", pod, p.Network))
		}
	}
	for _, name := range want {
		if !found[name] {
			errs = append(errs, fmt.Errorf("container %s is missing", name))
		}
	}
	return errors.Join(errs...)
}

func TestMetricsHaveEveryContainerAndThePodsNetwork(t *testing.T) {
	mustRun(t, steady...)
	want := runningContainers(t)
	mustEventually(t, time.Minute, "complete metrics", func() error {
		resource, err := get("/metrics/resource")
		if err != nil {
			return err
		}
		cadvisor, err := get("/metrics/cadvisor")
		if err != nil {
			return err
		}
		var errs []error
		for _, name := range want {
			pod, container, _ := strings.Cut(name, "/")
			labels := []string{`container="` + container + `"`, `pod="` + pod + `-lab"`, `namespace="default"`}
			errs = append(errs,
				sample("/metrics/resource", resource, "container_cpu_usage_seconds_total", labels...),
				sample("/metrics/resource", resource, "container_memory_working_set_bytes", labels...),
				sample("/metrics/resource", resource, "pod_cpu_usage_seconds_total", labels[1:]...),
				sample("/metrics/cadvisor", cadvisor, "container_cpu_usage_seconds_total", labels...),
				sample("/metrics/cadvisor", cadvisor, "container_memory_working_set_bytes", labels...))
			if pod != "hostnet" {
				errs = append(errs, sample("/metrics/cadvisor", cadvisor, "container_network_receive_bytes_total", append(labels[1:], `interface="eth0"`)...))
			}
		}
		return errors.Join(errs...)
	})
}

var sampleLine = regexp.MustCompile(`(?m)^(\w+)\{(.*)\} (\S+)`)

// sample finds a metric with all of labels, and a value above zero. Seconds may be none: CRI's values are whole numbers.
func sample(where, text, metric string, labels ...string) error {
	for _, match := range sampleLine.FindAllStringSubmatch(text, -1) {
		if match[1] != metric || match[3] == "0" && !strings.Contains(metric, "seconds") {
			continue
		}
		all := true
		for _, label := range labels {
			all = all && strings.Contains(match[2], label)
		}
		if all {
			return nil
		}
	}
	return fmt.Errorf("%s has no %s of %v", where, metric, labels)
}
