package node

import (
	"context"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	otlpv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// spanCollector is an OpenTelemetry collector that remembers.
type spanCollector struct {
	otlpv1.UnimplementedTraceServiceServer
	mu    sync.Mutex // mu guards spans.
	spans []*tracev1.Span
}

func (c *spanCollector) Export(_ context.Context, req *otlpv1.ExportTraceServiceRequest) (*otlpv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range req.GetResourceSpans() {
		for _, s := range r.GetScopeSpans() {
			c.spans = append(c.spans, s.GetSpans()...)
		}
	}
	return &otlpv1.ExportTraceServiceResponse{}, nil
}

// path names a span with all above it, up to what the collector does not know.
func (c *spanCollector) path(span *tracev1.Span) string {
	for _, above := range c.spans {
		if string(above.GetSpanId()) == string(span.GetParentSpanId()) {
			return c.path(above) + " > " + span.GetName()
		}
	}
	return hex.EncodeToString(span.GetParentSpanId()) + " > " + span.GetName()
}

// A call of a kubelet that traces: its trace goes on through the operation down to the steps. The daemon sends what waits
// when it ends.
func TestTraceOfAPodContinuesTheKubelets(t *testing.T) {
	needNode(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	collector := &spanCollector{}
	server := grpc.NewServer()
	otlpv1.RegisterTraceServiceServer(server, collector)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	n := ownNode(t, options{config: "[tracing]\nendpoint = \"" + listener.Addr().String() + "\"\n"})
	n.watch(t)
	const traceID, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	traced := metadata.AppendToOutgoingContext(ctx(t), "traceparent", "00-"+traceID+"-"+parent+"-01")
	name := pushUnique(t, "node/traced:1", "traced")
	pulled, err := n.images.PullImage(traced, &criv1.PullImageRequest{Image: image(name)})
	if err != nil {
		t.Fatal(err)
	}
	p := n.pod(t) // not traced
	s, err := n.RunPodSandbox(traced, &criv1.RunPodSandboxRequest{Config: n.podConfig(ownNetwork)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.removePod(t, s.GetPodSandboxId()) })
	config := p.containerConfig(nil, "true")
	c, err := n.CreateContainer(traced, &criv1.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err == nil {
		_, err = n.StartContainer(traced, &criv1.StartContainerRequest{ContainerId: c.GetContainerId()})
	}
	if err == nil {
		_, err = n.images.RemoveImage(ctx(t), &criv1.RemoveImageRequest{Image: image(pulled.GetImageRef())})
	}
	if err != nil {
		t.Fatal(err)
	}
	n.restart(t, unix.SIGTERM, nil)
	collector.mu.Lock()
	defer collector.mu.Unlock()
	var paths []string
	for _, span := range collector.spans {
		if got := hex.EncodeToString(span.GetTraceId()); got != traceID {
			t.Errorf("span %s is of trace %s, want the kubelet's alone", span.GetName(), got)
		}
		if span.GetEndTimeUnixNano() < span.GetStartTimeUnixNano() || time.Since(time.Unix(0, int64(span.GetStartTimeUnixNano()))) > time.Minute {
			t.Errorf("span %s: from %d to %d", span.GetName(), span.GetStartTimeUnixNano(), span.GetEndTimeUnixNano())
		}
		paths = append(paths, collector.path(span))
	}
	all := strings.Join(paths, "\n") + "\n"
	for _, want := range []string{
		"runtime.v1.ImageService/PullImage > pull image > downloading",
		"runtime.v1.RuntimeService/RunPodSandbox > run sandbox > make namespaces", "runtime.v1.RuntimeService/RunPodSandbox > run sandbox > attach network",
		"runtime.v1.RuntimeService/CreateContainer > create container > look at mounts and devices",
		"runtime.v1.RuntimeService/StartContainer > start container > start process",
	} {
		if !strings.Contains(all, parent+" > "+want+"\n") {
			t.Errorf("got\n%s\nwant %s > %s", all, parent, want)
		}
	}
}

// freeAddress is one on loopback that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// The figures of a daemon at work. A bad address is refused before anything is touched.
func TestMetricsOfANode(t *testing.T) {
	needNode(t)
	address := freeAddress(t)
	n := ownNode(t, options{config: "[metrics]\naddress = \"" + address + "\"\n"})
	n.watch(t)
	c := n.pod(t, ownNetwork).sleeper(nil)
	c.exec("true")
	if _, err := n.ContainerStatus(ctx(t), &criv1.ContainerStatusRequest{ContainerId: "absent"}); err == nil {
		t.Error("status of what isn't there: got success")
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // or the daemon keeps a connection
	metrics := func() string {
		resp, err := client.Get("http://" + address + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("metrics: %s, %v\n%s", resp.Status, err, body)
		}
		return string(body)
	}
	metrics() // the keeper's figures are those of the collection before
	for _, want := range []string{
		`podwright_containers{state="running"} 1`, `podwright_sandboxes{state="ready"} 1`, `podwright_images 1`, `podwright_keeper_connected 1`,
		`podwright_keeper_children{kind="container"} 1`, `podwright_rpc_duration_seconds_count{code="NotFound",method="ContainerStatus"} 1`,
		`podwright_operation_step_duration_seconds_count{operation="run sandbox",step="attach network"}`,
		`podwright_operation_step_duration_seconds_count{operation="start container",step="start process"} `,
		`podwright_operation_duration_seconds_count{operation="exec",result="ok"} 1`, `podwright_operations_in_flight{operation="run sandbox"} 0`,
		`podwright_image_pull_duration_seconds_count{result="ok"} 1`,
	} {
		eventually(t, 5*time.Second, want, func() bool { return strings.Contains(metrics(), "\n"+want) })
	}
	text := metrics()
	if lines := strings.Count(text, "\n"); lines > 3000 {
		t.Errorf("%d lines: every label is to have few values", lines)
	}
	for _, secret := range []string{c.id, "e2e", "127.0.0.1"} {
		if strings.Contains(text, secret) {
			t.Errorf("the metrics have %q in them", secret)
		}
	}
	for config, word := range map[string]string{
		"[metrics]\naddress = \"9417\"\n": "metrics.address: \"9417\" is no host:port", "[metrics]\naddress = \"192.0.2.1:9\"\n": "metrics.address \"192.0.2.1:9\": listen",
		"[tracing]\nendpoint = \"http://x:4317\"\n": "tracing.endpoint: \"http://x:4317\"", "[tracing]\nsampling_rate_per_million = -1\n": "tracing.sampling_rate_per_million: -1",
	} {
		if _, err := newNode(options{config: config}); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: got %v, want the daemon to end with %q", config, err, word)
		}
	}
}
