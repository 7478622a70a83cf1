package podsandbox

import (
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/namespace"
)

// What was looked at, in the API's messages. What is not known is not set: a zero there is a figure to the kubelet.

func (m *statsManager) containerStats(l containerLook) *criv1.ContainerStats {
	stats := &criv1.ContainerStats{
		Attributes: &criv1.ContainerAttributes{
			Id: l.c.id, Metadata: l.c.config.GetMetadata(), Labels: l.c.config.GetLabels(), Annotations: l.c.config.GetAnnotations(),
		},
		WritableLayer: m.writableLayer(l.layer),
	}
	if l.figures == nil {
		return stats
	}
	at := l.at.UnixNano()
	stats.Cpu, stats.Memory, stats.Io = cpuMessage(l.figures), memoryMessage(l.figures), ioMessage(l.figures)
	if swap := l.stats.Swap; swap != nil {
		stats.Swap = &criv1.SwapUsage{Timestamp: at, SwapUsageBytes: number(swap.UsageBytes)}
		if swap.LimitBytes != cgroup.NoLimit {
			stats.Swap.SwapAvailableBytes = number(swap.LimitBytes - min(swap.LimitBytes, swap.UsageBytes))
		}
	}
	return stats
}

func (m *statsManager) sandboxStats(p podLook) *criv1.PodSandboxStats {
	linux := &criv1.LinuxPodSandboxStats{Network: networkMessage(p.network)}
	now, processes := time.Now(), 0
	for _, c := range p.containers {
		linux.Containers = append(linux.Containers, m.containerStats(c))
		processes += c.processes
	}
	if p.rec.ReaperPID != 0 {
		processes++
	}
	linux.Process = &criv1.ProcessUsage{Timestamp: now.UnixNano(), ProcessCount: number(uint64(processes))}
	used := p.own
	if used == nil {
		used = sum(p.containers, now)
	}
	linux.Cpu, linux.Memory, linux.Io = cpuMessage(used), memoryMessage(used), ioMessage(used)
	return &criv1.PodSandboxStats{Attributes: sandboxAttributes(p.s), Linux: linux}
}

func sandboxAttributes(s *sandbox) *criv1.PodSandboxAttributes {
	return &criv1.PodSandboxAttributes{Id: s.id, Metadata: s.config.GetMetadata(), Labels: s.config.GetLabels(), Annotations: s.config.GetAnnotations()}
}

// sum adds up what can be added: limits and pressure can't.
func sum(containers []containerLook, now time.Time) *figures {
	all := &figures{at: now, stats: &cgroup.Stats{Usage: cgroup.Usage{Memory: cgroup.MemoryUsage{LimitBytes: cgroup.NoLimit}}}, hasRate: true}
	to := &all.stats.Usage
	for _, c := range containers {
		from := c.stats.Usage
		to.CPU.Time += from.CPU.Time
		to.Memory.UsageBytes += from.Memory.UsageBytes
		to.Memory.WorkingSetBytes += from.Memory.WorkingSetBytes
		to.Memory.RSSBytes += from.Memory.RSSBytes
		to.Memory.PageFaults += from.Memory.PageFaults
		to.Memory.MajorPageFaults += from.Memory.MajorPageFaults
		all.nanoCores, all.hasRate = all.nanoCores+c.nanoCores, all.hasRate && c.hasRate
	}
	return all
}

func number(n uint64) *criv1.UInt64Value { return &criv1.UInt64Value{Value: n} }

func cpuMessage(f *figures) *criv1.CpuUsage {
	out := &criv1.CpuUsage{Timestamp: f.at.UnixNano(), UsageCoreNanoSeconds: number(uint64(f.stats.CPU.Time)), Psi: pressureMessage(f.stats.CPU.Pressure)}
	if f.hasRate {
		out.UsageNanoCores = number(f.nanoCores)
	}
	return out
}

