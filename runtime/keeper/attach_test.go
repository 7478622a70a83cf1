package keeper

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// withStdin gives a workload a FIFO to read, as the daemon does.
func (n *node) withStdin(w *workload) *workload {
	n.t.Helper()
	path := filepath.Join(n.dir, w.ID+".stdin")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		n.t.Fatal(err)
	}
	w.Stdin, w.StdinWrite = n.fifo(w, path)
	return w
}

// client is an attachment whose output is collected.
type client struct {
	*Attachment
	mu   sync.Mutex
	out  bytes.Buffer
	done chan error
}

func (c *client) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}

func (c *client) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.String()
}

func (n *node) attach(id string, stdin bool) *client {
	n.t.Helper()
	a, err := n.Attach(n.ctx(), id, stdin)
	if err != nil {
		n.t.Fatal(err)
	}
	c := &client{Attachment: a, done: make(chan error, 1)}
	n.t.Cleanup(func() { c.Close() })
	go func() { c.done <- c.Output(c, c) }() // ends with the attachment
	return c
}

func (n *node) ends(c *client, want error) {
	n.t.Helper()
	select {
	case err := <-c.done:
		if !errors.Is(err, want) {
			n.t.Errorf("the end of a client: got %v, want %v", err, want)
		}
	case <-time.After(20 * time.Second):
		n.t.Error("the client does not end")
	}
}

// restingFds counts what the keeper has open when its launches are over.
func (n *node) restingFds() int {
	n.t.Helper()
	count := -1
	n.eventually("rest after the starts", func() bool {
		was := count
		count = n.keeperFds()
		time.Sleep(100 * time.Millisecond)
		return count == was
	})
	return count
}

func (n *node) keeperFds() int {
	n.t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.hello().KeeperPID))
	if err != nil {
		n.t.Fatal(err)
	}
	return len(list)
}

// Input is whole and in order however slowly the container takes it, every client has all output, and the log too.
func TestAttachCarriesEveryByte(t *testing.T) {
	n := newNode(t)
	w := n.withStdin(n.sh("c1", "sleep 0.3; while read line; do echo $line; test $line = end && exit 4; done"))
	n.start(w)
	first, second := n.attach("c1", true), n.attach("c1", false)
	var text strings.Builder
	for i := range 20000 {
		fmt.Fprintf(&text, "line-%d\n", i)
	}
	text.WriteString("end\n")
	if err := first.Input(strings.NewReader(text.String())); err != nil {
		t.Fatal(err)
	}
	n.ends(first, nil)
	n.ends(second, nil)
	for name, got := range map[string]string{"first": first.text(), "second": second.text(), "log": w.text(t, "stdout")} {
		if got != text.String() {
			t.Errorf("%s: got %d bytes, want %d of what was written", name, len(got), text.Len())
		}
	}
	if e := n.exit("c1"); e.Code != 4 {
		t.Errorf("got %+v, want code 4", e)
	}
}

// A client that reads nothing holds up neither the container nor its log nor another client, and learns why it was let go.
func TestSlowAttachedClientIsLetGo(t *testing.T) {
	n := newNode(t)
	const times, lines = 500, 2000 // 4.4 MB, in pieces that a client with a processor for itself can take
	w := n.withStdin(n.sh("c1", fmt.Sprintf("read go; i=0; while [ $i -lt %d ]; do seq %d; usleep 3000; i=$((i+1)); done; exit 2", times, lines)))
	n.start(w)
	slow, err := n.Attach(n.ctx(), "c1", false)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	typist := n.attach("c1", true)
	typist.Input(strings.NewReader("go\n"))
	if e := n.exit("c1"); e.Code != 2 {
		t.Errorf("got %+v, want code 2", e)
	}
	n.ends(typist, nil)
	for name, text := range map[string]string{"the log": w.text(t, "stdout"), "the other client": typist.text()} {
		if got := strings.Count(text, "\n"); got != times*lines {
			t.Errorf("%s has %d lines, want %d", name, got, times*lines)
		}
	}
	got := &bytes.Buffer{}
	if err := slow.Output(got, nil); !errors.Is(err, ErrSlow) || got.Len() < 64<<10 {
		t.Errorf("got %v after %d bytes, want ErrSlow after what there was room for", err, got.Len())
	}
}

