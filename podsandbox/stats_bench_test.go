package podsandbox

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/namespace"
)

const benchPods = 100

// BenchmarkListStatistics is what lists cost with a hundred pods of one container each, which have a network of their own;
// CPU-µs/pod is processor time of the whole process, which other load on the machine changes little.
func BenchmarkListStatistics(b *testing.B) {
	m := statisticsOfPods(b)
	ctx := context.Background()
	for name, list := range map[string]func() int{
		"containers": func() int { return len(m.ListContainerStats(ctx, nil)) },
		"pods":       func() int { return len(m.ListSandboxStats(ctx, nil)) },
	} {
		b.Run(name, func(b *testing.B) {
			before := processTime(b)
			for b.Loop() {
				if got := list(); got != benchPods {
					b.Fatalf("got %d entries, want %d", got, benchPods)
				}
			}
			b.ReportMetric(float64((processTime(b)-before).Microseconds())/float64(b.N*benchPods), "CPU-µs/pod")
		})
	}
}

func processTime(b *testing.B) time.Duration {
	b.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// statisticsOfPods makes groups with a process in each, and network namespaces with an interface in each.
func statisticsOfPods(b *testing.B) *statsManager {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("needs root: makes control groups and namespaces")
	}
	groups, err := cgroup.New(cgroup.Config{})
	if err != nil {
		b.Skip(err)
	}
	ctx, parent := context.Background(), fmt.Sprintf("/podwright-test-%d-stats", os.Getpid())
	netnsDir, runDir := b.TempDir(), b.TempDir()
	pins, err := namespace.New(namespace.Config{NetnsDir: netnsDir, RunDir: runDir})
	must(b, err)
	b.Cleanup(func() {
		must(b, groups.Remove(ctx, parent))
		must(b, pins.Close())
		must(b, unix.Unmount(netnsDir, unix.MNT_DETACH))
		must(b, unix.Unmount(runDir, unix.MNT_DETACH))
	})
	must(b, groups.Create(ctx, parent, nil))
	m := newStatsManager(&core{cfg: Config{StateDir: b.TempDir(), Cgroups: groups, Namespaces: pins}, leaving: make(chan struct{})})
	for i := range benchPods {
		id := fmt.Sprintf("%064d", i)
		must(b, os.MkdirAll(m.stateDir(id)+"/upper", 0o700))
		must(b, pins.Create(ctx, id, namespace.Spec{Net: true}))
		b.Cleanup(func() { must(b, pins.Remove(ctx, id)) })
		must(b, pins.Run(ctx, id, func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1"})
		}))
		group := parent + "/" + id
		must(b, groups.Create(ctx, group, nil))
		pid := startIn(b, groups, group)
		s := newSandbox(&record.Sandbox{ID: id, Phase: record.SandboxReady, CgroupParent: parent, NetPath: pins.Path(id, namespace.Net), CreatedNanos: int64(i)},
			&criv1.PodSandboxConfig{
				Metadata: &criv1.PodSandboxMetadata{Name: "name", Namespace: "default", Uid: id},
				Labels:   map[string]string{"app": "bench", "io.kubernetes.pod.name": "name", "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": id},
			}, [32]byte{})
		c := newContainer(&record.Container{ID: id, SandboxID: id, Phase: record.ContainerRunning, CgroupPath: group, PID: pid, CreatedNanos: int64(i), StartedNanos: time.Now().UnixNano()},
			&criv1.ContainerConfig{
				Metadata: &criv1.ContainerMetadata{Name: "name"},
				Labels:   map[string]string{"io.kubernetes.container.name": "name", "io.kubernetes.pod.name": "name", "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": id},
			}, [32]byte{})
		m.sandboxes.put(id, s)
		m.containers.put(id, c)
	}
	return m
}

// startIn starts a process in a group, until the benchmark ends.
func startIn(b *testing.B, groups *cgroup.Manager, group string) int {
	b.Helper()
	handle, err := groups.Open(group)
	must(b, err)
	defer handle.Close()
	cmd := exec.Command("/bin/sh", "-c", `for tasks; do echo 0 >"$tasks"; done; exec sleep 100000`, "sh")
	for _, tasks := range handle.Tasks {
		cmd.Args = append(cmd.Args, tasks.Name())
	}
	if handle.Dir != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(handle.Dir.Fd())}
	}
	must(b, cmd.Start())
	b.Cleanup(func() {
		must(b, cmd.Process.Kill())
		_ = cmd.Wait() // killed
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		pids, err := groups.Processes(group)
		must(b, err)
		if len(pids) == 1 {
			return cmd.Process.Pid
		}
		if time.Now().After(deadline) {
			b.Fatalf("%d processes in %s, want 1", len(pids), group)
		}
	}
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Error(err)
	}
}
