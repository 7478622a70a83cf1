package keeper

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podwright/podwright/runtime/wire"
)

// pss is the proportional memory of a process, in KiB.
func pss(t testing.TB, pid int) (kib int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "Pss: %d kB", &kib); err == nil {
			return kib
		}
	}
	t.Fatalf("no Pss in %q", text)
	return 0
}

// Promise 7: kilobytes per container, here with two FIFOs and a log each.
func TestMemoryOfManyChildren(t *testing.T) {
	if testing.Short() {
		t.Skip("starts 500 processes")
	}
	const count, mayGrow = 500, 10 // KiB per child, of keeper and anchor together
	n := newNode(t)
	h := n.hello()
	n.start(n.sh("warm", "true"))
	n.exit("warm")
	before := pss(t, h.KeeperPID) + pss(t, h.AnchorPID)
	for i := range count {
		n.start(n.sh(fmt.Sprintf("c%d", i), "echo; exec sleep 1000"))
	}
	time.Sleep(3 * time.Second) // for the garbage of the launches
	after := pss(t, h.KeeperPID) + pss(t, h.AnchorPID)
	t.Logf("keeper %d KiB, anchor %d KiB with %d children; grown by %d KiB", pss(t, h.KeeperPID), pss(t, h.AnchorPID), count, after-before)
	if after-before > count*mayGrow {
		t.Errorf("grown by %d KiB for %d children, want at most %d each", after-before, count, mayGrow)
	}
}

// BenchmarkLog is the way from a container's write to its log file, 100-byte lines.
func BenchmarkLog(b *testing.B) {
	n := newNode(b)
	source := n.dir + "/source"
	const size = 64 << 20
	line := strings.Repeat("x", 99) + "\n"
	if err := os.WriteFile(source, bytes.Repeat([]byte(line), size/len(line)), 0o600); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for i := 0; b.Loop(); i++ {
		w := n.sh(fmt.Sprintf("c%d", i), "cat "+source)
		n.start(w)
		n.exit(w.ID)
		os.Remove(w.log)
	}
}

// BenchmarkLaunch is one start and exit as an exec probe does them, less what init does: this init is a Go program of
// this test's size.
func BenchmarkLaunch(b *testing.B) {
	n := newNode(b)
	h := n.hello()
	keeper, anchor := cpuMicros(b, h.KeeperPID), cpuMicros(b, h.AnchorPID)
	for i := 0; b.Loop(); i++ {
		w := n.workload(fmt.Sprintf("c%d", i), "exec", "true")
		w.Kind = wire.KindExec
		n.start(w)
		n.exit(w.ID)
		if err := n.Forget(n.ctx(), w.ID); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpuMicros(b, h.KeeperPID)-keeper)/float64(b.N), "keeper-µs/op")
	b.ReportMetric(float64(cpuMicros(b, h.AnchorPID)-anchor)/float64(b.N), "anchor-µs/op")
}

// cpuMicros is the processor time of all threads of a process that live.
func cpuMicros(b *testing.B, pid int) (micros int) {
	b.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		b.Fatalf("threads of %d: %v, %v", pid, threads, err)
	}
	for _, thread := range threads {
		var nanos int
		if text, err := os.ReadFile(thread); err == nil {
			fmt.Sscan(string(text), &nanos)
		}
		micros += nanos / 1000
	}
	return micros
}

// BenchmarkHello is a round trip between daemon and keeper.
func BenchmarkHello(b *testing.B) {
	n := newNode(b)
	for b.Loop() {
		n.hello()
	}
}
