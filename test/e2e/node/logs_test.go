package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestLogLinesB35(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.start(nil, "sh", "-c", "echo one; echo two >&2; printf '\\n'; printf 'a\\rb\\n'; printf unfinished")
	c.wait(20 * time.Second)
	var got []string
	var last time.Time
	for _, line := range c.logLines() {
		got = append(got, line.stream+" "+line.tag+" "+line.text)
		if line.stream == "stdout" && line.at.Before(last) {
			t.Errorf("%q is earlier than the line before it", line.text)
		} else if line.stream == "stdout" {
			last = line.at
		}
	}
	text := strings.Join(got, "|")
	for _, want := range []string{"stdout F one", "stderr F two", "stdout F |", "stdout F a\rb", "stdout P unfinished"} {
		if !strings.Contains(text+"|", want) {
			t.Errorf("got %q, want %q in it", text, want)
		}
	}
	if len(got) != 5 {
		t.Errorf("got %d lines, %q, want 5", len(got), got)
	}
	// Long lines are cut, not lost.
	long := p.start(nil, "sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo after")
	long.wait(20 * time.Second)
	pieces := long.logLines()
	if len(pieces) < 3 || pieces[0].tag != "P" || pieces[len(pieces)-1].text != "after" || long.stream("stdout") != strings.Repeat("x", 100000)+"\nafter\n" {
		t.Errorf("a line of 100,000 bytes: got %d pieces, %d bytes", len(pieces), len(long.stream("stdout")))
	}
}

