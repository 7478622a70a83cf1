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

// medians runs f and reports the middle of the times it returns: to the workload's execve and to its end.
func medians(b *testing.B, f func() (started, ended time.Duration)) {
	var starts, ends []time.Duration
	before := childrenCPU(b)
	for b.Loop() {
		started, ended := f()
		starts, ends = append(starts, started), append(ends, ended)
	}
	b.ReportMetric(float64((childrenCPU(b)-before).Microseconds())/float64(len(ends)), "cpu-µs")
	slices.Sort(starts)
	slices.Sort(ends)
	b.ReportMetric(float64(starts[len(starts)/2].Microseconds()), "started-p50-µs")
	b.ReportMetric(float64(starts[len(starts)/20].Microseconds()), "started-p5-µs")
	b.ReportMetric(float64(ends[len(ends)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(ends[len(ends)/20].Microseconds()), "p5-µs")
}

// childrenCPU is the processor time of all children that were reaped.
func childrenCPU(b *testing.B) time.Duration {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkBusyboxTrue is fork, exec and exit of the workload alone: the floor of the other benchmarks.
func BenchmarkBusyboxTrue(b *testing.B) {
	newLab(b)
	exe, err := os.Open(lab.image)
	if err != nil {
		b.Fatal(err)
	}
	defer exe.Close()
	medians(b, func() (started, ended time.Duration) {
		begin := time.Now()
		pid, pidfd, err := spawn.Start(&spawn.Command{Exe: int(exe.Fd()), Argv: []string{"true"}, Cgroup: -1})
		if err != nil {
			b.Fatal(err)
		}
		started = time.Since(begin)
		unix.Wait4(pid, nil, 0, nil)
		unix.Close(pidfd)
		return started, time.Since(begin)
	})
}

// BenchmarkContainer is a whole container: namespaces, all mounts and masks, pivot, identity, filter, `true`, exit.
func BenchmarkContainer(b *testing.B) {
	newLab(b)
	dir := rootfs(b)
	load := launch.Op{Code: launch.OpSeccomp, Step: "seccomp", Fd: -1, Data: filter(unix.SYS_PERSONALITY, 1)}
	medians(b, func() (started, ended time.Duration) {
		plan := container("")
		plan.Args = []string{"true"}
		plan.Ops[0].Flags |= unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
		plan.Ops = slices.Insert(plan.Ops, len(plan.Ops)-3, load)
		root := openRoot(b, dir)
		begin := time.Now()
		l := start(b, plan, []*os.File{root}, true)
		started = time.Since(begin)
		l.finish(b)
		ended = time.Since(begin)
		root.Close()
		return started, ended
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
	medians(b, func() (started, ended time.Duration) {
		begin := time.Now()
		l := start(b, plan, []*os.File{c.file}, false)
		started = time.Since(begin)
		l.finish(b)
		return started, time.Since(begin)
	})
}

func openRoot(b *testing.B, dir string) *os.File {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	return os.NewFile(uintptr(fd), dir)
}
