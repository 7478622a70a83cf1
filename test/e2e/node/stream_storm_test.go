package node

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// gauges asks the daemon's own metrics for goroutines and descriptors.
func gauges(t *testing.T, address string) (goroutines, files int) {
	t.Helper()
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(body) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		switch name {
		case "go_goroutines":
			goroutines, _ = strconv.Atoi(value)
		case "process_open_fds":
			files, _ = strconv.Atoi(value)
		}
	}
	if goroutines == 0 || files == 0 {
		t.Fatalf("no goroutines or descriptors in the metrics: %s", body)
	}
	return goroutines, files
}

// storm runs a thousand sessions, sixteen at a time, and compares the daemon with what it was.
func storm(t *testing.T, n *node, address, kind string, session func(i int) error) {
	t.Helper()
	const sessions, atATime = 1000, 16
	goroutines, files := gauges(t, address)
	begin := time.Now()
	numbers, errs := make(chan int), make(chan error, sessions)
	var wait sync.WaitGroup
	for range atATime {
		wait.Go(func() {
			for i := range numbers {
				if err := session(i); err != nil {
					errs <- fmt.Errorf("%s %d: %w", kind, i, err)
				}
			}
		})
	}
	for i := range sessions {
		numbers <- i
	}
	close(numbers)
	wait.Wait()
	close(errs)
	failed := 0
	for err := range errs {
		if failed++; failed < 10 {
			t.Error(err)
		}
	}
	took := time.Since(begin)
	// The library waits half a minute for streams of a client that has left. Go's own few goroutines come and go.
	eventually(t, time.Minute, "return to the goroutines and descriptors of before", func() bool {
		nowGoroutines, nowFiles := gauges(t, address)
		return nowGoroutines <= goroutines+3 && nowFiles <= files
	})
	nowGoroutines, nowFiles := gauges(t, address)
	t.Logf("%d %s sessions in %s, %d failed; goroutines %d, before %d; descriptors %d, before %d", sessions, kind, took.Round(time.Millisecond), failed, nowGoroutines, goroutines, nowFiles, files)
}

// A thousand sessions of each kind, a third of them cut by the client: goroutines, descriptors and processes as before.
func TestAThousandSessionsLeaveNothing(t *testing.T) {
	const address = "127.0.0.1:9419"
	n := ownNode(t, options{config: "[metrics]\naddress = \"" + address + "\"\n"})
	p := n.pod(t, ownNetwork)
	var shells []*container // several: what a cut leaves for its second counts against the container's limit of processes
	for range 8 {
		shells = append(shells, p.start(nil, "sh", "-c", "while :; do sleep 1 & wait; done")) // which reaps
	}
	p.server("127.0.0.1:7001", "echo")
	if err := cutOrRun(shells[0], 1); err != nil { // the first exec compiles a filter
		t.Fatal(err)
	}
	storm(t, n, address, "exec", func(i int) error { return cutOrRun(shells[i%len(shells)], i) })
	loud := p.start(withStdin, "sh", "-c", "while :; do echo line; sleep 0.01; done")
	keeper, _ := n.pair(t)
	files := restingFiles(t, keeper)
	storm(t, n, address, "attach", func(i int) error { return cutOrAttach(loud, i) })
	eventually(t, 10*time.Second, "return of the keeper to the descriptors of before", func() bool { return openFiles(t, keeper) == files })
	storm(t, n, address, "port-forward", func(i int) error { return cutOrForward(p, i) })
	eventually(t, 10*time.Second, "end of every command", func() bool { return !runs(t, "sleep 999") })
}

// cutOrRun is one exec session; every third is cut, in one of several ways.
func cutOrRun(c *container, i int) error {
	change, args := threeStreams, []string{"sh", "-c", "cat; exit 7"}
	types := []string{"error", "stdin", "stdout", "stderr"}
	switch {
	case i%3 == 0 && i%2 == 0:
		args = []string{"sh", "-c", "sleep 999 & cat; sleep 999"}
	case i%3 == 0:
		change, args, types = terminal, []string{"sh", "-c", "sleep 999"}, []string{"error", "stdin", "stdout", "resize"}
	case i%3 == 1 && i%2 == 0:
		change, types = terminal, []string{"error", "stdin", "stdout", "resize"}
		args = []string{"sh", "-c", "read x; echo $x; exit 7"}
	}
	url, err := c.tryExecURL(change, args...)
	if err != nil {
		return err
	}
	if i%12 == 3 { // cut in the middle of making its streams
		conn, _, err := dialSPDY(url, v4)
		if err == nil {
			_, err = conn.CreateStream(http.Header{"Streamtype": {"error"}})
			conn.Close()
		}
		return err
	}
	if i%12 == 9 {
		ws, err := dialWS(url, v4)
		if err != nil {
			return err
		}
		websocket.Message.Send(ws, "\x00input\n")
		return ws.Close()
	}
	s, err := openSPDY(url, v4, types)
	if err != nil {
		return err
	}
	defer s.conn.Close()
	io.WriteString(s.streams["stdin"], "line\n")
	if i%3 == 0 {
		time.Sleep(time.Duration(i%50) * time.Millisecond)
		return nil
	}
	s.streams["stdin"].Close()
	s.read.Wait()
	if out, status := s.out["stdout"].String(), s.out["error"].String(); !strings.Contains(out, "line") || !strings.Contains(status, `"7"`) {
		return fmt.Errorf("stdout %q, status %q", out, status)
	}
	return nil
}

// cutOrAttach is one attach session, which sees a line; every third is cut before it does. Its client ends every one:
// the container goes on.
func cutOrAttach(c *container, i int) error {
	url, err := c.tryAttachURL(func(r *criv1.AttachRequest) { r.Stdin, r.Stderr = true, true })
	if err != nil {
		return err
	}
	if i%9 == 3 {
		ws, err := dialWS(url, v4)
		if err != nil {
			return err
		}
		return ws.Close()
	}
	s, err := openSPDY(url, v4, []string{"error", "stdin", "stdout", "stderr"})
	if err != nil {
		return err
	}
	defer s.conn.Close()
	if i%3 == 0 {
		return nil
	}
	for end := time.Now().Add(20 * time.Second); !strings.Contains(s.out["stdout"].String(), "line\n"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("no line; error stream %q", s.out["error"])
		}
	}
	return nil
}

// cutOrForward is one port-forward session of three connections; every third is cut.
func cutOrForward(p *pod, i int) error {
	url, err := p.forwardURL()
	if err != nil {
		return err
	}
	conn, _, err := dialSPDY(url, "portforward.k8s.io")
	if err != nil {
		return err
	}
	defer conn.Close()
	f := &forwarding{conn: conn}
	for k := range 3 {
		c, err := f.connect(7001)
		if err != nil {
			return err
		}
		text := strings.Repeat("x", 1000*(k+1))
		io.WriteString(c.data, text)
		if i%3 == 0 && k == i%9/3 {
			return nil
		}
		c.data.Close()
		if got, err := io.ReadAll(c.data); err != nil || string(got) != text {
			return fmt.Errorf("got %d bytes back, %w, want %d", len(got), err, len(text))
		}
	}
	return nil
}
