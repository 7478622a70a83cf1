package podsandbox

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/runtime/namespace"
)

// Metrics are the statistics under the names and labels that the kubelet's own collector, cAdvisor, gives them, so that
// dashboards and alerts go on. The kubelet passes them on as /metrics/cadvisor. CRI has whole numbers only: seconds are cut.

// metricLabels are those of every metric, in the order of their values. id is the control group, name the id in CRI.
var metricLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

// subject is what metrics are of: a running container, or a ready sandbox. What is nil has no metrics.
type subject struct {
	labels    []string // values of metricLabels
	started   time.Time
	figures   *figures
	resources *criv1.LinuxContainerResources // of a container
	links     []namespace.Link               // of a sandbox
	layer     *layerUse                      // of a container
	disk      *diskFigures
}

// diskFigures are of the file system of all writable layers, and what block devices are called.
type diskFigures struct {
	device                        string
	limitBytes, inodes, freeNodes uint64
	names                         map[[2]uint32]string
}

// MetricDescriptors say what metrics there are. They never change.
func (m *statsManager) MetricDescriptors() []*criv1.MetricDescriptor {
	list := make([]*criv1.MetricDescriptor, len(metricFamilies))
	for i, f := range metricFamilies {
		list[i] = &criv1.MetricDescriptor{Name: f.name, Help: f.help, LabelKeys: append(slices.Clone(metricLabels), f.labels...)}
	}
	return list
}

// ListSandboxMetrics gives the metrics of ready sandboxes and what runs in them, newest first, as PodSandboxMetrics.
func (m *statsManager) ListSandboxMetrics(ctx context.Context) []Encoded {
	var all []*sandbox
	m.sandboxes.each(func(s *sandbox) { all = append(all, s) })
	pods := m.lookAtPods(ctx, all, depthAll)
	disk, err := lookAtDisk(m.layersDir())
	if err != nil {
		disk = &diskFigures{names: map[[2]uint32]string{}} // its own metrics are missing then
	}
	var list []dated
	for _, p := range pods {
		full := &criv1.PodSandboxMetrics{PodSandboxId: p.s.id, Metrics: metricsOf(podSubject(p, disk))}
		bare := &criv1.PodSandboxMetrics{PodSandboxId: p.s.id}
		for _, c := range p.containers {
			full.ContainerMetrics = append(full.ContainerMetrics, &criv1.ContainerMetrics{ContainerId: c.c.id, Metrics: metricsOf(containerSubject(p.s, c, disk))})
		}
		list = append(list, dated{p.rec.CreatedNanos, encode(full, bare)})
	}
	return newestFirst(list)
}

// podSubject has the figures of the pod's own group, if it has one, under that group's name.
func podSubject(p podLook, disk *diskFigures) *subject {
	group := cgroupOf(p.rec, p.s.id)
	if ownGroup(p.s, p.rec) {
		group = p.rec.CgroupParent
	}
	metadata := p.s.config.GetMetadata()
	return &subject{
		labels: []string{"", group, "", p.s.id, metadata.GetNamespace(), metadata.GetName()}, started: time.Unix(0, p.rec.CreatedNanos),
		figures: p.own, links: p.network.links, disk: disk,
	}
}

func containerSubject(s *sandbox, l containerLook, disk *diskFigures) *subject {
	metadata := s.config.GetMetadata()
	return &subject{
		labels: []string{
			l.c.config.GetMetadata().GetName(), l.rec.CgroupPath, statusImage(l.c.config.GetImage()).GetImage(), l.c.id, metadata.GetNamespace(), metadata.GetName(),
		},
		started: time.Unix(0, l.rec.StartedNanos), figures: l.figures, resources: containerResources(l.c, l.rec), layer: l.layer, disk: disk,
	}
}

func containerResources(c *container, rec *record.Container) *criv1.LinuxContainerResources {
	if r := resourcesOf(c, rec); r != nil {
		return r
	}
	return &criv1.LinuxContainerResources{}
}

// metricsOf gives what is known of s. Timestamps are 0: the figures are of this moment.
func metricsOf(s *subject) []*criv1.Metric {
	var list []*criv1.Metric
	for _, f := range metricFamilies {
		f.values(s, func(value uint64, labels ...string) {
			list = append(list, &criv1.Metric{
				Name: f.name, MetricType: f.kind, LabelValues: append(slices.Clone(s.labels), labels...), Value: number(value),
			})
		})
	}
	return list
}

func lookAtDisk(dir string) (*diskFigures, error) {
	d := &diskFigures{names: map[[2]uint32]string{}}
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if err := unix.Stat(dir, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	d.device = d.name(unix.Major(st.Dev), unix.Minor(st.Dev))
	d.limitBytes, d.inodes, d.freeNodes = fs.Blocks*uint64(fs.Frsize), fs.Files, fs.Ffree
	return d, nil
}

// name is "/dev/sda", or the numbers where the kernel knows no name: file systems without a device of their own.
func (d *diskFigures) name(major, minor uint32) string {
	key := [2]uint32{major, minor}
	if name, ok := d.names[key]; ok {
		return name
	}
	name := fmt.Sprintf("%d:%d", major, minor)
	if f, err := os.Open("/sys/dev/block/" + name + "/uevent"); err == nil {
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if device, ok := strings.CutPrefix(lines.Text(), "DEVNAME="); ok {
				name = "/dev/" + device
			}
		}
		f.Close()
	}
	d.names[key] = name
	return name
}
