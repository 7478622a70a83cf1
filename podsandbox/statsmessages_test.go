package podsandbox

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/diskuse"
	"github.com/podwright/podwright/runtime/namespace"
)

func wantMessage(t *testing.T, name string, got, want proto.Message) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("%s:\ngot  %s\nwant %s", name, prototext.Format(got), prototext.Format(want))
	}
}

// usage is one look with a different number everywhere.
func usage(at time.Time) *figures {
	psi := func(n int) *cgroup.Pressure {
		return &cgroup.Pressure{Some: cgroup.Stall{Total: time.Duration(n), Avg10: float64(n)}, Full: cgroup.Stall{Avg300: float64(n)}}
	}
	return &figures{at: at, processes: 2, nanoCores: 100, hasRate: true, stats: &cgroup.Stats{Usage: cgroup.Usage{
		CPU: cgroup.CPUUsage{Time: 7 * time.Second, Pressure: psi(1)},
		Memory: cgroup.MemoryUsage{
			UsageBytes: 60, WorkingSetBytes: 50, RSSBytes: 40, LimitBytes: 80, PageFaults: 30, MajorPageFaults: 20, Pressure: psi(2),
		},
		Swap: &cgroup.SwapUsage{UsageBytes: 5, LimitBytes: 9}, IO: psi(3),
	}}}
}

func psiMessage(n uint64) *criv1.PsiStats {
	return &criv1.PsiStats{Some: &criv1.PsiData{Total: n, Avg10: float64(n)}, Full: &criv1.PsiData{Avg300: float64(n)}}
}

func TestContainerStatsSayWhatIsKnown(t *testing.T) {
	m := &statsManager{core: &core{cfg: Config{StateDir: "/state"}}}
	at := time.Unix(100, 5)
	config := &criv1.ContainerConfig{
		Metadata: &criv1.ContainerMetadata{Name: "c", Attempt: 1}, Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"x": "y"},
	}
	c := newContainer(&record.Container{ID: "id"}, config, [32]byte{})
	want := &criv1.ContainerStats{
		Attributes: &criv1.ContainerAttributes{Id: "id", Metadata: config.Metadata, Labels: config.Labels, Annotations: config.Annotations},
		Cpu:        &criv1.CpuUsage{Timestamp: at.UnixNano(), UsageCoreNanoSeconds: number(7e9), UsageNanoCores: number(100), Psi: psiMessage(1)},
		Memory: &criv1.MemoryUsage{
			Timestamp: at.UnixNano(), WorkingSetBytes: number(50), AvailableBytes: number(30), UsageBytes: number(60), RssBytes: number(40),
			PageFaults: number(30), MajorPageFaults: number(20), Psi: psiMessage(2),
		},
		Swap: &criv1.SwapUsage{Timestamp: at.UnixNano(), SwapUsageBytes: number(5), SwapAvailableBytes: number(4)},
		Io:   &criv1.IoUsage{Timestamp: at.UnixNano(), Psi: psiMessage(3)},
		WritableLayer: &criv1.FilesystemUsage{
			Timestamp: at.UnixNano(), FsId: &criv1.FilesystemIdentifier{Mountpoint: "/state/containers"}, UsedBytes: number(12), InodesUsed: number(3),
		},
	}
	layer := &layerUse{at: at, Use: diskuse.Use{Bytes: 12, Inodes: 3}}
	wantMessage(t, "everything", m.containerStats(containerLook{c: c, figures: usage(at), layer: layer}), want)

	// As on cgroup v1 without accounting for swap, and without a limit.
	less := usage(at)
	less.hasRate, less.stats.Swap, less.stats.IO, less.stats.CPU.Pressure, less.stats.Memory.Pressure = false, nil, nil, nil, nil
	less.stats.Memory.LimitBytes = cgroup.NoLimit
	want.Swap, want.Io, want.Cpu.Psi, want.Memory.Psi, want.Cpu.UsageNanoCores, want.Memory.AvailableBytes = nil, nil, nil, nil, nil, nil
	wantMessage(t, "what is not known is not set", m.containerStats(containerLook{c: c, figures: less, layer: layer}), want)

	// A group may hold more than its limit, which was lowered.
	over := usage(at)
	over.stats.Memory.LimitBytes, over.stats.Swap.LimitBytes = 10, 1
	got := m.containerStats(containerLook{c: c, figures: over, layer: layer})
	if got.GetMemory().GetAvailableBytes().GetValue() != 0 || got.GetSwap().GetSwapAvailableBytes().GetValue() != 0 {
		t.Errorf("over its limits: got %v available and %v of swap, want nothing", got.GetMemory().GetAvailableBytes(), got.GetSwap().GetSwapAvailableBytes())
	}

	ended := m.containerStats(containerLook{c: c})
	if ended.Cpu != nil || ended.Memory != nil || ended.WritableLayer.UsedBytes != nil || ended.WritableLayer.Timestamp == 0 || ended.WritableLayer.FsId.Mountpoint != "/state/containers" {
		t.Errorf("not running, and its layer never counted: got %s", prototext.Format(ended))
	}
}