// What a client can cost is bounded (B31), and given back.
func TestAttachedClientsAreBoundedB31(t *testing.T) {
	n := newNode(t)
	const containers = wire.MaxAttached/wire.MaxAttachedOne + 1
	for i := range containers {
		n.start(n.withStdin(n.sh(fmt.Sprintf("c%d", i), "cat")))
	}
	before := n.restingFds()
	for range 3 {
		var all []*Attachment
		for i := range containers - 1 {
			for range wire.MaxAttachedOne {
				a, err := n.Attach(n.ctx(), fmt.Sprintf("c%d", i), true)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, a)
			}
		}
		for _, id := range []string{"c0", fmt.Sprintf("c%d", containers-1)} {
			if a, err := n.Attach(n.ctx(), id, true); !errors.Is(err, ErrLimit) {
				t.Errorf("one more to %s: got %v, %v, want ErrLimit", id, a, err)
			}
		}
		for _, a := range all {
			a.Close()
		}
		n.eventually("return to the descriptors of before", func() bool { return n.keeperFds() == before })
	}
	n.attach("c0", false).Close()
}

// Whoever leaves while the container takes no input is gone, with what it had typed.
func TestClientLeavesWhileItsInputWaits(t *testing.T) {
	n := newNode(t)
	n.start(n.withStdin(n.sh("c1", "sleep 1000")))
	before := n.restingFds()
	c := n.attach("c1", true)
	stuck := make(chan error, 1)
	go func() { stuck <- c.Input(bytes.NewReader(make([]byte, 8<<20))) }() // ends with the attachment
	select {
	case err := <-stuck:
		t.Fatalf("8 MiB were taken by nobody: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	c.Close()
	if err := <-stuck; err == nil {
		t.Error("the input ended without error")
	}
	n.eventually("return to the descriptors of before", func() bool { return n.keeperFds() == before })
}

// B33: by whatever way the first client with stdin leaves, and not before.
func TestStdinOnceEndsWithItsFirstClientB33(t *testing.T) {
	for name, leave := range map[string]func(n *node, c *client){
		"end of input":     func(_ *node, c *client) { c.Input(strings.NewReader("")) },
		"client":           func(_ *node, c *client) { c.Close() },
		"daemon":           func(n *node, c *client) { c.Close(); n.Client.Close(); n.connect() },
		"keeper killed":    func(n *node, _ *client) { n.killKeeper() },
		"keeper upgraded":  func(n *node, _ *client) { n.Upgrade(n.ctx()) },
		"closed by daemon": func(n *node, _ *client) { n.CloseStdin(n.ctx(), "once") },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			for id, once := range map[string]bool{"once": true, "many": false} {
				w := n.withStdin(n.sh(id, "cat; exit 6"))
				w.StdinOnce = once
				n.start(w)
			}
			n.attach("once", false).Close() // has no part in it
			other := n.attach("once", true)
			c := n.attach("once", true)
			n.attach("many", true).Close()
			io.WriteString(stdinOf{c}, "text\n")
			n.eventually("echo", func() bool { return c.text() == "text\n" })
			leave(n, c)
			if e := n.exit("once"); e.Code != 6 {
				t.Errorf("got %+v, want code 6 after the end of input", e)
			}
			other.Close()
			if _, exited, err := n.Exit(n.ctx(), "many"); exited || err != nil {
				t.Errorf("without stdin_once: exited %t, %v, want it waiting for more", exited, err)
			}
			again := n.attach("many", true)
			io.WriteString(stdinOf{again}, "more\n")
			n.eventually("echo of a second client", func() bool { return again.text() == "more\n" })
		})
	}
}

// stdinOf writes without ending the input.
type stdinOf struct{ c *client }

func (s stdinOf) Write(p []byte) (int, error) {
	_, err := s.c.socket.Write(append([]byte{wire.FrameStdin}, p...))
	return len(p), err
}

