package initproc

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/spawn"
	"golang.org/x/sys/unix"
)

// The benchmarks report medians beside Go's mean: the machine is shared, and a mean of times is its noise.

// medians runs f b.N times and reports the middle of what it returns.
func medians(b *testing.B, f func() time.Duration) {
	times := make([]time.Duration, 0, 1024)
	for b.Loop() {
		times = append(times, f())
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(times[len(times)/20].Microseconds()), "p5-µs")
}

// BenchmarkBusyboxTrue is fork, exec and exit of the workload alone: the floor of the other benchmarks.
func BenchmarkBusyboxTrue(b *testing.B) {
	newLab(b)
	exe, err := os.Open(lab.image)
	if err != nil {
		b.Fatal(err)
	}
	defer exe.Close()
	medians(b, func() time.Duration {
		begin := time.Now()
		pid, pidfd, err := spawn.Start(&spawn.Command{Exe: int(exe.Fd()), Argv: []string{"true"}, Cgroup: -1})
		if err != nil {
			b.Fatal(err)
		}
		unix.Wait4(pid, nil, 0, nil)
		unix.Close(pidfd)
		return time.Since(begin)
	})
}

// BenchmarkContainer is a whole container: namespaces, all mounts and masks, pivot, identity, filter, `true`, exit.
func BenchmarkContainer(b *testing.B) {
	newLab(b)
	dir := rootfs(b)
	load := launch.Op{Code: launch.OpSeccomp, Step: "seccomp", Fd: -1, Data: filter(unix.SYS_PERSONALITY, 1)}
	medians(b, func() time.Duration {
		plan := container("")
		plan.Args = []string{"true"}
		plan.Ops[0].Flags |= unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
		plan.Ops = slices.Insert(plan.Ops, len(plan.Ops)-3, load)
		root := openRoot(b, dir)
		begin := time.Now()
		start(b, plan, []*os.File{root}, true).finish(b)
		took := time.Since(begin)
		root.Close()
		return took
	})
}

// BenchmarkExec is an exec probe in a running container, to its exit.
func BenchmarkExec(b *testing.B) {
	newLab(b)
	dir := rootfs(b)
	root := openRoot(b, dir)
	defer root.Close()
	c := sleeping(b, container("sleep 100000"), []*os.File{root})
	load := launch.Op{Code: launch.OpSeccomp, Step: "seccomp", Fd: -1, Data: filter(unix.SYS_PERSONALITY, 1)}
	plan := execInto(0, nil, "true")
	plan.Ops = slices.Insert(plan.Ops, len(plan.Ops)-3, load)
	medians(b, func() time.Duration {
		begin := time.Now()
		start(b, plan, []*os.File{c.file}, false).finish(b)
		return time.Since(begin)
	})
}

func openRoot(b *testing.B, dir string) *os.File {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	return os.NewFile(uintptr(fd), dir)
}
