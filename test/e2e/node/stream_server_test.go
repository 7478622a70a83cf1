package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// certify writes a certificate for 127.0.0.1 that signs itself, and its key.
func certify(t *testing.T, n *node, serial int64) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "podwright"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	write(t, n.path("stream.pem"), string(text))
	write(t, n.path("stream.key"), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return pool
}

// TLS where it is configured, 1.2 at least, HTTP/1.1 only; a renewed certificate is used without a restart. The port is
// the configured one and free for the next daemon, whatever was open on it.
func TestStreamServerAsConfigured(t *testing.T) {
	n := ownNode(t, options{})
	roots := certify(t, n, 1)
	if err := os.MkdirAll(n.path("conf.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, n.path("conf.d", "stream.toml"), fmt.Sprintf("[streaming]\nport = 10443\ntls_cert_file = %q\ntls_key_file = %q\n", n.path("stream.pem"), n.path("stream.key")))
	n.restart(t, unix.SIGTERM, nil)
	c := n.pod(t).sleeper(nil)
	url := c.execURL(nil, "true")
	if !strings.HasPrefix(url, "https://127.0.0.1:10443/exec/") {
		t.Fatalf("got %s", url)
	}
	serial := func(roots *x509.CertPool, change func(*tls.Config)) (int64, error) {
		config := &tls.Config{RootCAs: roots, NextProtos: []string{"h2", "http/1.1"}}
		if change != nil {
			change(config)
		}
		conn, err := tls.Dial("tcp", "127.0.0.1:10443", config)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		if got := conn.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
			t.Errorf("protocol: got %q, want http/1.1", got)
		}
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64(), nil
	}
	if got, err := serial(roots, nil); got != 1 || err != nil {
		t.Errorf("got certificate %d, %v, want 1", got, err)
	}
	if _, err := serial(roots, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS11; c.MinVersion = tls.VersionTLS10 }); err == nil {
		t.Error("TLS 1.1: got a connection")
	}
	time.Sleep(20 * time.Millisecond) // a file's time has the clock's ticks
	roots = certify(t, n, 2)
	if got, err := serial(roots, nil); got != 2 || err != nil {
		t.Errorf("after its renewal: got certificate %d, %v, want 2", got, err)
	}
	write(t, n.path("stream.key"), "no key")
	if got, err := serial(roots, nil); got != 2 || err != nil {
		t.Errorf("with half of a renewal: got certificate %d, %v, want 2", got, err)
	}
	certify(t, n, 3)
	// An HTTP client without TLS gets an answer and no session.
	resp, err := http.Get(strings.Replace(url, "https:", "http:", 1))
	if err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("without TLS: got %v, %v, want 400", resp, err)
	}
	http.DefaultClient.CloseIdleConnections()
}

// A stop of the daemon ends sessions, as their client's end does, and takes no longer for them.
func TestStopOfTheDaemonEndsSessions(t *testing.T) {
	n := ownNode(t, options{config: "[streaming]\nport = 10444\n"})
	c := n.pod(t).start(nil, "sleep", "7777")
	s := mustOpenSPDY(t, c.execURL(terminal, "sh", "-c", "trap '' HUP; sleep 6663; sleep 6663"), v4, "error", "stdin", "stdout", "resize")
	waitFor(t, "sleep 6663")
	begin := time.Now()
	n.restart(t, unix.SIGTERM, nil)
	if took := time.Since(begin); took > patient(10*time.Second) {
		t.Errorf("the restart took %s", took)
	}
	s.read.Wait()
	eventually(t, 5*time.Second, "end of the command", func() bool { return !runs(t, "sleep 6663") })
	// And after a kill the next daemon ends what nobody reads any more.
	s = mustOpenSPDY(t, c.execURL(nil, "sleep", "6664"), v4, "error", "stdout")
	waitFor(t, "sleep 6664")
	n.restart(t, unix.SIGKILL, nil)
	s.read.Wait()
	eventually(t, 10*time.Second, "end of the command of a killed daemon", func() bool { return !runs(t, "sleep 6664") })
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container: got %v, want it running", s.GetState())
	}
	s = mustOpenSPDY(t, c.execURL(nil, "echo", "again"), v4, "error", "stdout")
	if s.end(); s.out["stdout"].String() != "again\n" {
		t.Errorf("on the same port: got %q", s.out["stdout"])
	}
}

