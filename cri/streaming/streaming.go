// Package streaming owns exec, attach and port-forward after their RPC has answered: the tokens in the URLs, the HTTP
// server that takes them, and which connection belongs to which session. The protocols on it, SPDY and WebSocket, are
// k8s.io/cri-streaming's. It knows neither containers nor sandboxes; what runs in them is behind Runtime.
// Source: k8s.io/cri-streaming, cri-api api.proto (ExecRequest, AttachRequest, PortForwardRequest).
package streaming

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox"
)

// Runtime is what sessions are made of.
type Runtime interface {
	Exec(ctx context.Context, id string, args []string, session podsandbox.Session) (int32, error)
	Attach(ctx context.Context, id string, session podsandbox.Session) error
	PortForward(ctx context.Context, id string, port int32, client podsandbox.Forwarded) error
}

// Objects tells what is there, before a URL is given out. All take the beginning of an id, too.
type Objects interface {
	RunningContainer(id string) (string, error)
	Attachable(id string, stdin, terminal bool) (string, error)
	ReadySandbox(id string) (string, error)
}

// Config says where to listen and for whom.
type Config struct {
	Runtime Runtime
	Objects Objects
	Address string // host:port; port 0 is any
	// CertFile and KeyFile make it serve TLS; they are read again when they change.
	CertFile, KeyFile string
	IdleTimeout       time.Duration // of a session on which nothing moves
}

// Bounds of the HTTP side. A client has little to say before its session begins.
const (
	headerTimeout  = 10 * time.Second
	keepAlive      = time.Minute // of a connection without a session
	maxHeaderBytes = 16 << 10
	createTimeout  = 30 * time.Second // for a client to make its SPDY streams
	peerWatch      = time.Second      // see connections.watch
)

// Server gives out URLs and serves them.
type Server struct {
	cfg         Config
	tokens      tokens
	listener    net.Listener
	connections connections
	http        *http.Server
	base        url.URL

	mu       sync.Mutex // mu guards closed.
	closed   bool
	sessions sync.WaitGroup
}

// New listens; Serve answers.
func New(cfg Config) (*Server, error) {
	if cfg.Runtime == nil || cfg.Objects == nil || cfg.Address == "" || cfg.IdleTimeout <= 0 {
		return nil, errors.New("streaming: runtime, objects, address and idle timeout are required")
	}
	s := &Server{cfg: cfg, base: url.URL{Scheme: "http"}}
	var secure *tls.Config
	if cfg.CertFile != "" {
		pair, err := newKeyPair(cfg.CertFile, cfg.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("streaming: %w", err)
		}
		secure = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, GetCertificate: pair.certificate}
		s.base.Scheme = "https"
	}
	plain, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("streaming: %w", err)
	}
	s.base.Host = reachable(plain.Addr().(*net.TCPAddr))
	s.connections.patience = cfg.IdleTimeout
	s.listener = &listener{Listener: plain, connections: &s.connections}
	if secure != nil {
		s.listener = tls.NewListener(s.listener, secure)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // sessions take the connection over, which HTTP/2 has no word for
	s.http = &http.Server{
		Handler: s, ReadHeaderTimeout: headerTimeout, IdleTimeout: keepAlive, MaxHeaderBytes: maxHeaderBytes, Protocols: protocols,
		ConnContext: s.connections.contextOf, ErrorLog: log.New(httpLog{}, "", 0),
	}
	return s, nil
}

// reachable is the host of URLs: who is asked on every address can't be asked on "every".
func reachable(a *net.TCPAddr) string {
	if a.IP.IsUnspecified() {
		loopback := net.IPv6loopback
		if a.IP.To4() != nil {
			loopback = net.IPv4(127, 0, 0, 1)
		}
		a = &net.TCPAddr{IP: loopback, Port: a.Port}
	}
	return a.String()
}

// Address is where it listens.
func (s *Server) Address() net.Addr { return s.listener.Addr() }

// Serve answers until Close.
func (s *Server) Serve() error {
	// Owner: Serve; ends by Close; Close waits for it.
	go s.connections.watch(peerWatch)
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve streams: %w", err)
	}
	return nil
}

// Close frees the address, cuts every session, as the end of its client does, and waits for what that ends.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	err := errors.Join(s.http.Close(), s.listener.Close())
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	s.connections.closeAll()
	done := make(chan struct{})
	// Owner: this call; ends with the last session.
	go func() {
		s.sessions.Wait()
		close(done)
	}()
	select {
	case <-done:
		return err
	case <-ctx.Done():
		return errors.Join(err, ctx.Err())
	}
}

// begin counts a session, unless the server is closing.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.sessions.Add(1)
	return true
}

// ServeHTTP turns a request with a token into the session the token was given for. A token serves once: an unknown one,
// one that is used already or too old is 404, and so is any other path.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, token, found := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if !found || r.Method != http.MethodGet && r.Method != http.MethodPost {
		http.NotFound(w, r)
		return
	}
	session, known := s.tokens.take(kind, token)
	if !known {
		http.NotFound(w, r)
		return
	}
	if !s.begin() {
		http.Error(w, "podwright is stopping", http.StatusServiceUnavailable)
		return
	}
	defer s.sessions.Done()
	taken := &hijacker{ResponseWriter: w}
	// The library leaves a connection open whose client made too few streams, or too many.
	defer taken.close()
	session(s, taken, r)
}

// hijacker remembers the connection that a session took over.
type hijacker struct {
	http.ResponseWriter
	conn net.Conn
}

// Flush and Unwrap are left out on purpose: the library would find its way around Hijack.

func (h *hijacker) close() {
	if h.conn != nil {
		h.conn.Close()
	}
}

// httpLog takes what net/http has to say about single connections: a panic in a session, and clients' mistakes.
type httpLog struct{}

func (httpLog) Write(text []byte) (int, error) {
	if strings.Contains(string(text), "panic") {
		klog.Background().Error(nil, "A stream session panicked", "text", string(text))
	} else {
		klog.Background().V(4).Info("HTTP server of streams", "text", strings.TrimSpace(string(text)))
	}
	return len(text), nil
}