func TestPodStatsAreOfTheGroupOrTheSum(t *testing.T) {
	m := &statsManager{core: &core{cfg: Config{StateDir: "/state"}}}
	at := time.Unix(100, 5)
	s := newSandbox(&record.Sandbox{ID: "pod", ReaperPID: 7}, &criv1.PodSandboxConfig{Metadata: &criv1.PodSandboxMetadata{Name: "p"}}, [32]byte{})
	c := newContainer(&record.Container{ID: "id"}, &criv1.ContainerConfig{}, [32]byte{})
	look := podLook{s: s, rec: s.record(), containers: []containerLook{{c: c, figures: usage(at)}, {c: c, figures: usage(at)}}}

	summed := m.sandboxStats(look).Linux
	if got := summed.Process.GetProcessCount().GetValue(); got != 5 || len(summed.Containers) != 2 {
		t.Errorf("got %d processes in %d containers, want two in each and the reaper", got, len(summed.Containers))
	}
	if cpu := summed.Cpu; cpu.GetUsageCoreNanoSeconds().GetValue() != 14e9 || cpu.GetUsageNanoCores().GetValue() != 200 || cpu.Psi != nil || cpu.Timestamp == 0 {
		t.Errorf("the sum of processor time: got %v", cpu)
	}
	if mem := summed.Memory; mem.GetWorkingSetBytes().GetValue() != 100 || mem.GetUsageBytes().GetValue() != 120 || mem.GetRssBytes().GetValue() != 80 ||
		mem.GetPageFaults().GetValue() != 60 || mem.GetMajorPageFaults().GetValue() != 40 || mem.AvailableBytes != nil || summed.Io != nil {
		t.Errorf("the sum of memory: got %v and io %v", mem, summed.Io)
	}
	look.own = usage(at)
	own := m.sandboxStats(look).Linux
	wantMessage(t, "the pod's own group", own.Cpu, cpuMessage(look.own))
	wantMessage(t, "the pod's own group", own.Memory, memoryMessage(look.own))
	wantMessage(t, "the pod's own group", own.Io, ioMessage(look.own))
}

func TestOwnGroupsAreKnownByTheKubeletsNames(t *testing.T) {
	const uid = "3f2a-91"
	for parent, want := range map[string]bool{
		"/kubepods/burstable/pod3f2a-91": true, "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod3f2a_91.slice": true,
		"/podwright/pods": false, "/kubepods/pod3f2a": false, "/pod3f2a-91/other": false, "/kubepods-pod3f2a-91.slice": false, "": false,
	} {
		s := newSandbox(&record.Sandbox{CgroupParent: parent}, &criv1.PodSandboxConfig{Metadata: &criv1.PodSandboxMetadata{Uid: uid}}, [32]byte{})
		if got := ownGroup(s, s.record()); got != want {
			t.Errorf("%s: got %v, want %v", parent, got, want)
		}
	}
	s := newSandbox(&record.Sandbox{CgroupParent: "/kubepods/pod"}, &criv1.PodSandboxConfig{}, [32]byte{})
	if ownGroup(s, s.record()) {
		t.Error("a pod without a uid has a group of its own")
	}
}

