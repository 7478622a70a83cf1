package node

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/kerneltest"
)

const v4 = "v4.channel.k8s.io"

func TestExecCarriesThreeStreamsAndTheExitCode(t *testing.T) {
	c := onNode(t).pod(t).sleeper(nil)
	s := mustOpenSPDY(t, c.execURL(threeStreams, "sh", "-c", "cat; echo err >&2; exit 42"), v4, "error", "stdin", "stdout", "stderr")
	io.WriteString(s.streams["stdin"], "in\n")
	time.Sleep(200 * time.Millisecond)
	if got := s.out["error"].String(); got != "" {
		t.Errorf("before the end of input: got the status %q", got)
	}
	s.streams["stdin"].Close()
	code, message := exitStatus(t, s.end())
	if code != "42" || !strings.Contains(message, "42") || s.out["stdout"].String() != "in\n" || s.out["stderr"].String() != "err\n" {
		t.Errorf("got code %s (%s), stdout %q, stderr %q, want 42, in, err", code, message, s.out["stdout"], s.out["stderr"])
	}
	s = mustOpenSPDY(t, c.execURL(nil, "sh", "-c", "kill -9 $$"), v4, "error", "stdout")
	if code, _ := exitStatus(t, s.end()); code != "137" {
		t.Errorf("killed: got code %s, want 137", code)
	}
	s = mustOpenSPDY(t, c.execURL(nil, "true"), v4, "error", "stdout")
	if code, _ := exitStatus(t, s.end()); code != "0" {
		t.Errorf("true: got code %s, want success", code)
	}
}

// As with the peers: no exit code, an error that names the program.
func TestExecOfWhatIsNotThereNamesIt(t *testing.T) {
	c := onNode(t).pod(t).sleeper(nil)
	s := mustOpenSPDY(t, c.execURL(nil, "/no/such/program"), v4, "error", "stdout")
	reason, message := exitStatus(t, s.end())
	if reason != "InternalError" || !strings.Contains(message, "/no/such/program") || !strings.Contains(message, "no such file") {
		t.Errorf("got %s: %q, want InternalError that names program and cause", reason, message)
	}
}

// What a command writes last arrives whole, however it ends, and a process that it leaves behind holds up nothing (B26).
func TestExecLosesNoOutput(t *testing.T) {
	c := onNode(t).pod(t).sleeper(nil)
	const size = 5 << 20
	s := mustOpenSPDY(t, c.execURL(nil, "head", "-c", fmt.Sprint(size), "/dev/zero"), v4, "error", "stdout")
	if code, _ := exitStatus(t, s.end()); code != "0" || len(s.out["stdout"].String()) != size {
		t.Errorf("got code %s, %d bytes, want %d", code, len(s.out["stdout"].String()), size)
	}
	begin := time.Now()
	s = mustOpenSPDY(t, c.execURL(nil, "sh", "-c", "sleep 20 & echo done"), v4, "error", "stdout")
	if code, _ := exitStatus(t, s.end()); code != "0" || s.out["stdout"].String() != "done\n" || time.Since(begin) > patient(10*time.Second) {
		t.Errorf("with a background process: got code %s, %q after %s", code, s.out["stdout"], time.Since(begin))
	}
	c.exec("sh", "-c", "kill $(pidof sleep | tr ' ' '\\n' | grep -vx 1)")
}

// A terminal: one stream, TERM (B28), its size before the first output, and sizes that follow.
func TestExecWithATerminalB28(t *testing.T) {
	c := onNode(t).pod(t).sleeper(nil)
	for _, protocol := range []string{v4, "v3.channel.k8s.io"} {
		s := mustOpenSPDY(t, c.execURL(terminal, "sh", "-c", "/bin/probe winsize; echo $TERM; tty; trap '/bin/probe winsize; exit 3' WINCH; echo ready; while :; do sleep 0.05; done"),
			protocol, "error", "stdin", "stdout", "resize")
		s.resize(123, 45)
		eventually(t, 10*time.Second, "start", func() bool { return strings.Contains(s.out["stdout"].String(), "ready") })
		s.resize(90, 30)
		status := s.end()
		want := "123x45\r\nxterm\r\n/dev/pts/0\r\nready\r\n90x30\r\n"
		if got := s.out["stdout"].String(); got != want {
			t.Errorf("%s: got %q, want %q", protocol, got, want)
		}
		if !strings.Contains(status, "3") {
			t.Errorf("%s: got status %q, want exit code 3 in it", protocol, status)
		}
	}
	s := mustOpenSPDY(t, c.execURL(terminal, "sh"), v4, "error", "stdin", "stdout", "resize")
	io.WriteString(s.streams["stdin"], "echo $((6*7))\nexit 5\n")
	if code, _ := exitStatus(t, s.end()); code != "5" || !strings.Contains(s.out["stdout"].String(), "42") {
		t.Errorf("a shell: got code %s, %q", code, s.out["stdout"])
	}
	if got := c.exec("sh", "-c", "echo $TERM"); got != "\n" {
		t.Errorf("without a terminal: got TERM %q", got)
	}
}

