package node

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/wire"
)

func (c *container) tryAttachURL(change func(*criv1.AttachRequest)) (string, error) {
	req := &criv1.AttachRequest{ContainerId: c.id, Stdout: true}
	if change != nil {
		change(req)
	}
	resp, err := c.p.n.Attach(ctx(c.p.t), req)
	return resp.GetUrl(), err
}

func (c *container) attachURL(change func(*criv1.AttachRequest)) string {
	c.p.t.Helper()
	url, err := c.tryAttachURL(change)
	if err != nil {
		c.p.t.Fatal(err)
	}
	return url
}

func withStdin(c *criv1.ContainerConfig) { c.Stdin = true }

// Input reaches the container, its output every client, and the session ends with the container.
func TestAttachSharesTheContainersStreams(t *testing.T) {
	c := onNode(t).pod(t).start(withStdin, "sh", "-c", "while read line; do echo got $line; [ $line = end ] && exit 3; done")
	first := mustOpenSPDY(t, c.attachURL(func(r *criv1.AttachRequest) { r.Stdin, r.Stderr = true, true }), v4, "error", "stdin", "stdout", "stderr")
	second := mustOpenSPDY(t, c.attachURL(nil), v4, "error", "stdout")
	// A session begins some time after its client has made the streams.
	eventually(t, 20*time.Second, "output for both", func() bool {
		io.WriteString(first.streams["stdin"], "one\n")
		return strings.Contains(first.out["stdout"].String(), "got one\n") && strings.Contains(second.out["stdout"].String(), "got one\n")
	})
	second.conn.Close()
	io.WriteString(first.streams["stdin"], "end\n")
	first.end()
	if s := c.wait(10 * time.Second); s.GetExitCode() != 3 {
		t.Errorf("exit code: got %d, want 3", s.GetExitCode())
	}
	if got, log := first.out["stdout"].String(), c.stream("stdout"); got != log || !strings.HasSuffix(got, "got one\ngot end\n") {
		t.Errorf("got %q, and in the log %q, want the same with an end", got, log)
	}
}

func TestAttachRequestsAreRefusedBeforeAURLIsGiven(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.sleeper(nil)
	_, err := c.tryAttachURL(func(r *criv1.AttachRequest) { r.Tty, r.Stderr = true, true })
	wantError(t, err, codes.InvalidArgument, "tty", "stderr")
	_, err = c.tryAttachURL(func(r *criv1.AttachRequest) { r.Stdout = false })
	wantError(t, err, codes.InvalidArgument, "stdin", "stdout", "stderr")
	_, err = c.tryAttachURL(func(r *criv1.AttachRequest) { r.ContainerId = "beef" })
	wantError(t, err, codes.NotFound, "beef")
	created := p.create(nil, "sleep", "1000")
	_, err = created.tryAttachURL(nil)
	wantError(t, err, codes.FailedPrecondition, created.id, "not running")
	_, err = c.tryAttachURL(func(r *criv1.AttachRequest) { r.Tty = true })
	wantError(t, err, codes.InvalidArgument, c.id, "tty is true", "must be false")
	_, err = c.tryAttachURL(func(r *criv1.AttachRequest) { r.Stdin = true })
	wantError(t, err, codes.InvalidArgument, c.id, "stdin", "without")
	// It may have ended since.
	url := c.attachURL(nil)
	c.stop(0)
	s := mustOpenSPDY(t, url, v4, "error", "stdout")
	if reason, message := exitStatus(t, s.end()); reason != "InternalError" || !strings.Contains(message, "exited, not running") {
		t.Errorf("ended meanwhile: got %s %q", reason, message)
	}
}

