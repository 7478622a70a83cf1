package podsandbox

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/diskuse"
	"github.com/podwright/podwright/runtime/namespace"
)

var update = flag.Bool("update", false, "rewrite the expected files below testdata")

// allFigures has a different number everywhere.
func allFigures(at time.Time) *figures {
	f := usage(at)
	s := f.stats
	s.CPU.Pressure.Some.Total, s.CPU.Pressure.Full.Total = 31*time.Second, 32*time.Second
	s.Memory.Pressure.Some.Total, s.Memory.Pressure.Full.Total = 33*time.Second, 34*time.Second
	s.IO.Some.Total, s.IO.Full.Total = 35*time.Second, 36*time.Second
	s.CPUTimes = cgroup.CPUTimes{User: 4999 * time.Millisecond, System: 2 * time.Second, Periods: 11, ThrottledPeriods: 12, Throttled: 13 * time.Second}
	s.Detail = cgroup.MemoryDetail{
		PeakBytes: 101, CacheBytes: 102, MappedFileBytes: 103, ActiveFileBytes: 104, InactiveFileBytes: 105, KernelBytes: 106,
		OwnPageFaults: 107, OwnMajorPageFaults: 108, LimitHits: 109, OOMKills: 110,
	}
	s.Pids = cgroup.PidsStats{Current: 3, Limit: 64}
	s.Devices = []cgroup.DeviceIO{{Major: 4095, Minor: 1, ReadBytes: 201, WriteBytes: 202, Reads: 203, Writes: 204}}
	f.proc = &procFigures{descriptors: 301, sockets: 302, maxOpenFiles: 1024, hasMaxOpenFiles: true}
	return f
}

func metricLines(t *testing.T, m *statsManager, list []*criv1.Metric) string {
	t.Helper()
	keys := map[string][]string{}
	for _, d := range m.MetricDescriptors() {
		keys[d.GetName()] = d.GetLabelKeys()
	}
	var text strings.Builder
	for _, one := range list {
		names, values := keys[one.GetName()], one.GetLabelValues()
		if len(names) != len(values) || one.GetTimestamp() != 0 {
			t.Errorf("%s: got values %q for labels %q at %d", one.GetName(), values, names, one.GetTimestamp())
			continue
		}
		fmt.Fprintf(&text, "%s %s{", strings.ToLower(one.GetMetricType().String()), one.GetName())
		for i, name := range names {
			fmt.Fprintf(&text, "%s=%q ", name, values[i])
		}
		fmt.Fprintf(&text, "} %d\n", one.GetValue().GetValue())
	}
	return text.String()
}

func TestMetricsOfAPodAndItsContainers(t *testing.T) {
	m := &statsManager{core: &core{cfg: Config{StateDir: "/state"}}}
	at := time.Unix(100, 5)
	s := newSandbox(&record.Sandbox{ID: "sandboxid", CreatedNanos: 50e9, CgroupParent: "/kubepods/poduid"},
		&criv1.PodSandboxConfig{Metadata: &criv1.PodSandboxMetadata{Name: "web", Namespace: "prod", Uid: "uid"}}, [32]byte{})
	disk := &diskFigures{device: "/dev/vda1", limitBytes: 1000, inodes: 100, freeNodes: 10, names: map[[2]uint32]string{}}
	limits := &criv1.LinuxContainerResources{CpuPeriod: 50000, CpuQuota: 25000, CpuShares: 512, Unified: map[string]string{"memory.low": "77"}}
	container := func(resources *criv1.LinuxContainerResources, f *figures, layer *layerUse) containerLook {
		config := &criv1.ContainerConfig{
			Metadata: &criv1.ContainerMetadata{Name: "nginx"}, Linux: &criv1.LinuxContainerConfig{Resources: resources},
			Image: &criv1.ImageSpec{Image: "sha256:abc", UserSpecifiedImage: "example.org/nginx:1"},
		}
		rec := &record.Container{ID: "containerid", StartedNanos: 60e9, CgroupPath: "/kubepods/poduid/containerid"}
		return containerLook{c: newContainer(rec, config, [32]byte{}), rec: rec, figures: f, layer: layer}
	}
	little := usage(at) // as without pressure, swap and limits, and with too many processes to look at
	little.stats.CPU.Pressure, little.stats.Memory.Pressure, little.stats.IO, little.stats.Swap = nil, nil, nil, nil
	little.stats.Memory.LimitBytes, little.stats.Pids.Limit = cgroup.NoLimit, cgroup.NoLimit
	links := []namespace.Link{
		{Name: "eth0", RxBytes: 1, RxPackets: 2, RxDropped: 3, RxErrors: 4, TxBytes: 5, TxPackets: 6, TxDropped: 7, TxErrors: 8},
		{Name: "?", RxBytes: 11}, {Name: "?", RxBytes: 12},
	}
	shared := newSandbox(&record.Sandbox{ID: "other", CgroupParent: "/pods"}, s.config, [32]byte{})
	for name, of := range map[string]*subject{
		"everything":                   containerSubject(s, container(limits, allFigures(at), &layerUse{at, diskuse.Use{Bytes: 401, Inodes: 402}}), disk),
		"little":                       containerSubject(s, container(nil, little, nil), disk),
		"pod with a group of its own":  podSubject(podLook{s: s, rec: s.record(), own: allFigures(at), network: networkFigures{at, links}}, disk),
		"pod without network or group": podSubject(podLook{s: shared, rec: shared.record()}, disk),
		"pod without a group":          podSubject(podLook{s: shared, rec: shared.record(), network: networkFigures{at, links[:1]}}, disk),
	} {
		got, path := metricLines(t, m, metricsOf(of)), filepath.Join("testdata", "metrics", strings.ReplaceAll(name, " ", "-")+".txt")
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(path); err != nil || got != string(want) {
			t.Errorf("%s (%v):\ngot\n%s\nwant\n%s", name, err, got, want)
		}
	}
}