// Sizes that come when nothing wants them hold up nothing, before the end and after it (B30).
func TestResizesWithoutEndLeakNothingB30(t *testing.T) {
	n := onNode(t)
	c := n.pod(t).sleeper(nil)
	s := mustOpenSPDY(t, c.execURL(terminal, "sh", "-c", "read line; exit 6"), v4, "error", "stdin", "stdout", "resize")
	go func() {
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(s.streams["resize"], `{"Width":%d,"Height":%d}`, i%300, i%100); err != nil {
				return
			}
		}
	}()
	time.Sleep(300 * time.Millisecond)
	io.WriteString(s.streams["stdin"], "on\n")
	if code, _ := exitStatus(t, s.end()); code != "6" {
		t.Errorf("got code %s, want 6", code)
	}
	// Without a terminal nobody reads them.
	ws, err := dialWS(c.execURL(withInput, "sh", "-c", "read line; echo $line"), v4)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	for i := range 100 {
		websocket.Message.Send(ws, append([]byte{4}, fmt.Sprintf(`{"Width":%d,"Height":1}`, i+1)...))
	}
	websocket.Message.Send(ws, []byte("\x00line\n"))
	if got := channels(ws); got[1] != "line\n" || !strings.Contains(got[3], "Success") {
		t.Errorf("sizes without a terminal: got %q", got)
	}
}

// Every version of both protocols that a kubelet or its proxies may speak (B34).
func TestExecSpeaksEveryProtocolB34(t *testing.T) {
	c := onNode(t).pod(t).sleeper(nil)
	for _, protocol := range []string{v4, "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"} {
		s := mustOpenSPDY(t, c.execURL(nil, "echo", "spdy"), protocol, "error", "stdout")
		if s.read.Wait(); s.out["stdout"].String() != "spdy\n" {
			t.Errorf("SPDY %s: got %q", protocol, s.out["stdout"])
		}
	}
	for _, protocol := range []string{"", "channel.k8s.io", v4} {
		ws, err := dialWS(c.execURL(nil, "sh", "-c", "echo web; exit 3"), protocol)
		if err != nil {
			t.Errorf("WebSocket %q: %v", protocol, err)
			continue
		}
		if got := channels(ws); got[1] != "web\n" || !strings.Contains(got[3], "3") {
			t.Errorf("WebSocket %q: got %q, want web on 1 and code 3 on 3", protocol, got)
		}
		ws.Close()
	}
	for _, protocol := range []string{"base64.channel.k8s.io", "v4.base64.channel.k8s.io"} {
		ws, err := dialWS(c.execURL(withInput, "sh", "-c", "read line; echo $line"), protocol)
		if err != nil {
			t.Errorf("WebSocket %q: %v", protocol, err)
			continue
		}
		websocket.Message.Send(ws, "0"+base64.StdEncoding.EncodeToString([]byte("text\n")))
		got := channels(ws)
		text, err := base64.StdEncoding.DecodeString(got['1'])
		if err != nil || string(text) != "text\n" {
			t.Errorf("WebSocket %q: got %q, %v", protocol, got, err)
		}
		ws.Close()
	}
}

// A client that leaves takes its command along, with all that it started, whatever it was at; the container goes on.
func TestExecEndsWithItsClient(t *testing.T) {
	n := onNode(t)
	c := n.pod(t).start(nil, "sleep", "7777")
	script := "trap '' HUP; sleep 6661 & sleep 6662"
	cut := map[string]func(){
		"without input": func() {
			s := mustOpenSPDY(t, c.execURL(nil, "sh", "-c", script), v4, "error", "stdout")
			waitFor(t, "sleep 6662")
			s.conn.Close()
		},
		"on a terminal": func() {
			s := mustOpenSPDY(t, c.execURL(terminal, "sh", "-c", script), v4, "error", "stdin", "stdout", "resize")
			waitFor(t, "sleep 6662")
			s.conn.Close()
		},
		"with input nobody reads": func() {
			ws, err := dialWS(c.execURL(withInput, "sh", "-c", script), v4)
			if err != nil {
				t.Fatal(err)
			}
			waitFor(t, "sleep 6662")
			for range 3 { // more than a pipe, and less than keeps the end itself from being received
				websocket.Message.Send(ws, make([]byte, 40<<10))
			}
			ws.Close()
		},
		"while it writes": func() {
			s, err := openSPDY(c.execURL(nil, "sh", "-c", "yes & sleep 6662"), v4, []string{"error", "stdout"}, "stdout")
			if err != nil {
				t.Fatal(err)
			}
			waitFor(t, "sleep 6662")
			s.conn.Close()
		},
	}
	for how, leave := range cut {
		leave()
		eventually(t, 15*time.Second, "end of the command "+how, func() bool {
			return !runs(t, "sleep 666") && !runs(t, "yes")
		})
	}
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container: got %v, want it running", s.GetState())
	}
}

