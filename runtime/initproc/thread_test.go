package initproc

import (
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/podwright/podwright/runtime/launch"
)

// Go's runtime takes the processor from who has had it for 10 ms, by the clock on the wall, and hands it to another thread,
// which it starts if need be: the kernel makes no thread of a process that has joined a PID namespace. Init is left alone.
// Each time would be one that the thread goes to sleep; what it does by itself is a handful.
func TestInitIsNotInterruptedByItsRuntime(t *testing.T) {
	newLab(t)
	for range 12 * runtime.NumCPU() { // or it has a processor to itself, and is interrupted seldom
		hog := exec.Command(busybox, "sh", "-c", "while :; do :; done")
		if err := hog.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { hog.Process.Kill(); hog.Wait() })
	}
	_, table := oneRoot(t)
	// run gives the switches of an init that makes so many calls, and how long they took.
	run := func(calls int) (string, time.Duration) {
		plan := container("")
		plan.Args = []string{"grep", "^voluntary", "/proc/self/status"}
		long := slices.Repeat([]launch.Op{{Code: launch.OpUmask, Step: "umask", Fd: -1, Number: 0o22}}, calls)
		end := len(plan.Ops) - 1
		plan.Ops = slices.Concat(plan.Ops[:end], long, plan.Ops[end:])
		began := time.Now()
		said := strings.Fields(start(t, plan, table, true).finish(t))
		if len(said) < 2 {
			t.Fatalf("got %q", said)
		}
		return said[1], time.Since(began)
	}
	// As many as take long, on an emulated machine too; each takes a kilobyte of init.
	const few, most, long = 20_000, 300_000, 8 * time.Second
	_, took := run(few)
	said, _ := run(min(int(few*long/took), most))
	if switches, err := strconv.Atoi(said); err != nil || switches > 15 {
		t.Errorf("got %q voluntary switches, want a handful", said)
	}
}