func TestNetworkStatsHaveADefaultInterface(t *testing.T) {
	at := time.Unix(3, 0)
	link := func(name string, n uint64) namespace.Link {
		return namespace.Link{Name: name, RxBytes: n, TxBytes: n + 1, RxErrors: n + 2, TxErrors: n + 3, RxPackets: 99}
	}
	message := func(name string, n uint64) *criv1.NetworkInterfaceUsage {
		return &criv1.NetworkInterfaceUsage{Name: name, RxBytes: number(n), TxBytes: number(n + 1), RxErrors: number(n + 2), TxErrors: number(n + 3)}
	}
	for _, test := range []struct {
		name  string
		links []namespace.Link
		want  *criv1.NetworkUsage
	}{
		{"none", nil, nil},
		{"CNI's first", []namespace.Link{link("net1", 10), link("eth0", 20), link("net2", 30)},
			&criv1.NetworkUsage{Timestamp: at.UnixNano(), DefaultInterface: message("eth0", 20), Interfaces: []*criv1.NetworkInterfaceUsage{message("net1", 10), message("net2", 30)}}},
		{"another name", []namespace.Link{link("ens3", 10), link("ens4", 20)},
			&criv1.NetworkUsage{Timestamp: at.UnixNano(), DefaultInterface: message("ens3", 10), Interfaces: []*criv1.NetworkInterfaceUsage{message("ens4", 20)}}},
	} {
		wantMessage(t, test.name, networkMessage(networkFigures{at, test.links}), test.want)
	}
}

func TestProcessFigures(t *testing.T) {
	before := lookAtProcesses([]int{os.Getpid()}, os.Getpid())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	after := lookAtProcesses([]int{os.Getpid(), 1 << 30}, os.Getpid()) // the other one is gone
	r.Close()
	w.Close()
	if before == nil || after == nil || after.descriptors != before.descriptors+2 || after.sockets != before.sockets || !after.hasMaxOpenFiles || after.maxOpenFiles == 0 {
		t.Errorf("got %+v, and %+v with a pipe more", before, after)
	}
	if got := lookAtProcesses(make([]int, maxCountedProcesses+1), 1); got != nil {
		t.Errorf("too many processes: got %+v, want nothing", got)
	}
	if _, err := readNames("/proc/self/fd", 1); err != errTooMany {
		t.Errorf("too many files: got %v", err)
	}
}

func TestSoftLimit(t *testing.T) {
	const text = "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 524288               files     \nMax processes             unlimited            unlimited            processes \n"
	for name, want := range map[string]uint64{"Max open files": 1024, "Max processes": 0, "Max what": 0} {
		if got, ok := softLimit(text, name); got != want || ok != (want > 0) {
			t.Errorf("%s: got %d, %v", name, got, ok)
		}
	}
}

// Images on a disk of their own: only then writable layers have an entry in ImageFsInfo.
func TestLayersHaveAnEntryOfTheirOwnBesideImagesOnAnotherDisk(t *testing.T) {
	stop := make(chan struct{})
	var lanes sync.WaitGroup
	m := &statsManager{core: &core{cfg: Config{StateDir: t.TempDir()}}}
	m.layers = newLayers(stop, func(f func()) { lanes.Go(f) }, func(context.Context, string, func(int) error) (diskuse.Use, error) {
		return diskuse.Use{Bytes: 1000, Inodes: 10}, nil
	})
	defer lanes.Wait()
	defer close(stop)
	if err := os.Mkdir(m.layersDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b"} {
		m.containers.put(id, newContainer(&record.Container{ID: id, Phase: record.ContainerExited}, &criv1.ContainerConfig{}, [32]byte{}))
	}
	if got, err := m.LayersFilesystem(t.TempDir()); got != nil || err != nil {
		t.Errorf("images on the same disk: got %v, %v, want no entry", got, err)
	}
	if _, err := m.LayersFilesystem("/absent"); err == nil {
		t.Error("images nowhere: got no error")
	}
	const other = "/proc" // surely not where temporary files are
	if got, err := m.LayersFilesystem(other); err != nil || got.GetUsedBytes().GetValue() == 0 && got.GetUsedBytes() != nil {
		t.Errorf("before anything was counted: got %v, %v, want no size rather than 0", got, err)
	}
	var got *criv1.FilesystemUsage
	for deadline := time.Now().Add(10 * time.Second); got.GetUsedBytes().GetValue() != 2000; time.Sleep(time.Millisecond) {
		var err error
		if got, err = m.LayersFilesystem(other); err != nil || time.Now().After(deadline) {
			t.Fatalf("got %v, %v, want the sum of both layers", got, err)
		}
	}
	if got.GetFsId().GetMountpoint() != m.layersDir() || got.GetInodesUsed().GetValue() != 20 || got.GetTimestamp() == 0 {
		t.Errorf("got %v", got)
	}
}
