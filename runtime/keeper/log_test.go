package keeper

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// B38.
func TestReopenStormLosesNothing(t *testing.T) {
	n := newNode(t)
	w := n.counters(1)[0]
	for i := range 100 {
		if err := os.Rename(w.log, fmt.Sprintf("%s.%03d", w.log, i)); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(w.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.ReopenLog(n.ctx(), w.ID, f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		time.Sleep(2 * time.Millisecond)
	}
	n.stop([]*workload{w}, true)
	var whole []byte
	for i := range 100 {
		text, err := os.ReadFile(fmt.Sprintf("%s.%03d", w.log, i))
		if err != nil {
			t.Fatal(err)
		}
		whole = append(whole, text...)
	}
	last, _ := os.ReadFile(w.log)
	os.WriteFile(w.log, append(whole, last...), 0o640)
	w.verify(t, 0)
}

// B37: a full disk costs log lines, not a container's life.
func TestFullLogDiskBlocksNobody(t *testing.T) {
	n := newNode(t)
	disk := filepath.Join(n.dir, "disk")
	os.Mkdir(disk, 0o700)
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	w := n.sh("c1", "yes | head -n 500000; touch "+n.dir+"/written; sleep 1000")
	w.Log = n.open(w, filepath.Join(disk, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND)
	n.start(w)
	n.eventually("the end of the output", func() bool { _, err := os.Stat(n.dir + "/written"); return err == nil })
	n.eventually("lost lines", func() bool {
		list, err := n.List(n.ctx())
		return err == nil && len(list) == 1 && list[0].LostLines > 400000 && list[0].LostLines < 500000
	})
}

// A container that writes without end takes its turns like every other.
func TestLoudContainersStarveNobody(t *testing.T) {
	n := newNode(t)
	for i := range 4 {
		w := n.workload(fmt.Sprintf("loud%d", i), "exec", "yes")
		path := filepath.Join(n.dir, w.ID)
		unix.Mkfifo(path, 0o600)
		w.StdoutRead, w.Stdout = n.fifo(w, path)
		n.start(w)
	}
	quiet := n.sh("quiet", "for i in 1 2 3 4 5; do echo $i; done; exit 2")
	begin := time.Now()
	n.start(quiet)
	if e := n.exit("quiet"); e.Code != 2 || quiet.text(t, "stdout") != "1\n2\n3\n4\n5\n" {
		t.Errorf("got %+v, %q", e, quiet.text(t, "stdout"))
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}