// The names that a kubelet gives with cAdvisor, and critest (1.37) looks for.
var expectedMetrics = strings.Fields(`
container_blkio_device_usage_total container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total container_cpu_cfs_throttled_seconds_total
container_cpu_system_seconds_total container_cpu_usage_seconds_total container_cpu_user_seconds_total container_file_descriptors
container_fs_inodes_free container_fs_inodes_total container_fs_limit_bytes container_fs_reads_bytes_total container_fs_reads_total container_fs_usage_bytes
container_fs_writes_bytes_total container_fs_writes_total container_last_seen container_memory_cache container_memory_failcnt container_memory_failures_total
container_memory_kernel_usage container_memory_mapped_file container_memory_max_usage_bytes container_memory_rss container_memory_swap
container_memory_usage_bytes container_memory_working_set_bytes container_network_receive_bytes_total container_network_receive_errors_total
container_network_receive_packets_dropped_total container_network_receive_packets_total container_network_transmit_bytes_total
container_network_transmit_errors_total container_network_transmit_packets_dropped_total container_network_transmit_packets_total
container_oom_events_total container_pressure_cpu_stalled_seconds_total container_pressure_cpu_waiting_seconds_total
container_pressure_io_stalled_seconds_total container_pressure_io_waiting_seconds_total container_pressure_memory_stalled_seconds_total
container_pressure_memory_waiting_seconds_total container_processes container_sockets container_spec_cpu_period container_spec_cpu_quota
container_spec_cpu_shares container_spec_memory_limit_bytes container_spec_memory_reservation_limit_bytes container_spec_memory_swap_limit_bytes
container_start_time_seconds container_threads container_threads_max container_ulimits_soft`)

func TestMetricDescriptors(t *testing.T) {
	m := &statsManager{}
	seen := map[string]bool{}
	name := regexp.MustCompile(`^container_[a-z0-9_]+$`)
	for _, d := range m.MetricDescriptors() {
		if seen[d.GetName()] || !name.MatchString(d.GetName()) || d.GetHelp() == "" || !slices.Equal(d.GetLabelKeys()[:len(metricLabels)], metricLabels) {
			t.Errorf("got %v", d)
		}
		seen[d.GetName()] = true
		if len(slices.Compact(slices.Sorted(slices.Values(d.GetLabelKeys())))) != len(d.GetLabelKeys()) {
			t.Errorf("%s has a label twice: %q", d.GetName(), d.GetLabelKeys())
		}
	}
	for _, want := range expectedMetrics {
		if !seen[want] {
			t.Errorf("%s is missing", want)
		}
	}
}

func TestDiskFigures(t *testing.T) {
	d, err := lookAtDisk(t.TempDir())
	if err != nil || d.device == "" || d.limitBytes == 0 {
		t.Errorf("got %+v, %v", d, err)
	}
	if got := d.name(4095, 1); got != "4095:1" {
		t.Errorf("a device that is not there: got %s", got)
	}
	if _, err := lookAtDisk("/absent"); err == nil {
		t.Error("an absent directory has figures")
	}
}
