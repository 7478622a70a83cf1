package telemetry

import (
	"context"
	"encoding/hex"
	"net"
	"sync"
	"testing"
	"time"

	otlpv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/image"
)

// collecting is an OTLP collector.
type collecting struct {
	otlpv1.UnimplementedTraceServiceServer
	hang chan struct{} // nil: it answers at once

	mu    sync.Mutex // mu guards spans.
	spans map[string]*tracev1.Span
}

func (c *collecting) Export(ctx context.Context, req *otlpv1.ExportTraceServiceRequest) (*otlpv1.ExportTraceServiceResponse, error) {
	if c.hang != nil {
		select {
		case <-c.hang:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range req.GetResourceSpans() {
		for _, s := range r.GetScopeSpans() {
			for _, span := range s.GetSpans() {
				c.spans[span.GetName()] = span
			}
		}
	}
	return &otlpv1.ExportTraceServiceResponse{}, nil
}

func collectSpans(t *testing.T, c *collecting) (address string) {
	t.Helper()
	c.spans = map[string]*tracev1.Span{}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	otlpv1.RegisterTraceServiceServer(server, c)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

const (
	callersTrace = "0af7651916cd43dd8448eb211c80319c"
	callersSpan  = "b7ad6b7169203331"
)

// asKubelet is a call within a trace, as a kubelet with KubeletTracing makes it; flags 01 say that it is kept.
func asKubelet(ctx context.Context, flags string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "traceparent", "00-"+callersTrace+"-"+callersSpan+"-"+flags)
}

func TestSpansContinueTheCallersTrace(t *testing.T) {
	c := &collecting{}
	watch, err := New(t.Context(), Config{Version: "v1.2.3", TracingEndpoint: collectSpans(t, c)})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	client, stop := serveCalls(t, watch, &service{pull: func(ctx context.Context) {
		watch.Pulled(ctx, image.Pulled{Reference: "example.org/app:1", Started: begin, Took: 3 * time.Second, Phases: []image.Phase{
			{Name: "resolving", Began: begin}, {Name: "downloading", Began: begin.Add(time.Second)},
		}})
	}})
	if _, err := client.Version(asKubelet(t.Context(), "01"), &criv1.VersionRequest{}); err != nil {
		t.Fatal(err)
	}
	client.ContainerStatus(asKubelet(t.Context(), "00"), &criv1.ContainerStatusRequest{}) // its caller does not keep it
	client.ListContainers(t.Context(), &criv1.ListContainersRequest{})                    // nobody decided, and the rate is 0
	stop()                                                                                // a span ends after its answer
	if err := watch.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	parents := map[string]string{
		"runtime.v1.RuntimeService/Version": callersSpan, "pull image": id(c.spans["runtime.v1.RuntimeService/Version"]),
		"resolving": id(c.spans["pull image"]), "downloading": id(c.spans["pull image"]),
	}
	for name, parent := range parents {
		span := c.spans[name]
		if hex.EncodeToString(span.GetTraceId()) != callersTrace || hex.EncodeToString(span.GetParentSpanId()) != parent || parent == "" {
			t.Errorf("span %s: got %v, want it in the trace %s below %s", name, span, callersTrace, parent)
		}
	}
	if len(c.spans) != len(parents) {
		t.Errorf("got %d spans, want %d: %v", len(c.spans), len(parents), c.spans)
	}
	if s := c.spans["downloading"]; s.GetEndTimeUnixNano()-s.GetStartTimeUnixNano() != uint64(2*time.Second) {
		t.Errorf("downloading: got %v, want 2 s", s)
	}
}

func id(span *tracev1.Span) string { return hex.EncodeToString(span.GetSpanId()) }

// A collector that takes nothing, hanging or absent, holds up no call, and the end no longer than it may.
func TestCollectorThatTakesNothingHoldsUpNobody(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	for what, endpoint := range map[string]string{"hangs": collectSpans(t, &collecting{hang: hang}), "is absent": "127.0.0.1:1"} {
		t.Run(what, func(t *testing.T) {
			watch, err := New(t.Context(), Config{TracingEndpoint: endpoint, SamplingRatePerMillion: 1_000_000})
			if err != nil {
				t.Fatal(err)
			}
			client, _ := serveCalls(t, watch, &service{})
			begin := time.Now()
			for range 2 * maxQueue {
				if _, err := client.Version(t.Context(), &criv1.VersionRequest{}); err != nil {
					t.Fatal(err)
				}
			}
			calls := time.Since(begin)
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			begin = time.Now()
			watch.Close(ctx)
			if took := time.Since(begin); calls > 20*time.Second || took > 2*time.Second {
				t.Errorf("%d calls took %s, the end %s", 2*maxQueue, calls, took)
			}
		})
	}
}
