// Package telemetry watches calls, operations and pulls: Prometheus metrics, OpenTelemetry traces and one log line for
// each call. It owns the metrics' names, the endpoint that serves them and the export of spans. It may not hold up what
// it watches, nor put the name of an image, pod or container into a label; what it collects is read from memory.
// Source: Prometheus' naming conventions; OpenTelemetry's trace specification; the kubelet's KubeletTracing (KEP-2831).
package telemetry

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"

	"github.com/podwright/podwright/podsandbox"
	"github.com/podwright/podwright/runtime/image"
)

// Config says what is told to whom; the zero value writes log lines and nothing else.
type Config struct {
	Version                string // podwright's own
	MetricsAddress         string // host:port of the endpoint; "" is none
	TracingEndpoint        string // host:port of an OTLP collector, spoken to in gRPC without TLS; "" is none
	SamplingRatePerMillion int    // of calls that bring no decision of their caller's
}

// Telemetry is what the daemon's parts tell what they do.
type Telemetry struct {
	metrics *metrics // nil without an endpoint
	traces  *traces  // nil without a collector
}

// New takes the endpoint's address; it is served from Serve on.
func New(ctx context.Context, cfg Config) (*Telemetry, error) {
	t := &Telemetry{}
	if cfg.MetricsAddress != "" {
		var err error
		if t.metrics, err = newMetrics(cfg); err != nil {
			return nil, fmt.Errorf("metrics.address %q: %w", cfg.MetricsAddress, err)
		}
	}
	if cfg.TracingEndpoint != "" {
		var err error
		if t.traces, err = newTraces(ctx, cfg, t.metrics); err != nil {
			return nil, errors.Join(fmt.Errorf("tracing.endpoint %q: %w", cfg.TracingEndpoint, err), t.metrics.close(ctx))
		}
	}
	return t, nil
}

// ServerOptions make a gRPC server tell about its calls.
func (t *Telemetry) ServerOptions() []grpc.ServerOption {
	options := []grpc.ServerOption{grpc.UnaryInterceptor(t.unary), grpc.StreamInterceptor(t.stream)}
	if t.traces != nil {
		options = append(options, grpc.StatsHandler(t.traces.handler()))
	}
	return options
}

// Serve answers the endpoint's callers from now on, with what sources say.
func (t *Telemetry) Serve(ctx context.Context, sources Sources) {
	if t.metrics != nil {
		t.metrics.serve(ctx, sources)
	}
}

// Operation is for podsandbox to call when an operation has ended.
func (t *Telemetry) Operation(ctx context.Context, op *podsandbox.Operation, err error) {
	if t.metrics != nil {
		t.metrics.operation(op, err)
	}
	if t.traces != nil {
		t.traces.operation(ctx, op, err)
	}
}

// Pulled is for the image store to call when a pull has ended.
func (t *Telemetry) Pulled(ctx context.Context, p image.Pulled) {
	if t.metrics != nil {
		t.metrics.pulled(p)
	}
	if t.traces != nil {
		t.traces.pulled(ctx, p)
	}
}

// Close sends the spans that wait, as far as ctx leaves time, and ends the endpoint.
func (t *Telemetry) Close(ctx context.Context) error {
	var err error
	if t.traces != nil {
		err = t.traces.close(ctx)
	}
	return errors.Join(err, t.metrics.close(ctx))
}