func TestLogFileIsThereWhenStartReturnsB36(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.create(func(c *criv1.ContainerConfig) { c.LogPath = "a/b/c.log" }, "sleep", "1000")
	if _, err := os.Stat(c.logPath()); err == nil {
		t.Error("the log is there before the start")
	}
	if err := c.tryStart(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(c.logPath())
	if err != nil || info.Mode() != 0o640 {
		t.Errorf("the log: got %v, %v, want a file of mode 0640", info, err)
	}
	if s := c.status(); s.GetLogPath() != c.logPath() {
		t.Errorf("status log path: got %q, want %q", s.GetLogPath(), c.logPath())
	}
	c.stop(0)
	c.remove()
	if _, err := os.Stat(c.logPath()); err != nil {
		t.Errorf("the log after removal: %v", err)
	}
	// Without a path there is no log, and output goes nowhere.
	if got := p.start(func(c *criv1.ContainerConfig) { c.LogPath = "" }, "echo", "x").wait(20 * time.Second); got.GetExitCode() != 0 || got.GetLogPath() != "" {
		t.Errorf("without log_path: got %v", got)
	}
}

// What is in the log directory may have been put there by somebody who can't write elsewhere (CVE-2025-0750).
func TestLogPathFollowsNoLink(t *testing.T) {
	p := onNode(t).pod(t)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.MkdirAll(p.config.GetLogDirectory(), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"file.log": outside, "dir": filepath.Dir(outside)} {
		if err := os.Symlink(target, filepath.Join(p.config.GetLogDirectory(), name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"file.log", "dir/outside"} {
		c := p.create(func(c *criv1.ContainerConfig) { c.LogPath = path }, "echo", "x")
		if err := c.tryStart(); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("log_path %s: got %v, want a refusal that names it", path, err)
		}
		if _, err := os.Lstat(outside); err == nil {
			t.Errorf("log_path %s made %s", path, outside)
		}
	}
}

// A log that can't be written to holds nothing up (B37).
func TestFullLogDiskDoesNotBlockTheContainer(t *testing.T) {
	n := onNode(t)
	dir := filepath.Join(t.TempDir(), "small")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	mountSmall(t, dir)
	p := n.pod(t, func(c *criv1.PodSandboxConfig) { c.LogDirectory = dir })
	c := p.start(nil, "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' 'y' | fold -w 99; exit 6")
	if s := c.wait(30 * time.Second); s.GetExitCode() != 6 {
		t.Errorf("got code %d, want 6: the writer ended in its own time", s.GetExitCode())
	}
}

// mountSmall makes dir a tmpfs of 256 KiB for logs until the test ends.
func mountSmall(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	if err := labelAs(dir, podLogs); err != nil {
		t.Error(err)
	}
	t.Cleanup(func() {
		// The anchor lets go of a log a moment after its container is removed.
		err := unix.Unmount(dir, 0)
		for end := time.Now().Add(5 * time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(end); err = unix.Unmount(dir, 0) {
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			t.Errorf("unmount the log disk: %v", err)
		}
	})
}

func TestStdinIsEmptyUnlessAskedFor(t *testing.T) {
	p := onNode(t).pod(t)
	if got := p.output(nil, "sh", "-c", "read x || echo end"); got != "end\n" {
		t.Errorf("without stdin: got %q, want an end of file", got)
	}
	c := p.start(func(c *criv1.ContainerConfig) { c.Stdin = true }, "sh", "-c", "echo waiting; read x || echo end")
	eventually(t, 10*time.Second, "start", func() bool { return c.stream("stdout") == "waiting\n" })
	time.Sleep(300 * time.Millisecond)
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING {
		t.Errorf("with stdin and nobody attached: got %v, want it waiting", s.GetState())
	}
}

// A program may open its standard streams anew, as nginx's log files do, whoever it runs as.
func TestStandardStreamsCanBeReopened(t *testing.T) {
	p := onNode(t).pod(t)
	for _, uid := range []int64{0, 1000} {
		c := p.start(func(c *criv1.ContainerConfig) {
			security(c).RunAsUser = &criv1.Int64Value{Value: uid}
		}, "sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr; echo fd > /proc/self/fd/1")
		if s := c.wait(20 * time.Second); s.GetExitCode() != 0 || c.stream("stdout") != "out\nfd\n" || c.stream("stderr") != "err\n" {
			t.Errorf("uid %d: got code %d, stdout %q, stderr %q", uid, s.GetExitCode(), c.stream("stdout"), c.stream("stderr"))
		}
	}
}

func TestFastOutputIsWhole(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.start(nil, "seq", "200000")
	c.wait(30 * time.Second)
	want := 1
	for _, line := range c.logLines() {
		if line.text != fmt.Sprint(want) {
			t.Fatalf("line %d: got %q", want, line.text)
		}
		want++
	}
	if want != 200001 {
		t.Errorf("got %d lines, want 200,000", want-1)
	}
}

// What the log has of a container that is gone stays readable under its name; a new attempt appends to its own.
func TestSecondAttemptHasALogOfItsOwn(t *testing.T) {
	p := onNode(t).pod(t)
	config := p.containerConfig(nil, "echo", "first")
	id, err := p.tryCreate(config)
	if err != nil {
		t.Fatal(err)
	}
	first := &container{p: p, id: id, config: config}
	if err := first.tryStart(); err != nil {
		t.Fatal(err)
	}
	first.wait(20 * time.Second)
	_, err = p.tryCreate(config)
	if err != nil {
		t.Errorf("the same attempt again: got %v, want the finished container", err)
	}
	again := p.containerConfig(func(c *criv1.ContainerConfig) {
		c.Metadata = &criv1.ContainerMetadata{Name: config.GetMetadata().GetName(), Attempt: 1}
	}, "echo", "second")
	second := p.create(func(c *criv1.ContainerConfig) { c.Metadata, c.LogPath = again.GetMetadata(), config.GetLogPath() }, "echo", "second")
	if second.id == first.id {
		t.Fatal("another attempt is the same container")
	}
	if err := second.tryStart(); err != nil {
		t.Fatal(err)
	}
	second.wait(20 * time.Second)
	if got := first.stream("stdout"); got != "first\nsecond\n" {
		t.Errorf("a log that two attempts share: got %q, want it appended to", got)
	}
}