// A session on which nothing moves ends after the configured time, also one whose client takes nothing of what is written.
func TestIdleSessionsEnd(t *testing.T) {
	n := ownNode(t, options{config: "[streaming]\nidle_timeout = \"2s\"\n"})
	c := n.pod(t).start(nil, "sleep", "7777")
	idle := mustOpenSPDY(t, c.execURL(terminal, "sleep", "6665"), v4, "error", "stdin", "stdout", "resize")
	ws, err := dialWS(c.execURL(withInput, "sleep", "6666"), v4)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	stuck, err := openSPDY(c.execURL(nil, "yes"), v4, []string{"error", "stdout"}, "stdout")
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.conn.Close()
	busy := mustOpenSPDY(t, c.execURL(nil, "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do echo $i; sleep 0.5; done; exit 8"), v4, "error", "stdout")
	waitFor(t, "sleep 6665")
	waitFor(t, "yes")
	eventually(t, 20*time.Second, "end of idle sessions", func() bool { return !runs(t, "sleep 666") && !runs(t, "yes") })
	idle.read.Wait()
	if code, _ := exitStatus(t, busy.end()); code != "8" {
		t.Errorf("a session on which something moves: got code %s, want 8", code)
	}
}

// What a person types: exec with and without a terminal, and port-forward. crictl's own WebSocket client speaks v5 only,
// which the kubelet ends (B34).
func TestCrictlExecAttachAndPortForward(t *testing.T) {
	if os.Getenv(crictlVariable) == "" {
		t.Skip("crictl is missing: test/e2e/tools/get crictl says why")
	}
	n := onNode(t)
	p := n.pod(t, ownNetwork)
	c := p.server("127.0.0.1:7001", "count")
	run := crictl{t, n}
	run.has([]string{"out\n"}, "exec", c.id, "sh", "-c", "echo out")
	ctl := func(args ...string) *exec.Cmd {
		return exec.Command(os.Getenv(crictlVariable), append([]string{"--runtime-endpoint", "unix://" + n.socket(), "--timeout", "30s"}, args...)...)
	}
	cmd := ctl("exec", "-i", c.id, "sh", "-c", "cat; exit 9")
	cmd.Stdin = strings.NewReader("piped\n")
	out, err := cmd.Output()
	if err == nil || string(out) != "piped\n" {
		t.Errorf("exec -i: got %q, %v, want what was piped and a failure", out, err)
	}
	// A terminal of its own for crictl, as script(1) gives one.
	cmd = exec.Command("script", "-qec", strings.Join(ctl("exec", "-it", c.id, "sh", "-c", "'tty; echo $TERM'").Args, " "), "/dev/null")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "/dev/pts/0") || !strings.Contains(string(out), "xterm") {
		t.Errorf("exec -it: got %q, %v", out, err)
	}
	shell := p.start(func(c *criv1.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }, "sh", "-c", "cat; echo end")
	cmd = ctl("attach", "-i", shell.id)
	cmd.Stdin = strings.NewReader("piped\n")
	if out, err := cmd.Output(); err != nil || string(out) != "piped\nend\n" {
		t.Errorf("attach -i: got %q, %v, want what was piped and the end", out, err)
	}
	terminal := p.start(func(c *criv1.ContainerConfig) { c.Tty, c.Stdin = true, true }, "sh")
	cmd = exec.Command("script", "-qec", strings.Join(ctl("attach", "-it", terminal.id).Args, " "), "/dev/null")
	cmd.Stdin = strings.NewReader("echo answer $((40+2)) on $(tty)\nexit 5\n")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "answer 42 on /dev/pts/0") {
		t.Errorf("attach -it: got %q, %v, want what a shell answers", out, err)
	}
	if code := terminal.wait(30 * time.Second).GetExitCode(); code != 5 {
		t.Errorf("attach -it: the shell ended with %d, want 5 as it was told", code)
	}
	cmd = ctl("port-forward", p.id, "17001:7001")
	text, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	if _, err := io.ReadAtLeast(text, make([]byte, 64), 10); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", "127.0.0.1:17001")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write([]byte("twelve bytes"))
	conn.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(conn); string(got) != "12 bytes" {
		t.Errorf("port-forward: got %q, %v", got, err)
	}
}