func runs(t *testing.T, command string) bool {
	t.Helper()
	all, err := kerneltest.Descendants(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		// The shell runs its own programs without executing them: the name is another then, the command is the shell's.
		if p.State != 'Z' && (p.Name == command || strings.Contains(p.Command(), command) && !strings.Contains(p.Command(), "sh -c")) {
			return true
		}
	}
	return false
}

func waitFor(t *testing.T, command string) {
	t.Helper()
	eventually(t, 10*time.Second, command, func() bool { return runs(t, command) })
}

// A client that does not read holds up its own command, nobody else, and gets everything once it does.
func TestSlowReaderHoldsUpItsOwnCommandAlone(t *testing.T) {
	c := onNode(t).pod(t).sleeper(nil)
	const size = 100 << 20 // more than two sockets hold
	s, err := openSPDY(c.execURL(nil, "sh", "-c", fmt.Sprintf("head -c %d /dev/zero; exit 4", size)), v4, []string{"error", "stdout"}, "stdout")
	if err != nil {
		t.Fatal(err)
	}
	s.t = t
	defer s.conn.Close()
	time.Sleep(500 * time.Millisecond)
	begin := time.Now()
	if got := c.exec("echo", "meanwhile"); got != "meanwhile\n" || time.Since(begin) > patient(5*time.Second) {
		t.Errorf("another command: got %q after %s", got, time.Since(begin))
	}
	if !runs(t, "head") {
		t.Error("the command has written all of it to nobody")
	}
	got, err := io.Copy(io.Discard, s.streams["stdout"])
	if code, _ := exitStatus(t, s.end()); code != "4" || got != size || err != nil {
		t.Errorf("got code %s, %d bytes, %v, want 4 and %d", code, got, err, size)
	}
}

func TestExecRequestsAreRefusedBeforeAURLIsGiven(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	c := p.sleeper(nil)
	_, err := c.tryExecURL(func(r *criv1.ExecRequest) { r.Tty, r.Stderr = true, true }, "true")
	wantError(t, err, codes.InvalidArgument, "tty", "stderr")
	_, err = c.tryExecURL(func(r *criv1.ExecRequest) { r.Stdout = false }, "true")
	wantError(t, err, codes.InvalidArgument, "stdin", "stdout", "stderr")
	for _, bad := range [][]string{nil, {""}, {"echo", "a\x00b"}} {
		_, err = c.tryExecURL(nil, bad...)
		wantError(t, err, codes.InvalidArgument, c.id, "cmd")
		_, err = c.tryExec(10, bad...)
		wantError(t, err, codes.InvalidArgument, c.id, "cmd")
	}
	_, err = c.tryExecURL(func(r *criv1.ExecRequest) { r.ContainerId = "beef" }, "true")
	wantError(t, err, codes.NotFound, "beef")
	created := p.create(nil, "sleep", "1000")
	_, err = created.tryExecURL(nil, "true")
	wantError(t, err, codes.FailedPrecondition, created.id, "not running")
	if _, err := c.tryExecURL(func(r *criv1.ExecRequest) { r.ContainerId = c.id[:13] }, "true"); err != nil {
		t.Errorf("by the beginning of its id: %v", err)
	}
}

// A URL serves once, for what it was given, and shows nothing to who guesses.
func TestTokensServeOnce(t *testing.T) {
	c := onNode(t).pod(t).sleeper(nil)
	url := c.execURL(nil, "echo", "once")
	s := mustOpenSPDY(t, url, v4, "error", "stdout")
	if s.end(); s.out["stdout"].String() != "once\n" {
		t.Errorf("got %q", s.out["stdout"])
	}
	base := url[:strings.Index(url, "/exec/")]
	other := strings.Replace(c.execURL(nil, "echo", "once"), "/exec/", "/portforward/", 1)
	for _, path := range []string{url, other, base + "/exec/", base + "/exec/AAAA", base + "/", base + "/exec/../exec/x"} {
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound || bytes.Contains(body, []byte("once")) {
			t.Errorf("%s: got %d %q, want 404", path, resp.StatusCode, body)
		}
	}
	if !strings.HasPrefix(url, "http://127.0.0.1:") {
		t.Errorf("got %s, want a URL on loopback", url)
	}
}
