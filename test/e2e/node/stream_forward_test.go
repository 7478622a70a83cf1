package node

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
)

// forwarding is one port-forward session over SPDY.
type forwarding struct {
	conn httpstream.Connection
	next int
}

// forwarded is one connection in it.
type forwarded struct {
	data, failure httpstream.Stream
}

func (p *pod) forwardURL(ports ...int32) (string, error) {
	resp, err := p.n.PortForward(ctx(p.t), &criv1.PortForwardRequest{PodSandboxId: p.id, Port: ports})
	return resp.GetUrl(), err
}

func (p *pod) forward(ports ...int32) *forwarding {
	p.t.Helper()
	url, err := p.forwardURL(ports...)
	if err != nil {
		p.t.Fatal(err)
	}
	conn, _, err := dialSPDY(url, "portforward.k8s.io")
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	return &forwarding{conn: conn}
}

func (f *forwarding) connect(port int) (*forwarded, error) {
	headers := http.Header{}
	headers.Set("port", strconv.Itoa(port))
	headers.Set("requestID", strconv.Itoa(f.next))
	f.next++
	headers.Set("streamType", "error")
	failure, err := f.conn.CreateStream(headers)
	if err != nil {
		return &forwarded{}, err
	}
	failure.Close()
	headers.Set("streamType", "data")
	data, err := f.conn.CreateStream(headers)
	return &forwarded{data: data, failure: failure}, err
}

// said is what the connection's error stream says by its end.
func (f *forwarded) said() string {
	text, _ := io.ReadAll(f.failure)
	return string(text)
}

// refusal is what the error stream says of a connection that is refused. The refusal may come before the library has
// accepted the data stream, which then is reset.
func (f *forwarding) refusal(port int) string {
	c, err := f.connect(port)
	if err != nil && c.failure == nil {
		return err.Error()
	}
	return c.said()
}

// server starts a container that answers connections to address, and waits until it does.
func (p *pod) server(address, how string) *container {
	p.t.Helper()
	c := p.start(nil, "/bin/probe", "serve", address, how)
	eventually(p.t, 10*time.Second, "server", func() bool { return strings.Contains(c.stream("stdout"), "serving") })
	return c
}

// talk sends text, ends its side, and gives the answer.
func (f *forwarding) talk(t *testing.T, port int, text string) string {
	t.Helper()
	c, err := f.connect(port)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c.data, text)
	c.data.Close()
	answer, _ := io.ReadAll(c.data)
	if said := c.said(); said != "" {
		t.Errorf("port %d: error stream says %q", port, said)
	}
	return string(answer)
}

// In the sandbox's namespace and nowhere else; 127.0.0.1, then ::1; the host's network too (B32).
func TestPortForwardReachesTheLoopbackOfTheSandboxB32(t *testing.T) {
	n := onNode(t)
	p := n.pod(t, ownNetwork)
	p.server("127.0.0.1:7001", "echo")
	p.server("[::1]:7002", "echo")
	f := p.forward()
	for _, port := range []int{7001, 7002} {
		if got := f.talk(t, port, "hello"); got != "hello" {
			t.Errorf("port %d: got %q", port, got)
		}
	}
	host := n.pod(t)
	host.server("127.0.0.1:7003", "echo")
	if got := host.forward().talk(t, 7003, "host"); got != "host" {
		t.Errorf("host network: got %q", got)
	}
	// What is on the host's loopback is not in the pod.
	if said := f.refusal(7003); !strings.Contains(said, "failed to connect to localhost:7003") || !strings.Contains(said, "refused") {
		t.Errorf("nobody listens: got %q", said)
	}
	if got := f.talk(t, 7001, "still here"); got != "still here" {
		t.Errorf("after a refused connection: got %q", got)
	}
}

// Either side may end first, and the other goes on.
func TestPortForwardHalfCloses(t *testing.T) {
	p := onNode(t).pod(t, ownNetwork)
	p.server("127.0.0.1:7001", "count")
	f := p.forward()
	const size = 3 << 20
	if got, want := f.talk(t, 7001, strings.Repeat("x", size)), fmt.Sprint(size, " bytes"); got != want {
		t.Errorf("the client ends first: got %q, want %q", got, want)
	}
	first := p.server("127.0.0.1:7002", "first")
	c, err := f.connect(7002)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c.data); string(got) != "first" || err != nil {
		t.Errorf("the server ends first: got %q, %v", got, err)
	}
	io.WriteString(c.data, "after the end")
	c.data.Close()
	if said := c.said(); said != "" {
		t.Errorf("error stream: %q", said)
	}
	eventually(t, 10*time.Second, "rest at the server", func() bool { return strings.Contains(first.stream("stdout"), "first took 13") })
}

