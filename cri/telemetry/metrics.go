package telemetry

import (
	"context"
	"errors"
	"net"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/podwright/podwright/podsandbox"
	"github.com/podwright/podwright/runtime/image"
)

// Buckets in seconds: of calls, from those answered from memory to a create's deadline; of steps, finer at the lower end;
// of pulls, up to half an hour.
var (
	callBuckets = []float64{0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 240}
	stepBuckets = []float64{0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60}
	pullBuckets = []float64{0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800}
)

// metrics are what is counted as it happens; what is read when somebody asks is the collector's. docs/observability.md
// lists them all, and a test compares. Every label has few values, none of a client's choice: calls, codes, kinds, steps.
type metrics struct {
	registry *prometheus.Registry
	listener net.Listener
	endpoint *endpoint // nil before serve

	calls          *prometheus.HistogramVec // method, code
	callsInFlight  *prometheus.GaugeVec     // method
	operations     *prometheus.HistogramVec // operation, result
	steps          *prometheus.HistogramVec // operation, step
	pulls          *prometheus.HistogramVec // result
	pullBytes      prometheus.Counter
	pullFailures   *prometheus.CounterVec // reason
	exportFailures prometheus.Counter
}

func newMetrics(cfg Config) (*metrics, error) {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		calls: histogram("podwright_rpc_duration_seconds", "How long calls took to be answered, streams to end.", callBuckets,
			"method", "code"),
		callsInFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "podwright_rpcs_in_flight", Help: "Calls that are being answered."},
			[]string{"method"}),
		operations: histogram("podwright_operation_duration_seconds", "How long operations took.", callBuckets, "operation", "result"),
		steps:      histogram("podwright_operation_step_duration_seconds", "How long the steps of operations took.", stepBuckets, "operation", "step"),
		pulls:      histogram("podwright_image_pull_duration_seconds", "How long image pulls took.", pullBuckets, "result"),
		pullBytes:  counter("podwright_image_pull_received_bytes_total", "Bytes received from registries."),
		pullFailures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "podwright_image_pull_failures_total", Help: "Image pulls that failed, by reason."},
			[]string{"reason"}),
		exportFailures: counter("podwright_trace_export_failures_total", "Batches of spans that the collector did not take."),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "podwright_build_info", Help: "Always 1; the label says which podwright runs.", ConstLabels: prometheus.Labels{"version": cfg.Version},
	})
	build.Set(1)
	for _, c := range []prometheus.Collector{
		m.calls, m.callsInFlight, m.operations, m.steps, m.pulls, m.pullBytes, m.pullFailures, m.exportFailures, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := m.registry.Register(c); err != nil {
			return nil, err
		}
	}
	var err error
	m.listener, err = net.Listen("tcp", cfg.MetricsAddress)
	return m, err
}

func histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func (m *metrics) operation(op *podsandbox.Operation, err error) {
	steps := op.Steps()
	for _, s := range steps {
		m.steps.WithLabelValues(op.Kind, s.Name).Observe(s.Took.Seconds())
	}
	m.operations.WithLabelValues(op.Kind, result(err)).Observe(op.Took().Seconds())
}

func (m *metrics) pulled(p image.Pulled) {
	m.pulls.WithLabelValues(result(p.Err)).Observe(p.Took.Seconds())
	m.pullBytes.Add(float64(p.ReceivedBytes))
	if p.Err != nil {
		m.pullFailures.WithLabelValues(pullReason(p.Err)).Inc()
	}
}

func result(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

// pullReasons give the failures of a pull their label; the first that fits counts.
var pullReasons = []struct {
	err   error
	label string
}{
	{image.ErrNoProgress, "no_progress"}, {image.ErrUnavailable, "unavailable"}, {image.ErrUnauthorized, "unauthorized"}, {image.ErrInvalidAuth, "unauthorized"},
	{image.ErrNotFound, "not_found"}, {image.ErrDigestMismatch, "digest_mismatch"}, {image.ErrNoPlatform, "no_platform"},
	{image.ErrInvalidImage, "invalid_image"}, {image.ErrInvalidReference, "invalid_reference"}, {image.ErrClosed, "cancelled"}, {image.ErrAbandoned, "cancelled"},
	{context.Canceled, "cancelled"},
}

func pullReason(err error) string {
	for _, r := range pullReasons {
		if errors.Is(err, r.err) {
			return r.label
		}
	}
	return "other"
}

// close ends the endpoint; nil has none.
func (m *metrics) close(ctx context.Context) error {
	switch {
	case m == nil:
		return nil
	case m.endpoint == nil:
		return m.listener.Close()
	}
	return m.endpoint.close(ctx)
}
