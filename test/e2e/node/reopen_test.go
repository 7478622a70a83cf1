package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *container) tryReopen() error {
	_, err := c.p.n.ReopenContainerLog(ctx(c.p.t), &criv1.ReopenContainerLogRequest{ContainerId: c.id})
	return err
}

// rotation renames a container's log as the kubelet does, and gives back all of its files as one.
type rotation struct {
	c     *container
	count int
}

func (r *rotation) old(i int) string { return fmt.Sprintf("%s.%04d", r.c.logPath(), i) }

func (r *rotation) rotate() {
	r.c.p.t.Helper()
	if err := os.Rename(r.c.logPath(), r.old(r.count)); err != nil {
		r.c.p.t.Fatal(err)
	}
	r.count++
	if err := r.c.tryReopen(); err != nil {
		r.c.p.t.Fatal(err)
	}
	if info, err := os.Stat(r.c.logPath()); err != nil || info.Mode() != 0o640 {
		r.c.p.t.Fatalf("the new log: got %v, %v, want a file of mode 0640", info, err)
	}
}

// join makes one log of all.
func (r *rotation) join() {
	r.c.p.t.Helper()
	var whole []byte
	last := r.old(r.count)
	if err := os.Rename(r.c.logPath(), last); err != nil {
		r.c.p.t.Fatal(err)
	}
	for i := range r.count + 1 {
		text, err := os.ReadFile(r.old(i))
		if err != nil {
			r.c.p.t.Fatal(err)
		}
		whole = append(whole, text...)
	}
	write(r.c.p.t, r.c.logPath(), string(whole))
}

// A log that is rotated all the time while lines, and parts of lines, are written: each is there once and in order, in
// pipes and on a terminal.
func TestReopenStormLosesAndDoublesNoLineB38(t *testing.T) {
	const rotations = 50
	for name, tty := range map[string]bool{"pipes": false, "terminal": true} {
		t.Run(name, func(t *testing.T) {
			c := onNode(t).pod(t).start(func(c *criv1.ContainerConfig) { c.Tty = tty }, "sh", "-c",
				"i=0; until [ -e /stop ]; do printf 'li'; echo ne $i; i=$((i+1)); done; echo of $i")
			r := &rotation{c: c}
			for deadline := time.Now().Add(time.Minute); c.status().GetState() == criv1.ContainerState_CONTAINER_RUNNING; {
				if time.Now().After(deadline) {
					t.Fatalf("after a minute and %d rotations it still writes", r.count)
				}
				if r.count == rotations {
					_, _ = c.tryExec(10, "touch", "/stop") // which may be killed with the container that it ends
				}
				if err := os.Rename(c.logPath(), r.old(r.count)); err != nil {
					t.Fatal(err)
				}
				if err := c.tryReopen(); err == nil {
					r.count++
					continue
				}
				// It ended meanwhile: no new file, and the kubelet renames the old one back.
				if _, err := os.Stat(c.logPath()); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("a log after a failed reopen: %v", err)
				}
				if err := os.Rename(r.old(r.count), c.logPath()); err != nil {
					t.Fatal(err)
				}
			}
			c.wait(30 * time.Second)
			r.join()
			lines := c.logLines()
			last := len(lines) - 1
			for i, line := range lines {
				want := fmt.Sprintf("line %d", i)
				if i == last {
					want = fmt.Sprintf("of %d", last)
				}
				if line.text != want || line.tag != "F" || line.stream != "stdout" {
					t.Fatalf("line %d: got %q, tag %s of %s", i, line.text, line.tag, line.stream)
				}
			}
			if last < rotations || r.count < rotations {
				t.Errorf("got %d lines in %d files, want many in %d", last, r.count+1, rotations)
			}
		})
	}
}

// Whoever was replaced in between, the daemon or its keeper.
func TestReopenAfterRestartsB38(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	w := startWriters(t, n, 1)
	r := &rotation{c: w.list[0]}
	r.rotate()
	n.restart(t, unix.SIGKILL, func() {})
	r.rotate()
	if _, err := n.podwright("keeper", "upgrade"); err != nil {
		t.Fatal(err)
	}
	r.rotate() // also while the daemon has no connection
	w.waitForLines(3)
	r.c.stop(10)
	r.join()
	w.lines(r.c, false)
}

