package node

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// scraped is what the kubelet would serve as /metrics/cadvisor, by the metric's name and then by labels.
type scraped map[string][]series

type series struct {
	labels map[string]string
	value  float64
}

// collector makes Prometheus' metrics of CRI's, as the kubelet does.
type collector struct {
	t           *testing.T
	descriptors map[string]*prometheus.Desc
	pods        []*criv1.PodSandboxMetrics
}

func (c *collector) Describe(descriptions chan<- *prometheus.Desc) {
	for _, d := range c.descriptors {
		descriptions <- d
	}
}

func (c *collector) Collect(metrics chan<- prometheus.Metric) {
	put := func(list []*criv1.Metric) {
		for _, m := range list {
			kind := prometheus.GaugeValue
			if m.GetMetricType() == criv1.MetricType_COUNTER {
				kind = prometheus.CounterValue
			}
			desc := c.descriptors[m.GetName()]
			if desc == nil || m.GetValue() == nil || m.GetTimestamp() != 0 {
				c.t.Errorf("a metric without descriptor or value, or that is not of this moment: %v", m)
				continue
			}
			one, err := prometheus.NewConstMetric(desc, kind, float64(m.GetValue().GetValue()), m.GetLabelValues()...)
			if err != nil {
				c.t.Errorf("%v: %v", m, err)
				continue
			}
			metrics <- one
		}
	}
	for _, pod := range c.pods {
		put(pod.GetMetrics())
		for _, one := range pod.GetContainerMetrics() {
			put(one.GetMetrics())
		}
	}
}