// A terminal: what is typed, what is shown and the window's size, and all of that again for the next client.
func TestAttachToATerminal(t *testing.T) {
	c := onNode(t).pod(t).start(func(c *criv1.ContainerConfig) { c.Tty, c.Stdin, c.StdinOnce = true, true, true },
		"sh", "-c", "trap '/bin/probe winsize' WINCH; echo ready; while :; do read -t 1 line && echo got $line; done")
	eventually(t, 10*time.Second, "start", func() bool { return c.stream("stdout") == "ready\n" })
	for _, size := range []string{"123x45", "90x30"} {
		var columns, rows int
		fmt.Sscanf(size, "%dx%d", &columns, &rows)
		s := mustOpenSPDY(t, c.attachURL(func(r *criv1.AttachRequest) { r.Stdin, r.Tty = true, true }), v4, "error", "stdin", "stdout", "resize")
		s.resize(columns, rows)
		eventually(t, 10*time.Second, "size", func() bool { return strings.Contains(s.out["stdout"].String(), size+"\r\n") })
		io.WriteString(s.streams["stdin"], size+"\n")
		eventually(t, 10*time.Second, "answer", func() bool { return strings.Contains(s.out["stdout"].String(), "got "+size+"\r\n") })
		s.conn.Close() // stdin_once is not for terminals
	}
	if got := c.stream("stdout"); !strings.Contains(got, "got 90x30\n") {
		t.Errorf("the log: got %q", got)
	}
}

// B33: however the first client with stdin leaves, the container reads an end of file; without stdin_once it never does.
func TestStdinOnceClosesWithTheFirstClientB33(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	once := func(c *criv1.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }
	open := func(c *container) *stream {
		s := mustOpenSPDY(t, c.attachURL(func(r *criv1.AttachRequest) { r.Stdin, r.Stderr = true, true }), v4, "error", "stdin", "stdout", "stderr")
		io.WriteString(s.streams["stdin"], "in\n")
		eventually(t, 10*time.Second, "echo", func() bool { return strings.Contains(s.out["stdout"].String(), "in\n") })
		return s
	}
	c := p.start(once, "sh", "-c", "cat; echo last; exit 5")
	mustOpenSPDY(t, c.attachURL(nil), v4, "error", "stdout").conn.Close() // has no part in it
	s := open(c)
	io.WriteString(s.streams["stdin"], "more\n")
	s.streams["stdin"].Close()
	if code, message := exitStatus(t, s.end()); code != "0" || s.out["stdout"].String() != "in\nmore\nlast\n" {
		t.Errorf("end of input: got %s %q, output %q", code, message, s.out["stdout"])
	}
	if got := c.wait(10 * time.Second).GetExitCode(); got != 5 {
		t.Errorf("exit code: got %d, want 5", got)
	}
	c = p.start(once, "sh", "-c", "cat; exit 5")
	open(c).conn.Close()
	if got := c.wait(10 * time.Second).GetExitCode(); got != 5 {
		t.Errorf("the client vanished: got exit code %d, want 5", got)
	}
	c = p.start(once, "sh", "-c", "cat; sleep 1000")
	open(c).conn.Close()
	eventually(t, 10*time.Second, "end of input", func() bool {
		resp, err := c.tryExec(30, "pidof", "sleep")
		return err == nil && resp.GetExitCode() == 0
	})
	s = mustOpenSPDY(t, c.attachURL(func(r *criv1.AttachRequest) { r.Stdin = true }), v4, "error", "stdin", "stdout")
	if reason, message := exitStatus(t, s.end()); reason != "InternalError" || !strings.Contains(message, "stdin") {
		t.Errorf("stdin again: got %s %q, want a refusal", reason, message)
	}

	c = p.start(withStdin, "sh", "-c", "cat; exit 5")
	for range 3 {
		s := open(c)
		s.streams["stdin"].Close()
		time.Sleep(50 * time.Millisecond)
		s.conn.Close()
	}
	if got := c.status().GetState(); got != criv1.ContainerState_CONTAINER_RUNNING {
		t.Errorf("without stdin_once: got %v, want it waiting for the next client", got)
	}
}