// A reset connection resets its own streams: no error, which would end the client's session, and the others go on.
func TestResetConnectionEndsAloneB32(t *testing.T) {
	p := onNode(t).pod(t, ownNetwork)
	p.server("127.0.0.1:7001", "reset")
	p.server("127.0.0.1:7002", "echo")
	f := p.forward()
	other, err := f.connect(7002)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		c, err := f.connect(7001)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c.data, "x")
		io.ReadAll(c.data)
		for range 10 { // towards the reset
			io.WriteString(c.data, "more")
		}
		if said := c.said(); said != "" {
			t.Errorf("error stream of a reset connection: %q", said)
		}
	}
	io.WriteString(other.data, "alive")
	other.data.Close()
	if got, err := io.ReadAll(other.data); string(got) != "alive" || err != nil {
		t.Errorf("the other connection: got %q, %v", got, err)
	}
}

// A connection ends at the server when its client resets it, leaves, or the sandbox stops.
func TestForwardedConnectionEndsWithItsClientOrSandbox(t *testing.T) {
	n := onNode(t)
	p := n.pod(t, ownNetwork)
	flood, hold := p.server("127.0.0.1:7001", "flood"), p.server("127.0.0.1:7002", "hold")
	ended := func(c *container, times int) func() bool {
		return func() bool { return strings.Count(c.stream("stdout"), "ended") >= times }
	}
	f := p.forward()
	for i, end := range []func(c *forwarded){
		func(c *forwarded) { c.data.Reset() },
		func(c *forwarded) { f.conn.Close() },
	} {
		for _, port := range []int{7001, 7002} {
			c, err := f.connect(port)
			if err != nil {
				t.Fatal(err)
			}
			io.ReadFull(c.data, make([]byte, 4))
			if port == 7001 && i == 1 {
				go io.Copy(io.Discard, c.data)
			}
			if i == 1 && port == 7001 {
				continue // both end with the session
			}
			end(c)
		}
		eventually(t, 10*time.Second, fmt.Sprint("end of the flood, way ", i), ended(flood, i+1))
		eventually(t, 10*time.Second, fmt.Sprint("end of the quiet one, way ", i), ended(hold, i+1))
	}
	f = p.forward()
	c, err := f.connect(7002)
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(c.data, make([]byte, 4))
	if _, err := n.StopPodSandbox(ctx(t), &criv1.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c.data); len(rest) != 0 || err != nil {
		t.Errorf("after the sandbox's end: got %q, %v", rest, err)
	}
	if said := f.refusal(7002); !strings.Contains(said, "not ready") {
		t.Errorf("a connection to a stopped sandbox: got %q", said)
	}
}

// WebSocket: two channels for each port of the request, which begin with the port's number.
func TestPortForwardOverWebSocketB34(t *testing.T) {
	p := onNode(t).pod(t, ownNetwork)
	p.server("127.0.0.1:7001", "echo")
	p.server("127.0.0.1:7002", "hold")
	url, err := p.forwardURL(7001, 7002)
	if err != nil {
		t.Fatal(err)
	}
	ws, err := dialWS(url, v4)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	websocket.Message.Send(ws, []byte("\x00ping"))
	want := map[byte]string{0: "ping", 1: "", 2: "held", 3: ""}
	got := map[byte]string{}
	ws.SetReadDeadline(time.Now().Add(10 * time.Second))
	for got[0] != "\x59\x1bping" || got[2] != "\x5a\x1bheld" {
		var data []byte
		if err := websocket.Message.Receive(ws, &data); err != nil {
			t.Fatalf("got %q, %v, want %q after the ports", got, err, want)
		}
		got[data[0]] += string(data[1:])
	}
	for channel, port := range map[byte]uint16{1: 7001, 3: 7002} {
		if got[channel] != string(binary.LittleEndian.AppendUint16(nil, port)) {
			t.Errorf("error channel %d: got %q", channel, got[channel])
		}
	}
}

func TestPortForwardRequestsAreRefused(t *testing.T) {
	n := onNode(t)
	p := n.pod(t, ownNetwork)
	for _, port := range []int32{0, -1, 65536} {
		_, err := p.forwardURL(port)
		wantError(t, err, codes.InvalidArgument, fmt.Sprint(port), "1-65535")
	}
	gone := &pod{t: t, n: n, id: "beef"}
	_, err := gone.forwardURL()
	wantError(t, err, codes.NotFound, "beef")
	p.server("127.0.0.1:7001", "echo")
	if said := p.forward(7002).refusal(7001); !strings.Contains(said, "7001") || !strings.Contains(said, "asked for") {
		t.Errorf("a port that was not asked for: got %q", said)
	}
	if _, err := n.StopPodSandbox(ctx(t), &criv1.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	_, err = p.forwardURL(7001)
	wantError(t, err, codes.FailedPrecondition, "not ready")
	if _, err := os.Stat(n.path("netns", p.id)); err == nil {
		t.Error("the namespace of the stopped sandbox is still pinned")
	}
}
