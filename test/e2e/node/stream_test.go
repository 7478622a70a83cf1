package node

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// stream is one SPDY session as a client sees it, its streams by type.
type stream struct {
	t    *testing.T
	conn httpstream.Connection

	streams map[string]httpstream.Stream
	out     map[string]*buffer
	read    sync.WaitGroup
}

// buffer is what came on one stream so far.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// dialSPDY upgrades url's connection to the first protocol the server takes.
func dialSPDY(url string, protocols ...string) (httpstream.Connection, string, error) {
	transport, err := spdy.NewRoundTripper(nil)
	if err != nil {
		return nil, "", err
	}
	req, err := http.NewRequest(http.MethodPost, url, nil)
	if err != nil {
		return nil, "", err
	}
	for _, p := range protocols {
		req.Header.Add(httpstream.HeaderProtocolVersion, p)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	conn, err := transport.NewConnection(resp)
	return conn, resp.Header.Get(httpstream.HeaderProtocolVersion), err
}

// openSPDY makes a session's streams. Output is collected until its end, but for those that wait in held.
func openSPDY(url, protocol string, types []string, held ...string) (*stream, error) {
	conn, got, err := dialSPDY(url, protocol)
	if err != nil {
		return nil, err
	}
	if got != protocol {
		conn.Close()
		return nil, fmt.Errorf("protocol %q, asked for %q", got, protocol)
	}
	s := &stream{conn: conn, streams: map[string]httpstream.Stream{}, out: map[string]*buffer{}}
	for _, kind := range types {
		stream, err := conn.CreateStream(http.Header{"Streamtype": {kind}})
		if err != nil {
			conn.Close()
			return nil, fmt.Errorf("stream %s: %w", kind, err)
		}
		s.streams[kind] = stream
		if kind == "stdin" || kind == "resize" || kind == "error" && protocol == "channel.k8s.io" {
			continue
		}
		s.out[kind] = &buffer{}
		if len(held) == 0 || held[0] != kind {
			// Owner: s; ends with the stream; end waits.
			s.read.Go(func() { io.Copy(s.out[kind], stream) })
		}
	}
	return s, nil
}

func mustOpenSPDY(t *testing.T, url, protocol string, types ...string) *stream {
	t.Helper()
	s, err := openSPDY(url, protocol, types)
	if err != nil {
		t.Fatal(err)
	}
	s.t = t
	t.Cleanup(func() { s.conn.Close() })
	return s
}

// end waits for the session's end and gives what the error stream said.
func (s *stream) end() string {
	s.t.Helper()
	done := make(chan struct{})
	go func() { s.read.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		s.t.Fatalf("the session does not end: stdout %q, stderr %q, error %q", s.out["stdout"], s.out["stderr"], s.out["error"])
	}
	return s.out["error"].String()
}

func (s *stream) resize(columns, rows int) {
	s.t.Helper()
	if _, err := fmt.Fprintf(s.streams["resize"], `{"Width":%d,"Height":%d}`, columns, rows); err != nil {
		s.t.Fatal(err)
	}
}

// exitCode reads protocol v4's status.
func exitStatus(t *testing.T, status string) (code, message string) {
	t.Helper()
	var got struct {
		Status, Message, Reason string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal([]byte(status), &got); err != nil {
		t.Fatalf("status %q: %v", status, err)
	}
	if got.Status == "Success" {
		return "0", ""
	}
	if len(got.Details.Causes) == 1 && got.Details.Causes[0].Reason == "ExitCode" {
		return got.Details.Causes[0].Message, got.Message
	}
	return got.Reason, got.Message
}

// execURL asks for a session.
func (c *container) execURL(change func(*criv1.ExecRequest), args ...string) string {
	c.p.t.Helper()
	url, err := c.tryExecURL(change, args...)
	if err != nil {
		c.p.t.Fatal(err)
	}
	return url
}

func (c *container) tryExecURL(change func(*criv1.ExecRequest), args ...string) (string, error) {
	req := &criv1.ExecRequest{ContainerId: c.id, Cmd: args, Stdout: true}
	if change != nil {
		change(req)
	}
	resp, err := c.p.n.Exec(ctx(c.p.t), req)
	return resp.GetUrl(), err
}

// What execURL's changes are about.
func withInput(r *criv1.ExecRequest)    { r.Stdin = true }
func threeStreams(r *criv1.ExecRequest) { r.Stdin, r.Stderr = true, true }
func terminal(r *criv1.ExecRequest)     { r.Stdin, r.Tty = true, true }

// dialWS opens a WebSocket with one subprotocol, "" for none.
func dialWS(url, protocol string) (*websocket.Conn, error) {
	url = "ws" + strings.TrimPrefix(url, "http")
	config, err := websocket.NewConfig(url, "http://localhost")
	if err != nil {
		return nil, err
	}
	if protocol != "" {
		config.Protocol = []string{protocol}
	}
	return websocket.DialConfig(config)
}

// channels reads a WebSocket to its end and gives what came by channel.
func channels(ws *websocket.Conn) map[byte]string {
	all := map[byte]string{}
	for {
		var data []byte
		if err := websocket.Message.Receive(ws, &data); err != nil {
			return all
		}
		if len(data) > 0 {
			all[data[0]] += string(data[1:])
		}
	}
}