// A client that reads nothing holds up neither the container nor its log, and learns why it was let go; one whose input
// the container does not take is gone when it leaves.
func TestSlowAttachClientsHoldUpNobody(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	c := p.start(withStdin, "sh", "-c", "while ! read -t 1 go; do echo; done; head -c 60000000 /dev/zero | tr '\\0' 'y' | fold -w 99; exit 6")
	slow, err := openSPDY(c.attachURL(nil), v4, []string{"error", "stdout"}, "stdout")
	if err != nil {
		t.Fatal(err)
	}
	slow.t = t
	defer slow.conn.Close()
	if _, err := slow.streams["stdout"].Read(make([]byte, 1)); err != nil { // or its session might not have begun
		t.Fatal(err)
	}
	typist := mustOpenSPDY(t, c.attachURL(func(r *criv1.AttachRequest) { r.Stdin, r.Stdout = true, false }), v4, "error", "stdin")
	begin := time.Now()
	io.WriteString(typist.streams["stdin"], "go\n")
	if s := c.wait(30 * time.Second); s.GetExitCode() != 6 {
		t.Errorf("got code %d, want 6", s.GetExitCode())
	}
	t.Logf("60 MB in %s beside a client that does not read", time.Since(begin))
	if got := len(c.stream("stdout")); got < 60000000 {
		t.Errorf("the log has %d bytes, want all", got)
	}
	slow.read.Go(func() { io.Copy(slow.out["stdout"], slow.streams["stdout"]) })
	if reason, message := exitStatus(t, slow.end()); reason != "InternalError" || !strings.Contains(message, "more slowly") {
		t.Errorf("the slow client: got %s %q", reason, message)
	}

	deaf := p.start(withStdin, "sleep", "1000")
	ws, err := dialWS(deaf.attachURL(func(r *criv1.AttachRequest) { r.Stdin = true }), v4)
	if err != nil {
		t.Fatal(err)
	}
	stuck := make(chan error, 1)
	go func() { // ends with the connection
		err := error(nil)
		for text := make([]byte, 1+16<<10); err == nil; {
			err = websocket.Message.Send(ws, text)
		}
		stuck <- err
	}()
	time.Sleep(300 * time.Millisecond)
	deaf.exec("true")
	ws.SetDeadline(time.Now()) // Close would wait for its turn to write
	<-stuck
	ws.Close()
}