func (n *node) scrape(t *testing.T) scraped {
	t.Helper()
	described, err := n.ListMetricDescriptors(ctx(t), &criv1.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := n.ListPodSandboxMetrics(ctx(t), &criv1.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{t: t, descriptors: map[string]*prometheus.Desc{}, pods: resp.GetPodMetrics()}
	for _, d := range described.GetDescriptors() {
		c.descriptors[d.GetName()] = prometheus.NewDesc(d.GetName(), d.GetHelp(), d.GetLabelKeys(), nil)
	}
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(c); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather() // fails for two series with the same labels
	if err != nil {
		t.Error(err)
	}
	all := scraped{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			one := series{labels: map[string]string{}, value: m.GetCounter().GetValue() + m.GetGauge().GetValue()}
			for _, pair := range m.GetLabel() {
				one.labels[pair.GetName()] = pair.GetValue()
			}
			all[family.GetName()] = append(all[family.GetName()], one)
		}
	}
	return all
}

// of gives the series of one object, by its id in CRI.
func (s scraped) of(metric, id string) []series {
	return slices.DeleteFunc(slices.Clone(s[metric]), func(one series) bool { return one.labels["name"] != id })
}

func (s scraped) one(t *testing.T, metric, id string) series {
	t.Helper()
	list := s.of(metric, id)
	if len(list) != 1 {
		t.Errorf("%s of %s: got %v, want one", metric, id, list)
		return series{}
	}
	return list[0]
}

func TestMetricsAreThoseOfTheKubeletsOwnCollector(t *testing.T) {
	n := onNode(t)
	p := n.pod(t, ownNetwork)
	c := p.start(func(c *criv1.ContainerConfig) {
		c.Linux.Resources = &criv1.LinuxContainerResources{
			CpuPeriod: 100000, CpuQuota: 60000, CpuShares: 1024, MemoryLimitInBytes: 128 << 20, MemorySwapLimitInBytes: 128 << 20,
		}
		c.Image.UserSpecifiedImage = "example.org/as/written:1"
	}, "sh", "-c", "dd if=/dev/zero of=/file bs=1M count=4; x=$(head -c 20000000 /dev/zero | tr '\\0' x); while :; do :; done")
	plain := p.sleeper(nil)
	n.scrape(t)
	var all scraped
	eventually(t, 30*time.Second, "the loop, after a second of the processor's time or more, and the file", func() bool {
		all = n.scrape(t)
		layers := all.of("container_fs_usage_bytes", c.id)
		return all.one(t, "container_processes", c.id).value == 1 && all.one(t, "container_cpu_user_seconds_total", c.id).value >= 1 &&
			all.one(t, "container_memory_rss", c.id).value >= 20_000_000 && len(layers) == 1 && layers[0].value >= 4<<20
	})
	want := map[string]string{
		"container": c.config.GetMetadata().GetName(), "id": c.info().CgroupPath, "image": "example.org/as/written:1", "name": c.id,
		"namespace": "e2e", "pod": p.config.GetMetadata().GetName(),
	}
	for name, list := range all {
		for _, one := range list {
			for key, value := range want {
				if one.labels["name"] == c.id && one.labels[key] != value {
					t.Errorf("%s has %s=%q, want %q", name, key, one.labels[key], value)
				}
			}
		}
	}
	for name, between := range map[string][2]float64{
		"container_memory_working_set_bytes": {20_000_000, 128 << 20}, "container_memory_rss": {20_000_000, 100_000_000}, "container_memory_usage_bytes": {20_000_000, 128 << 20},
		"container_memory_max_usage_bytes": {20_000_000, 128 << 20}, "container_memory_kernel_usage": {1, 64 << 20}, "container_memory_cache": {0, 128 << 20},
		"container_spec_memory_limit_bytes": {128 << 20, 128 << 20}, "container_spec_memory_swap_limit_bytes": {0, 0}, "container_spec_memory_reservation_limit_bytes": {0, 0},
		"container_spec_cpu_period": {100000, 100000}, "container_spec_cpu_quota": {60000, 60000}, "container_spec_cpu_shares": {1024, 1024},
		"container_cpu_user_seconds_total": {1, 1000}, "container_cpu_cfs_periods_total": {5, 1e6}, "container_cpu_cfs_throttled_periods_total": {0, 1e6},
		"container_processes": {1, 1}, "container_threads": {1, 1}, "container_threads_max": {64, 64}, "container_file_descriptors": {1, 100}, "container_sockets": {0, 0},
		"container_ulimits_soft": {64, 1 << 30}, "container_oom_events_total": {0, 0}, "container_fs_limit_bytes": {1 << 20, 1e18}, "container_fs_inodes_free": {0, 1e15},
		"container_start_time_seconds": {float64(time.Now().Add(-time.Minute).Unix()), float64(time.Now().Unix())},
		"container_last_seen":          {float64(time.Now().Add(-2 * time.Second).Unix()), float64(time.Now().Unix())},
	} {
		if got := all.one(t, name, c.id).value; got < between[0] || got > between[1] {
			t.Errorf("%s: got %v, want it from %v to %v", name, got, between[0], between[1])
		}
	}
	if faults := all.of("container_memory_failures_total", c.id); len(faults) != 4 {
		t.Errorf("page faults: got %v, want two kinds in two scopes", faults)
	}
	if quota := all.of("container_spec_cpu_quota", plain.id); len(quota) != 0 {
		t.Errorf("without a quota: got %v", quota)
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		for name := range all {
			if strings.HasPrefix(name, "container_pressure_") {
				t.Errorf("%s on cgroup v1", name)
			}
		}
	}
	received := all.one(t, "container_network_receive_bytes_total", p.id)
	if received.labels["interface"] != "eth0" || received.labels["pod"] != want["pod"] || received.labels["namespace"] != "e2e" || received.labels["container"] != "" {
		t.Errorf("network: got %v", received)
	}
	if got, want := received.value, p.stats().GetLinux().GetNetwork().GetDefaultInterface().GetRxBytes().GetValue(); got == 0 || got > float64(want) {
		t.Errorf("received: got %v in metrics and then %v in statistics", got, want)
	}
}

func TestMetricsHaveWhatRunsListedAndStreamed(t *testing.T) {
	n := onNode(t)
	p, q, stopped := n.pod(t, ownNetwork), n.pod(t), n.pod(t)
	running, other := p.sleeper(nil), q.sleeper(nil)
	p.create(nil, "true")
	p.start(nil, "true").wait(10 * time.Second)
	if _, err := n.StopPodSandbox(ctx(t), &criv1.StopPodSandboxRequest{PodSandboxId: stopped.id}); err != nil {
		t.Fatal(err)
	}
	resp, err := n.ListPodSandboxMetrics(ctx(t), &criv1.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := n.StreamPodSandboxMetrics(ctx(t), &criv1.StreamPodSandboxMetricsRequest{})
	streamed, _ := collect(t, stream, err, (*criv1.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics)
	for how, list := range map[string][]*criv1.PodSandboxMetrics{"listed": resp.GetPodMetrics(), "streamed": streamed} {
		var got []string
		for _, pod := range list {
			got = append(got, pod.GetPodSandboxId())
			for _, one := range pod.GetContainerMetrics() {
				got = append(got, one.GetContainerId())
				if len(one.GetMetrics()) < 30 {
					t.Errorf("%s: %d metrics of a container", how, len(one.GetMetrics()))
				}
			}
		}
		if want := []string{q.id, other.id, p.id, running.id}; !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", how, got, want)
		}
	}
}

// A pod of the kubelet's has a control group of its own, with metrics of its own.
func TestMetricsOfThePodsOwnGroup(t *testing.T) {
	n := onNode(t)
	config := n.podConfig()
	parent := n.group + "/pod" + config.GetMetadata().GetUid()
	t.Cleanup(func() { n.removeGroups(parent) })
	p := n.pod(t, func(c *criv1.PodSandboxConfig) { c.Metadata, c.Linux.CgroupParent = config.Metadata, parent })
	p.sleeper(nil)
	all := n.scrape(t)
	if got := all.one(t, "container_memory_working_set_bytes", p.id); got.value == 0 || got.labels["id"] != parent || got.labels["container"] != "" || got.labels["image"] != "" {
		t.Errorf("the pod's memory: got %v", got)
	}
	if got := all.of("container_network_receive_bytes_total", p.id); len(got) != 0 {
		t.Errorf("the node's network is told as the pod's: %v", got)
	}
}