// A keeper that is killed at the moment it is asked is asked again when it is another one.
func TestReopenWhileTheKeeperDies(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	w := startWriters(t, n, 1)
	r := &rotation{c: w.list[0]}
	for range 3 {
		keeper, _ := n.pair(t)
		n.kill(t, keeper)
		r.rotate()
		w.waitForLines(3)
	}
	r.c.stop(10)
	lost := 0
	r.join()
	last := -1
	for _, line := range r.c.logLines() {
		var number int
		if n, err := fmt.Sscanf(line.text, "line %d", &number); n == 1 && err == nil {
			if number <= last {
				t.Errorf("line %d after line %d", number, last)
			}
			lost += number - last - 1
			last = number
		}
	}
	if lost > 3 {
		t.Errorf("%d lines lost, want at most the one batch of each keeper that was killed", lost)
	}
}

func TestReopenIsRefusedAndLeavesNoFile(t *testing.T) {
	p := onNode(t).pod(t)
	absent := func(c *container) {
		t.Helper()
		if _, err := os.Lstat(c.logPath()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the log of %s is there: %v", c.config.GetMetadata().GetName(), err)
		}
	}
	created := p.create(nil, "true")
	wantError(t, created.tryReopen(), codes.FailedPrecondition, created.id, "created, not running")
	absent(created)
	exited := p.start(nil, "true")
	exited.wait(20 * time.Second)
	if err := os.Remove(exited.logPath()); err != nil {
		t.Fatal(err)
	}
	wantError(t, exited.tryReopen(), codes.FailedPrecondition, exited.id, "exited, not running")
	absent(exited)
	_, err := p.n.ReopenContainerLog(ctx(t), &criv1.ReopenContainerLogRequest{ContainerId: "beef"})
	wantError(t, err, codes.NotFound, "beef")
	silent := p.sleeper(func(c *criv1.ContainerConfig) { c.LogPath = "" })
	wantError(t, silent.tryReopen(), codes.FailedPrecondition, "log_path")

	// No directory is made, no link followed, and what is no file is no log.
	dir := filepath.Join(t.TempDir(), "outside")
	below := p.sleeper(func(c *criv1.ContainerConfig) { c.LogPath = "sub/0.log" })
	if err := os.RemoveAll(filepath.Dir(below.logPath())); err != nil {
		t.Fatal(err)
	}
	wantError(t, below.tryReopen(), codes.FailedPrecondition, "sub/0.log", "no such file or directory")
	if _, err := os.Stat(filepath.Dir(below.logPath())); err == nil {
		t.Error("the directory was made")
	}
	linked := p.sleeper(nil)
	if err := errors.Join(os.Remove(linked.logPath()), os.Symlink(dir, linked.logPath())); err != nil {
		t.Fatal(err)
	}
	wantError(t, linked.tryReopen(), codes.FailedPrecondition, linked.config.GetLogPath(), "symbolic link")
	if _, err := os.Lstat(dir); err == nil {
		t.Error("a file was made where the link led")
	}
	fifo := p.sleeper(nil)
	if err := errors.Join(os.Remove(fifo.logPath()), unix.Mkfifo(fifo.logPath(), 0o600)); err != nil {
		t.Fatal(err)
	}
	wantError(t, fifo.tryReopen(), codes.FailedPrecondition, fifo.config.GetLogPath())
}

// The keeper has no log of a terminal that was lost with keeper and anchor, and says so: the file is gone again.
func TestReopenThatTheKeeperRefusesLeavesNoFile(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	c := n.pod(t).start(func(c *criv1.ContainerConfig) { c.Tty = true }, "sh", "-c", "trap '' HUP; echo ready; while :; do sleep 0.1; done")
	eventually(t, 10*time.Second, "ready", func() bool { return c.stream("stdout") == "ready\n" })
	keeper, anchor := n.pair(t)
	n.kill(t, anchor, keeper)
	eventually(t, 20*time.Second, "another pair", func() bool {
		k, a, err := n.keeperPIDs()
		return err == nil && k != keeper && a != anchor && n.ready(t)
	})
	if err := os.Rename(c.logPath(), c.logPath()+".1"); err != nil {
		t.Fatal(err)
	}
	wantError(t, c.tryReopen(), codes.FailedPrecondition, c.id, "no log")
	if _, err := os.Stat(c.logPath()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the log after a refusal: got %v, want none", err)
	}
	// A file that was there is nobody's to remove.
	write(t, c.logPath(), "mine\n")
	wantError(t, c.tryReopen(), codes.FailedPrecondition, c.id)
	if got, err := os.ReadFile(c.logPath()); err != nil || string(got) != "mine\n" {
		t.Errorf("a file that was there: got %q, %v", got, err)
	}
}
