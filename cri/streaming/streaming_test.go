package streaming

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/websocket"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/podwright/podwright/podsandbox"
)

// fakeRuntime takes everything; a command is what exec says.
type fakeRuntime struct {
	exec    func(ctx context.Context, session podsandbox.Session) (int32, error)
	forward func(ctx context.Context, client podsandbox.Forwarded) error
}

func (f *fakeRuntime) Exec(ctx context.Context, _ string, _ []string, session podsandbox.Session) (int32, error) {
	return f.exec(ctx, session)
}

func (f *fakeRuntime) Attach(ctx context.Context, _ string, session podsandbox.Session) error {
	_, err := f.exec(ctx, session)
	return err
}

func (f *fakeRuntime) PortForward(ctx context.Context, _ string, _ int32, client podsandbox.Forwarded) error {
	return f.forward(ctx, client)
}

func (f *fakeRuntime) RunningContainer(id string) (string, error) { return id, nil }

func (f *fakeRuntime) Attachable(id string, _, _ bool) (string, error) { return id, nil }
func (f *fakeRuntime) ReadySandbox(id string) (string, error)          { return id, nil }

func newServer(t *testing.T, f *fakeRuntime) *Server {
	t.Helper()
	s, err := New(Config{Runtime: f, Objects: f, Address: "127.0.0.1:0", IdleTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	// Owner: the test; ends with Close.
	go func() {
		if err := s.Serve(); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

func dial(t *testing.T, url string, protocol string, types ...string) (httpstream.Connection, map[string]httpstream.Stream) {
	t.Helper()
	transport, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	req, _ := http.NewRequest(http.MethodPost, url, nil)
	req.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	conn, err := transport.NewConnection(resp)
	if err != nil {
		t.Fatal(err)
	}
	streams := map[string]httpstream.Stream{}
	for _, kind := range types {
		if streams[kind], err = conn.CreateStream(http.Header{"Streamtype": {kind}, "Port": {"80"}}); err != nil {
			t.Fatal(err)
		}
	}
	return conn, streams
}

const v4 = "v4.channel.k8s.io"

func TestTokensServeOnceForAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all tokens
		served := 0
		serve := func(*Server, http.ResponseWriter, *http.Request) { served++ }
		var list []string
		for range maxTokens {
			token, err := all.give("exec", serve)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, token)
		}
		if _, err := all.give("exec", serve); !errors.Is(err, podsandbox.ErrResourceLimit) {
			t.Errorf("one more than %d: got %v", maxTokens, err)
		}
		if _, ok := all.take("attach", list[0]); ok {
			t.Error("a token of another kind was taken")
		}
		if _, ok := all.take("exec", list[0]); !ok {
			t.Error("a token was not taken")
		}
		if _, ok := all.take("exec", list[0]); ok {
			t.Error("a token was taken twice")
		}
		time.Sleep(tokenLife + time.Second)
		if _, ok := all.take("exec", list[1]); ok {
			t.Error("an old token was taken")
		}
		if _, err := all.give("exec", serve); err != nil || len(all.issued) != 1 {
			t.Errorf("after a minute: got %v, %d tokens, want the one", err, len(all.issued))
		}
	})
}

// A session's context ends with its client, even where input is in the way that nobody reads.
func TestSessionsEndWithTheirClient(t *testing.T) {
	for name, input := range map[string]string{"quiet": "", "with unread input": strings.Repeat("x", 40<<10)} {
		t.Run(name, func(t *testing.T) {
			began, ended := make(chan bool), make(chan bool)
			s := newServer(t, &fakeRuntime{exec: func(ctx context.Context, session podsandbox.Session) (int32, error) {
				began <- true
				<-ctx.Done()
				ended <- true
				return 0, ctx.Err()
			}})
			url, err := s.Exec(&criv1.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stdin: true, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			conn, streams := dial(t, url, v4, "error", "stdin", "stdout")
			<-began
			io.WriteString(streams["stdin"], input)
			conn.Close()
			select {
			case <-ended:
			case <-time.After(10 * time.Second):
				t.Error("the session goes on")
			}
		})
	}
}

// A WebSocket has all channels; the input that a client did not ask for is not the container's to end (B33).
func TestSessionsHaveTheStreamsThatWereAskedFor(t *testing.T) {
	got := make(chan podsandbox.Session, 1)
	s := newServer(t, &fakeRuntime{exec: func(_ context.Context, session podsandbox.Session) (int32, error) {
		got <- session
		return 0, nil
	}})
	url, err := s.Attach(&criv1.AttachRequest{ContainerId: "c", Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	config, err := websocket.NewConfig("ws"+strings.TrimPrefix(url, "http"), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{v4}
	ws, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if session := <-got; session.Stdin != nil || session.Stdout == nil || session.Stderr != nil {
		t.Errorf("got %+v, want stdout alone", session)
	}
}

// A panic ends its own session.
func TestPanicsStayInTheirSession(t *testing.T) {
	s := newServer(t, &fakeRuntime{
		exec:    func(context.Context, podsandbox.Session) (int32, error) { panic("exec") },
		forward: func(context.Context, podsandbox.Forwarded) error { panic("forward") },
	})
	url, err := s.Exec(&criv1.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	conn, streams := dial(t, url, v4, "error", "stdout")
	io.ReadAll(streams["stdout"])
	conn.Close()
	if url, err = s.PortForward(&criv1.PortForwardRequest{PodSandboxId: "p"}); err != nil {
		t.Fatal(err)
	}
	conn, streams = dial(t, url, "portforward.k8s.io", "error", "data")
	if said, _ := io.ReadAll(streams["error"]); !strings.Contains(string(said), "panicked") {
		t.Errorf("got %q", said)
	}
	conn.Close()
}

// Close waits for sessions, and frees the address.
func TestCloseEndsSessionsAndFreesTheAddress(t *testing.T) {
	var running atomic.Int32
	began := make(chan bool)
	f := &fakeRuntime{exec: func(ctx context.Context, _ podsandbox.Session) (int32, error) {
		running.Add(1)
		defer running.Add(-1)
		began <- true
		<-ctx.Done()
		time.Sleep(100 * time.Millisecond)
		return 0, nil
	}}
	s := newServer(t, f)
	url, err := s.Exec(&criv1.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	conn, _ := dial(t, url, v4, "error", "stdout")
	defer conn.Close()
	<-began
	address := s.Address().String()
	if err := s.Close(t.Context()); err != nil || running.Load() != 0 {
		t.Errorf("got %v, %d sessions", err, running.Load())
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
}

// Whatever is asked without a token: an answer, and it is 404.
func FuzzRequestsWithoutAToken(f *testing.F) {
	for _, seed := range []string{"/exec/x", "/exec/", "//", "/portforward/../exec/x", "/exec/x/y?z=1"} {
		f.Add("GET", seed, "SPDY/3.1", v4)
	}
	s := &Server{}
	s.tokens.give("exec", func(*Server, http.ResponseWriter, *http.Request) { f.Error("a session began") })
	f.Fuzz(func(t *testing.T, method, path, upgrade, protocol string) {
		req := httptest.NewRequest(http.MethodGet, "/", nil)
		req.Method, req.URL.Path = method, path
		req.Header.Set("Upgrade", upgrade)
		req.Header.Set("X-Stream-Protocol-Version", protocol)
		w := httptest.NewRecorder()
		if s.ServeHTTP(w, req); w.Code != http.StatusNotFound {
			t.Errorf("%s %q: got %d", method, path, w.Code)
		}
	})
}
