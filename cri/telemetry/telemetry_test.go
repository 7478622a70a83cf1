package telemetry

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox"
	"github.com/podwright/podwright/runtime/image"
	"github.com/podwright/podwright/runtime/wire"
)

// service answers a few calls, as the edge would.
type service struct {
	criv1.UnimplementedRuntimeServiceServer
	pull func(context.Context)
}

func (s *service) Version(ctx context.Context, _ *criv1.VersionRequest) (*criv1.VersionResponse, error) {
	if s.pull != nil {
		s.pull(ctx)
	}
	return &criv1.VersionResponse{}, nil
}

func (*service) ContainerStatus(context.Context, *criv1.ContainerStatusRequest) (*criv1.ContainerStatusResponse, error) {
	return nil, status.Error(codes.NotFound, "no such container")
}

func (*service) GetContainerEvents(_ *criv1.GetEventsRequest, stream grpc.ServerStreamingServer[criv1.ContainerEventResponse]) error {
	if err := stream.Send(&criv1.ContainerEventResponse{ContainerId: "c"}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

// serveCalls gives a client of a server that tells watch what it does, and what ends it once every call is told.
func serveCalls(t *testing.T, watch *Telemetry, s *service) (client criv1.RuntimeServiceClient, stop func()) {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(watch.ServerOptions()...)
	criv1.RegisterRuntimeServiceServer(server, s)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("unix://"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return criv1.NewRuntimeServiceClient(conn), server.GracefulStop
}

// fakeImages and fakeKeeper stand in for what they are named after: their figures are known.
type fakeImages struct{}

func (fakeImages) Count() int { return 3 }
func (fakeImages) FsInfo(context.Context) (image.FsInfo, error) {
	return image.FsInfo{UsedBytes: 1 << 20, InodesUsed: 17}, nil
}
func (fakeImages) Pulls() []image.Pull { return []image.Pull{{Idle: 2 * time.Second}, {}} }

type fakeKeeper struct{ hang chan struct{} }

func (fakeKeeper) Connected() bool    { return true }
func (fakeKeeper) Reconnects() uint64 { return 2 }
func (k fakeKeeper) List(ctx context.Context) ([]wire.Child, error) {
	select {
	case <-k.hang:
		return []wire.Child{{Kind: wire.KindContainer, LostLines: 5}, {Kind: wire.KindContainer, LostLines: 1}, {Kind: wire.KindExec}}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func fakeSources(k Keeper) Sources {
	return Sources{
		Operations: func() []*podsandbox.Operation {
			return []*podsandbox.Operation{{Kind: "run sandbox", Started: time.Now().Add(-time.Minute)}, {Kind: "run sandbox", Started: time.Now()}}
		},
		Objects: func() podsandbox.Counts {
			return podsandbox.Counts{Sandboxes: map[string]int{"ready": 2}, Containers: map[string]int{"running": 4, "exited": 1},
				Isolation: map[string]int{"confirmed": 2, "weaker": 1, "unknown": 1}}
		},
		Images: fakeImages{}, Keeper: k,
	}
}

// measured is a Telemetry with an endpoint that is served, and its URL.
func measured(t *testing.T, k Keeper) (*Telemetry, string) {
	t.Helper()
	watch, err := New(t.Context(), Config{Version: "v1.2.3", MetricsAddress: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	watch.Serve(t.Context(), fakeSources(k))
	t.Cleanup(func() {
		if err := watch.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return watch, "http://" + watch.metrics.listener.Addr().String() + "/metrics"
}

func scrape(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v\n%s", url, resp.Status, err, body)
	}
	return string(body)
}

func hasLines(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains("\n"+text, "\n"+line) {
			t.Errorf("got\n%s\nwant %q in it", text, line)
		}
	}
}

func TestCallsAreCountedByMethodAndCode(t *testing.T) {
	watch, url := measured(t, fakeKeeper{})
	client, _ := serveCalls(t, watch, &service{})
	for range 3 {
		if _, err := client.Version(t.Context(), &criv1.VersionRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	client.ContainerStatus(t.Context(), &criv1.ContainerStatusRequest{ContainerId: "x"})
	client.ListContainers(t.Context(), &criv1.ListContainersRequest{})
	ctx, cancel := context.WithCancel(t.Context())
	events, err := client.GetContainerEvents(ctx, &criv1.GetEventsRequest{})
	if err == nil {
		_, err = events.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	hasLines(t, scrape(t, url), `podwright_rpcs_in_flight{method="GetContainerEvents"} 1`, `podwright_rpcs_in_flight{method="Version"} 0`)
	cancel()
	ended := `podwright_rpc_duration_seconds_count{code="Canceled",method="GetContainerEvents"} 1`
	for deadline := time.Now().Add(5 * time.Second); !strings.Contains(scrape(t, url), ended); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the stream was left, and %s does not come", ended)
		}
	}
	hasLines(t, scrape(t, url), `podwright_rpc_duration_seconds_count{code="OK",method="Version"} 3`,
		`podwright_rpc_duration_seconds_count{code="NotFound",method="ContainerStatus"} 1`,
		`podwright_rpc_duration_seconds_count{code="Unimplemented",method="ListContainers"} 1`, `podwright_rpcs_in_flight{method="GetContainerEvents"} 0`)
}

func TestGaugesSayWhatTheirSourcesSay(t *testing.T) {
	answers := make(chan struct{})
	close(answers)
	watch, url := measured(t, fakeKeeper{answers})
	watch.Pulled(t.Context(), image.Pulled{Took: time.Second, ReceivedBytes: 1000})
	watch.Pulled(t.Context(), image.Pulled{Took: time.Second, ReceivedBytes: 24, Err: errors.Join(image.ErrUnavailable, image.ErrNoProgress)})
	hasLines(t, scrape(t, url), `podwright_build_info{version="v1.2.3"} 1`, `podwright_operations_in_flight{operation="run sandbox"} 2`,
		`podwright_operations_in_flight{operation="stop container"} 0`, `podwright_operation_oldest_age_seconds{operation="run sandbox"} 60`,
		`podwright_sandboxes{state="ready"} 2`, `podwright_containers{state="exited"} 1`, `podwright_container_isolation{isolation="weaker"} 1`, `podwright_images 3`, `podwright_image_filesystem_used_bytes 1.048576e+06`,
		`podwright_image_pulls_in_flight 2`, `podwright_image_pull_longest_idle_seconds 2`, `podwright_keeper_connected 1`, `podwright_keeper_reconnects_total 2`,
		`podwright_image_pull_duration_seconds_count{result="ok"} 1`, `podwright_image_pull_received_bytes_total 1024`,
		`podwright_image_pull_failures_total{reason="no_progress"} 1`, "go_goroutines ", "process_open_fds ")
	watch.metrics.endpoint.collector.running.Wait() // the keeper's answer
	hasLines(t, scrape(t, url), `podwright_keeper_children{kind="container"} 2`, `podwright_keeper_children{kind="reaper"} 0`, `podwright_keeper_lost_log_lines 6`)
}

// A keeper that does not answer holds up neither the collections nor the end, and is asked once at a time.
func TestHangingKeeperHoldsUpNoCollection(t *testing.T) {
	before := runtime.NumGoroutine()
	watch, err := New(t.Context(), Config{MetricsAddress: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	watch.Serve(t.Context(), fakeSources(fakeKeeper{make(chan struct{})}))
	begin := time.Now()
	for range 20 {
		scrape(t, "http://"+watch.metrics.listener.Addr().String()+"/metrics")
	}
	http.DefaultClient.CloseIdleConnections()
	if err := watch.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("20 collections took %s", took)
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, before %d", runtime.NumGoroutine(), before)
		}
	}
}

// Whoever reaches the endpoint gets one page, and cannot keep a connection by sending slowly.
func TestEndpointAnswersNothingElse(t *testing.T) {
	_, url := measured(t, fakeKeeper{})
	for _, path := range []string{"/", "/debug/pprof/", "/metrics/x"} {
		resp, err := http.Get(strings.TrimSuffix(url, "/metrics") + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("GET %s: got %s, want 404", path, resp.Status)
		}
	}
	resp, err := http.Post(url, "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: got %s, want 405", resp.Status)
	}
	conn, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/metrics"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nX-Slow: "); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(2 * headerTimeout))
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("half a request: got %v, want the connection closed after %s", err, headerTimeout)
	}
}

func TestTakenAddressIsAnErrorThatNamesIt(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = New(t.Context(), Config{MetricsAddress: taken.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), "metrics.address \""+taken.Addr().String()+"\"") || !strings.Contains(err.Error(), "in use") {
		t.Errorf("got %v, want the key, the address and why", err)
	}
}

func TestEveryFailureOfAPullHasAReason(t *testing.T) {
	for err, want := range map[error]string{
		image.ErrUnauthorized: "unauthorized", image.ErrNotFound: "not_found", image.ErrAbandoned: "cancelled", errors.New("disk"): "other",
	} {
		if got := pullReason(errors.Join(errors.New("pull image"), err)); got != want {
			t.Errorf("%v: got %s, want %s", err, got, want)
		}
	}
}