func memoryMessage(f *figures) *criv1.MemoryUsage {
	memory := f.stats.Memory
	out := &criv1.MemoryUsage{
		Timestamp: f.at.UnixNano(), WorkingSetBytes: number(memory.WorkingSetBytes), UsageBytes: number(memory.UsageBytes), RssBytes: number(memory.RSSBytes),
		PageFaults: number(memory.PageFaults), MajorPageFaults: number(memory.MajorPageFaults), Psi: pressureMessage(memory.Pressure),
	}
	if memory.LimitBytes != cgroup.NoLimit {
		out.AvailableBytes = number(memory.LimitBytes - min(memory.LimitBytes, memory.WorkingSetBytes))
	}
	return out
}

// ioMessage has nothing to say where the kernel keeps no pressure.
func ioMessage(f *figures) *criv1.IoUsage {
	if f.stats.IO == nil {
		return nil
	}
	return &criv1.IoUsage{Timestamp: f.at.UnixNano(), Psi: pressureMessage(f.stats.IO)}
}

func pressureMessage(p *cgroup.Pressure) *criv1.PsiStats {
	if p == nil {
		return nil
	}
	data := func(s cgroup.Stall) *criv1.PsiData {
		return &criv1.PsiData{Total: uint64(s.Total), Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &criv1.PsiStats{Full: data(p.Full), Some: data(p.Some)}
}

// defaultInterface is what CNI calls a pod's first interface.
const defaultInterface = "eth0"

// networkMessage is nil without an interface: the kubelet (1.37) does not survive a network without the default one.
func networkMessage(n networkFigures) *criv1.NetworkUsage {
	if len(n.links) == 0 {
		return nil
	}
	first := 0
	for i, link := range n.links {
		if link.Name == defaultInterface {
			first = i
			break
		}
	}
	out := &criv1.NetworkUsage{Timestamp: n.at.UnixNano()}
	for i, link := range n.links {
		if i == first {
			out.DefaultInterface = interfaceMessage(link)
		} else {
			out.Interfaces = append(out.Interfaces, interfaceMessage(link))
		}
	}
	return out
}

func interfaceMessage(l namespace.Link) *criv1.NetworkInterfaceUsage {
	return &criv1.NetworkInterfaceUsage{
		Name: l.Name, RxBytes: number(l.RxBytes), RxErrors: number(l.RxErrors), TxBytes: number(l.TxBytes), TxErrors: number(l.TxErrors),
	}
}

// layersDir is where writable layers are: a real path, of which the kubelet asks the file system.
func (m *statsManager) layersDir() string { return filepath.Clean(m.stateDir("")) }

// writableLayer says where the layer is even before it was counted for the first time.
func (m *statsManager) writableLayer(use *layerUse) *criv1.FilesystemUsage {
	out := &criv1.FilesystemUsage{Timestamp: time.Now().UnixNano(), FsId: &criv1.FilesystemIdentifier{Mountpoint: m.layersDir()}}
	if use != nil {
		out.Timestamp, out.UsedBytes, out.InodesUsed = use.at.UnixNano(), number(use.Bytes), number(use.Inodes)
	}
	return out
}

// LayersFilesystem is the file system of all writable layers, where it is another than that of the directory images; else
// nil: what is said of images then holds for both.
func (m *statsManager) LayersFilesystem(images string) (*criv1.FilesystemUsage, error) {
	var ours, theirs unix.Stat_t
	for dir, st := range map[string]*unix.Stat_t{m.layersDir(): &ours, images: &theirs} {
		if err := unix.Stat(dir, st); err != nil {
			return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
		}
	}
	if ours.Dev == theirs.Dev {
		return nil, nil
	}
	var ids []string
	m.containers.each(func(c *container) { ids = append(ids, c.id) })
	all, counted := &layerUse{at: time.Now()}, len(ids) == 0
	for _, use := range m.layers.of(ids...) {
		if use != nil {
			counted = true
			all.Bytes, all.Inodes = all.Bytes+use.Bytes, all.Inodes+use.Inodes
			if use.at.Before(all.at) {
				all.at = use.at
			}
		}
	}
	if !counted { // nobody asked before
		return m.writableLayer(nil), nil
	}
	return m.writableLayer(all), nil
}
