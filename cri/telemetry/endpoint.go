package telemetry

import (
	"context"
	"errors"
	"io"
	stdlog "log"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
	"k8s.io/klog/v2"
)

// What a caller of the endpoint may take: whoever reaches the address may be anybody.
const (
	maxConnections = 32
	maxCollections = 4 // at a time
	headerTimeout  = 5 * time.Second
	answerTimeout  = 30 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 8 << 10
)

// endpoint serves the metrics over HTTP: one path, no bodies read.
type endpoint struct {
	server    *http.Server
	collector *collector
	served    sync.WaitGroup
}

func (m *metrics) serve(ctx context.Context, sources Sources) {
	c := newCollector(sources)
	m.registry.MustRegister(c) // its names are fixed, and a test registers them
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxCollections, Timeout: answerTimeout / 2}))
	e := &endpoint{collector: c, server: &http.Server{
		Handler: mux, ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: answerTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeaderBytes, ErrorLog: stdlog.New(io.Discard, "", 0), // or strangers write our log
	}}
	m.endpoint = e
	log := klog.FromContext(ctx)
	e.served.Add(1)
	// Owner: endpoint; ends with Shutdown or Close, which close waits for.
	go func() {
		defer e.served.Done()
		if err := e.server.Serve(netutil.LimitListener(m.listener, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
			log.Error(err, "Metrics are not served any more", "address", m.listener.Addr().String())
		}
	}()
	log.Info("Serving metrics", "address", m.listener.Addr().String())
}

func (e *endpoint) close(ctx context.Context) error {
	err := e.server.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, e.server.Close())
	}
	e.served.Wait()
	e.collector.close()
	return err
}