// A replaced keeper ends the sessions, with an error that says so; daemon and keeper may be others afterwards.
func TestAttachAcrossRestarts(t *testing.T) {
	n := ownNode(t, options{})
	n.watch(t)
	p := n.pod(t)
	pipes := p.start(withStdin, "sh", "-c", "while read line; do echo got $line; done")
	tty := p.start(func(c *criv1.ContainerConfig) { c.Stdin, c.Tty = true, true }, "sh", "-c", "while read line; do echo got $line; done")
	once := p.start(func(c *criv1.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }, "sh", "-c", "cat; exit 5")
	silent := p.start(func(c *criv1.ContainerConfig) { c.Stdin, c.LogPath = true, "" }, "sh", "-c", "while read line; do echo got $line; done")
	all := []*container{pipes, tty, silent}
	attach := func(c *container, text string) *stream {
		types := []string{"error", "stdin", "stdout"}
		if c.config.GetTty() {
			types = append(types, "resize")
		}
		s := mustOpenSPDY(t, c.attachURL(func(r *criv1.AttachRequest) { r.Stdin, r.Tty = true, c.config.GetTty() }), v4, types...)
		io.WriteString(s.streams["stdin"], text+"\n")
		eventually(t, 10*time.Second, "answer", func() bool { return strings.Contains(s.out["stdout"].String(), text) })
		return s
	}
	replaced := func(what string, replace func()) {
		var sessions []*stream
		for _, c := range all {
			sessions = append(sessions, attach(c, what))
		}
		replace()
		for _, s := range sessions {
			// A daemon that is killed says nothing.
			if status, want := s.end(), what != "daemon"; strings.Contains(status, "keeper was replaced") != want {
				t.Errorf("%s: got status %q", what, status)
			}
		}
		for _, c := range all {
			attach(c, "after "+what).conn.Close()
		}
	}
	replaced("upgrade", func() {
		if _, err := n.podwright("keeper", "upgrade"); err != nil {
			t.Fatal(err)
		}
	})
	replaced("keeper", func() {
		keeper, _ := n.pair(t)
		n.kill(t, keeper)
		eventually(t, 20*time.Second, "another keeper", func() bool {
			now, _, err := n.keeperPIDs()
			return err == nil && now != keeper && n.ready(t)
		})
	})
	attach(once, "text")
	replaced("daemon", func() { n.restart(t, unix.SIGKILL, nil) })
	if got := once.wait(10 * time.Second).GetExitCode(); got != 5 {
		t.Errorf("stdin_once after the daemon was killed: got code %d, want 5", got)
	}

	// Both at once: the terminal is lost, and attaching says so; pipes go on.
	keeper, anchor := n.pair(t)
	lasting := p.start(func(c *criv1.ContainerConfig) { c.Tty, c.Stdin = true, true }, "sh", "-c", "trap '' HUP; while :; do sleep 0.1; done")
	waiting := p.start(withStdin, "sh", "-c", "while :; do read line && echo got $line; sleep 0.1; done")
	over := p.start(func(c *criv1.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }, "sh", "-c", "cat; sleep 1000")
	n.kill(t, anchor, keeper)
	eventually(t, 20*time.Second, "another pair", func() bool {
		k, a, err := n.keeperPIDs()
		return err == nil && k != keeper && a != anchor && n.ready(t)
	})
	attach(waiting, "adopted").conn.Close()
	s := mustOpenSPDY(t, over.attachURL(func(r *criv1.AttachRequest) { r.Stdin = true }), v4, "error", "stdin", "stdout")
	if reason, message := exitStatus(t, s.end()); reason != "InternalError" || !strings.Contains(message, "no stdin") {
		t.Errorf("a stdin_once that was lost: got %s %q", reason, message)
	}
	s = mustOpenSPDY(t, lasting.attachURL(func(r *criv1.AttachRequest) { r.Tty = true }), v4, "error", "stdout", "resize")
	if reason, message := exitStatus(t, s.end()); reason != "InternalError" || !strings.Contains(message, "no streams") {
		t.Errorf("a lost terminal: got %s %q", reason, message)
	}
}

func openFiles(t *testing.T, pid int) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// restingFiles is what a keeper has open once its launches are over, of which some descriptors are.
func restingFiles(t *testing.T, keeper int) int {
	t.Helper()
	count := -1
	eventually(t, 10*time.Second, "rest after the starts", func() bool {
		was := count
		count = openFiles(t, keeper)
		time.Sleep(200 * time.Millisecond)
		return count == was
	})
	return count
}

// B31: what clients of one container cost is bounded, and given back; sessions that nobody comes for cost a token.
func TestAttachIsBoundedB31(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	c, other := p.start(withStdin, "cat"), p.start(withStdin, "cat")
	keeper, _ := n.pair(t)
	fds := func() int { return openFiles(t, keeper) }
	before := restingFiles(t, keeper)
	open := func(c *container) *stream {
		return mustOpenSPDY(t, c.attachURL(func(r *criv1.AttachRequest) { r.Stdin = true }), v4, "error", "stdin", "stdout")
	}
	var all []*stream
	for range wire.MaxAttachedOne {
		all = append(all, open(c))
	}
	eventually(t, 10*time.Second, "clients in the keeper", func() bool { return fds() >= before+3*wire.MaxAttachedOne })
	s := open(c)
	if reason, message := exitStatus(t, s.end()); reason != "InternalError" || !strings.Contains(message, fmt.Sprintf("at most %d", wire.MaxAttachedOne)) {
		t.Errorf("one more: got %s %q", reason, message)
	}
	io.WriteString(all[0].streams["stdin"], "text\n")
	for i, s := range all {
		eventually(t, 10*time.Second, fmt.Sprintf("output of client %d", i), func() bool { return s.out["stdout"].String() == "text\n" })
	}
	open(other).conn.Close()
	for _, s := range all {
		s.conn.Close()
	}
	eventually(t, 10*time.Second, "return to the descriptors of before", func() bool { return fds() == before })
	open(c).conn.Close()
}
