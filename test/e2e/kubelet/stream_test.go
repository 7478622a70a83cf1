package kubelet

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// session is a connection to the kubelet that a SPDY client made, as kubectl's proxies do.
type session struct {
	httpstream.Connection
	t *testing.T
}

func open(t *testing.T, path string, protocol string) session {
	t.Helper()
	transport, err := spdy.NewRoundTripper(selfSigned)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPost, "https://"+kubeletHost+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Add(httpstream.HeaderProtocolVersion, protocol)
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	conn, err := transport.NewConnection(resp)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	t.Cleanup(func() { conn.Close() })
	return session{conn, t}
}

func (s session) stream(header ...string) httpstream.Stream {
	s.t.Helper()
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	stream, err := s.CreateStream(h)
	if err != nil {
		s.t.Fatal(err)
	}
	return stream
}

// all reads streams to their ends.
func (s session) all(streams ...io.Reader) []string {
	s.t.Helper()
	texts := make([]string, len(streams))
	var read sync.WaitGroup
	done := make(chan struct{})
	for i, stream := range streams {
		read.Go(func() {
			text, _ := io.ReadAll(stream)
			texts[i] = string(text)
		})
	}
	go func() { read.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		s.t.Fatal("the session does not end")
	}
	return texts
}

func execPath(pod, container string, options string, args ...string) string {
	query := options
	for _, arg := range args {
		query += "&command=" + url.QueryEscape(arg)
	}
	return fmt.Sprintf("/exec/default/%s-lab/%s?%s", pod, container, query)
}

func TestExecThroughTheKubelet(t *testing.T) {
	mustRun(t, "sharedpid")
	s := open(t, execPath("sharedpid", "two", "input=1&output=1&error=1", "sh", "-c", "cat; echo err >&2; exit 42"), "v4.channel.k8s.io")
	status, in := s.stream("streamtype", "error"), s.stream("streamtype", "stdin")
	out, errs := s.stream("streamtype", "stdout"), s.stream("streamtype", "stderr")
	io.WriteString(in, "in\n")
	in.Close()
	got := s.all(status, out, errs)
	if !strings.Contains(got[0], `"ExitCode","message":"42"`) || got[1] != "in\n" || got[2] != "err\n" {
		t.Errorf("got %q, want exit code 42, in and err", got)
	}
}

// kubectl's own way: WebSocket v5, which ends at the kubelet.
func TestExecOverWebSocketThroughTheKubelet(t *testing.T) {
	mustRun(t, "sharedpid")
	config, err := websocket.NewConfig("wss://"+kubeletHost+execPath("sharedpid", "two", "input=1&output=1&tty=1", "sh"), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol, config.TlsConfig = []string{"v5.channel.k8s.io"}, selfSigned
	ws, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	ws.SetDeadline(time.Now().Add(30 * time.Second))
	websocket.Message.Send(ws, []byte("\x04"+`{"Width":77,"Height":22}`))
	websocket.Message.Send(ws, []byte("\x00stty size; exit 3\n"))
	got := map[byte]string{}
	for {
		var data []byte
		if err := websocket.Message.Receive(ws, &data); err != nil || len(data) == 0 {
			break
		}
		got[data[0]] += string(data[1:])
	}
	if !strings.Contains(got[1], "22 77") || !strings.Contains(got[3], `"3"`) {
		t.Errorf("got %q, want the window's size on 1 and code 3 on 3", got)
	}
}

func TestPortForwardThroughTheKubelet(t *testing.T) {
	mustRun(t, "hostport")
	s := open(t, "/portForward/default/hostport-lab", "portforward.k8s.io")
	for id := range 3 {
		header := []string{"port", "8080", "requestID", fmt.Sprint(id)}
		errs := s.stream(append(header, "streamtype", "error")...)
		data := s.stream(append(header, "streamtype", "data")...)
		io.WriteString(data, "GET / HTTP/1.0\r\n\r\n")
		data.Close()
		if got := s.all(data, errs); !strings.Contains(got[0], "hostport-lab") || got[1] != "" {
			t.Errorf("request %d: got %q, want the page", id, got)
		}
	}
	errs := s.stream("port", "9", "requestID", "9", "streamtype", "error")
	data := s.stream("port", "9", "requestID", "9", "streamtype", "data")
	if got := s.all(errs, data); !strings.Contains(got[0], "refused") {
		t.Errorf("a port on which nobody listens: got %q, want the reason", got)
	}
}

// Two clients see what a container writes, and what one types.
func TestAttachThroughTheKubelet(t *testing.T) {
	mustRun(t, "input")
	const path = "/attach/default/input-lab/main?input=1&output=1&error=1"
	var outs [2]chan string
	var in io.Writer
	for i := range outs {
		s := open(t, path, "v4.channel.k8s.io")
		s.stream("streamtype", "error")
		in = s.stream("streamtype", "stdin")
		out := s.stream("streamtype", "stdout")
		s.stream("streamtype", "stderr")
		outs[i] = make(chan string, 1)
		// Owner: the test; ends with its connection.
		go func() {
			line := make([]byte, len("got hello\n"))
			io.ReadFull(out, line)
			outs[i] <- string(line)
		}()
	}
	time.Sleep(500 * time.Millisecond) // what is written before one is attached, it does not see
	io.WriteString(in, "hello\n")
	for i, out := range outs {
		select {
		case got := <-out:
			if got != "got hello\n" {
				t.Errorf("client %d: got %q, want the answer", i, got)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("client %d: got nothing", i)
		}
	}
	if got, err := logs("input", "main"); err != nil || !strings.Contains(got, "got hello\n") {
		t.Errorf("the log: got %q, %v, want it as well", got, err)
	}
}
