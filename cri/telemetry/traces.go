package telemetry

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/stats"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox"
	"github.com/podwright/podwright/runtime/image"
)

// What waits for the collector: beyond maxQueue spans are dropped, and nobody waits.
const (
	maxQueue      = 2048
	maxBatch      = 512
	exportTimeout = 10 * time.Second
	perMillion    = 1e6
)

// traces makes spans and sends them. A call's span continues the trace of its caller, who decides whether it is kept.
type traces struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

func newTraces(ctx context.Context, cfg Config, m *metrics) (*traces, error) {
	client, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(cfg.TracingEndpoint), otlptracegrpc.WithInsecure(), otlptracegrpc.WithTimeout(exportTimeout))
	if err != nil {
		return nil, err
	}
	kept := &exporter{SpanExporter: client, log: klog.FromContext(ctx), endpoint: cfg.TracingEndpoint}
	if m != nil {
		kept.failures = m.exportFailures
	}
	about, err := resource.New(ctx, resource.WithHost(), resource.WithAttributes(attribute.String("service.name", "podwright"), attribute.String("service.version", cfg.Version)))
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, errors.Join(err, client.Shutdown(ctx))
	}
	t := &traces{provider: sdktrace.NewTracerProvider(
		sdktrace.WithResource(about), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(float64(cfg.SamplingRatePerMillion)/perMillion))),
		sdktrace.WithBatcher(kept, sdktrace.WithMaxQueueSize(maxQueue), sdktrace.WithMaxExportBatchSize(maxBatch), sdktrace.WithExportTimeout(exportTimeout)),
	)}
	t.tracer = t.provider.Tracer("github.com/podwright/podwright/cri/telemetry")
	return t, nil
}

// handler makes a span of every call, within the caller's trace (W3C trace context in the gRPC metadata, as the kubelet sends it).
func (t *traces) handler() stats.Handler {
	return otelgrpc.NewServerHandler(otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithPropagators(propagation.TraceContext{}),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()))
}

// operation makes spans of what has ended, with its own times: an operation that is not traced costs nothing.
func (t *traces) operation(ctx context.Context, op *podsandbox.Operation, err error) {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return
	}
	ctx, span := t.tracer.Start(ctx, op.Kind, trace.WithTimestamp(op.Started),
		trace.WithAttributes(attribute.String("podwright.name", op.Name), attribute.String("podwright.id", op.ID())))
	for _, s := range op.Steps() {
		t.step(ctx, s.Name, s.Began, s.Began.Add(s.Took))
	}
	end(span, op.Started.Add(op.Took()), err)
}

// pulled makes spans of a pull; its phases are one after the other.
func (t *traces) pulled(ctx context.Context, p image.Pulled) {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return
	}
	ctx, span := t.tracer.Start(ctx, "pull image", trace.WithTimestamp(p.Started),
		trace.WithAttributes(attribute.String("podwright.name", p.Reference), attribute.Int64("podwright.received_bytes", p.ReceivedBytes)))
	ended := p.Started.Add(p.Took)
	for i, phase := range p.Phases {
		next := ended
		if i+1 < len(p.Phases) {
			next = p.Phases[i+1].Began
		}
		t.step(ctx, phase.Name, phase.Began, next)
	}
	end(span, ended, p.Err)
}

func (t *traces) step(ctx context.Context, name string, began, ended time.Time) {
	_, span := t.tracer.Start(ctx, name, trace.WithTimestamp(began))
	span.End(trace.WithTimestamp(ended))
}

func end(span trace.Span, at time.Time, err error) {
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End(trace.WithTimestamp(at))
}

// close sends what waits, as far as ctx leaves time.
func (t *traces) close(ctx context.Context) error { return t.provider.Shutdown(ctx) }

// exporter says once that the collector does not take spans, and once that it does again.
type exporter struct {
	sdktrace.SpanExporter
	log      klog.Logger
	endpoint string
	failures prometheus.Counter // nil without metrics
	failing  atomic.Bool
}

// ExportSpans answers no error: the library would print it each time.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	if err != nil && e.failures != nil {
		e.failures.Inc()
	}
	switch {
	case err != nil && !e.failing.Swap(true):
		e.log.Error(err, "Spans are being lost: the collector does not take them", "endpoint", e.endpoint)
	case err == nil && e.failing.Swap(false):
		e.log.Info("The collector takes spans again", "endpoint", e.endpoint)
	}
	return nil
}
