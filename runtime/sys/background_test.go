package sys

import (
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// The thread of one goroutine yields, and ends with it; no other is made less than it was.
func TestBackgroundIsOneThreadsAlone(t *testing.T) {
	// The system call gives 20 - nice, so that no answer is an error (getpriority(2)).
	priority := func(tid int) int {
		p, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
		if err != nil {
			return 0 // it ended meanwhile
		}
		return p
	}
	before := priority(0)
	want := max(before-BackgroundNice, 20-LowestNice)
	yielding := func(want int) map[int]bool {
		entries, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		list := map[int]bool{}
		for _, e := range entries {
			if tid, err := strconv.Atoi(e.Name()); err == nil && priority(tid) == want {
				list[tid] = true
			}
		}
		return list
	}
	earlier := yielding(want) // of another test, and about to end
	in, out := make(chan int), make(chan bool)
	for range 3 {
		// Owner: the test, which ends it by out.
		go OnThread(func() error {
			Background()
			if err := BackgroundIO(); err != nil {
				t.Error(err)
			}
			if got, _, _ := unix.RawSyscall(unix.SYS_IOPRIO_GET, ioprioOfProcess, 0, 0); got != ioprioLowest {
				t.Errorf("in the background: I/O priority %#x, want %#x", got, ioprioLowest)
			}
			in <- priority(0)
			<-out
			return nil
		})
	}
	for range 3 {
		if got := <-in; got != want {
			t.Errorf("in the background: priority %d, want %d", got, want)
		}
	}
	lowered := 0
	for tid := range yielding(want) {
		if !earlier[tid] {
			lowered++
		}
	}
	close(out)
	if lowered != 3 {
		t.Errorf("%d threads yield, want the 3 that were asked", lowered)
	}
}