// Before its first client comes, nobody's end is that of stdin.
func TestStdinOnceWaitsForItsClientB33(t *testing.T) {
	n := newNode(t)
	w := n.withStdin(n.sh("c1", "cat; exit 6"))
	w.StdinOnce = true
	n.start(w)
	n.killKeeper()
	c := n.attach("c1", true)
	io.WriteString(stdinOf{c}, "text\n")
	n.eventually("echo", func() bool { return c.text() == "text\n" })
	c.Close()
	n.exit("c1")
	if _, err := n.Attach(n.ctx(), "c1", true); !errors.Is(err, ErrState) {
		t.Errorf("attach to an exited one: got %v, want ErrState", err)
	}
	if _, err := n.Attach(n.ctx(), "c2", true); !errors.Is(err, ErrUnknown) {
		t.Errorf("attach to an unknown one: got %v, want ErrUnknown", err)
	}
}

// A keeper that is replaced ends its clients, who learn that; the next one serves them, on a terminal too.
func TestAttachAcrossKeepers(t *testing.T) {
	for name, replace := range map[string]func(n *node){
		"killed":   func(n *node) { n.killKeeper() },
		"upgraded": func(n *node) { n.Upgrade(n.ctx()) },
		"anchor dies": func(n *node) {
			before := n.hello()
			unix.Kill(before.AnchorPID, unix.SIGKILL)
			n.eventually("another pair", func() bool {
				now, err := n.Hello(n.ctx())
				return err == nil && now.AnchorPID == before.KeeperPID && n.Connected()
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.start(n.withStdin(n.sh("pipes", "while read line; do echo got $line; done")))
			n.start(n.terminal("tty", wire.KindContainer, "while read line; do stty size; echo got $line; done"))
			for _, id := range []string{"pipes", "tty"} {
				c := n.attach(id, true)
				io.WriteString(stdinOf{c}, "one\n")
				n.eventually("an answer", func() bool { return strings.Contains(c.text(), "got one") })
				defer n.ends(c, ErrDisconnected)
			}
			replace(n)
			for _, id := range []string{"pipes", "tty"} {
				c := n.attach(id, true)
				if err := c.Resize(123, 45); err != nil {
					t.Error(err)
				}
				io.WriteString(stdinOf{c}, "two\n")
				n.eventually("an answer of "+id, func() bool { return strings.Contains(c.text(), "got two") })
				if id == "tty" && !strings.Contains(c.text(), "45 123\r\n") {
					t.Errorf("got %q, want the size in it", c.text())
				}
				c.Close()
			}
		})
	}
}

// FuzzOutput: whatever comes, frames of one kind behind each other are what they carry.
func FuzzOutput(f *testing.F) {
	f.Add([]byte("o\x00\x02aao\x00\x01be\x00\x01cq\x00\x00"), uint16(3))
	f.Add([]byte("o\xff\xff"), uint16(1))
	f.Fuzz(func(t *testing.T, raw []byte, piece uint16) {
		var want, got [256][]byte
		for rest := raw; len(rest) >= wire.OutputHeader; {
			n := int(rest[1])<<8 | int(rest[2])
			if n > wire.OutputBytes || len(rest) < wire.OutputHeader+n {
				break
			}
			want[rest[0]] = append(want[rest[0]], rest[wire.OutputHeader:wire.OutputHeader+n]...)
			rest = rest[wire.OutputHeader+n:]
		}
		r := bufio.NewReaderSize(&pieces{raw, int(piece) + 1}, 32<<10)
		text := make([]byte, 0, 32<<10)
		for {
			kind, err := nextOutput(r, &text)
			if err != nil {
				break
			}
			got[kind] = append(got[kind], text...)
		}
		for kind := range want {
			if !bytes.Equal(got[kind], want[kind]) {
				t.Fatalf("kind %d: got %q, want %q", kind, got[kind], want[kind])
			}
		}
	})
}

// pieces is read a few bytes at a time.
type pieces struct {
	rest []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.size)], p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
