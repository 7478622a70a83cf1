package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/cri/telemetry"
)

// drainTime is how long running creates may take to finish once the daemon was asked to stop. What is not
// finished then is torn down by the next start.
const drainTime = 20 * time.Second

// readTime is how long clients may take to read the last answers.
const readTime = time.Second

// flushTime is how long the last spans may take to be sent, after that.
const flushTime = 3 * time.Second

// openCalls counts the calls whose handler has not returned.
type openCalls struct{ count atomic.Int64 }

func (o *openCalls) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	o.count.Add(1)
	defer o.count.Add(-1)
	return handler(ctx, req)
}

func (o *openCalls) stream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	o.count.Add(1)
	defer o.count.Add(-1)
	return handler(srv, stream)
}

// stopServing ends calls gracefully and lets running creates finish. A client that does not read its last answer, the end
// of an event stream for one, keeps its connection open: it has readTime once nothing is being worked on.
func stopServing(server *grpc.Server, services *services, calls *openCalls) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	services.manager.Leave()
	err := services.sessions.Close(ctx) // first: what they end is still told by the keeper
	stopped := make(chan struct{})
	// Owner: this call; ends with the last RPC, or when Stop below cuts them.
	go func() {
		server.GracefulStop()
		close(stopped)
	}()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for idle := time.Duration(0); idle < readTime; {
		select {
		case <-stopped:
			return errors.Join(err, services.manager.Shutdown(ctx))
		case <-ctx.Done():
			idle = readTime
		case <-look.C:
			if idle += 50 * time.Millisecond; calls.count.Load() > 0 {
				idle = 0
			}
		}
	}
	server.Stop()
	return errors.Join(err, services.manager.Shutdown(ctx))
}

// stopMargin is what StopAll may take beside the grace: the kill, and recording the exits.
const stopMargin = 30 * time.Second

// stopWithNode gives all containers their stop signal and time to end if the node goes down, which systemd knows. When
// only the daemon stops they go on running.
func (s *services) stopWithNode(ctx context.Context) {
	if s.systemd == nil {
		return
	}
	log := klog.FromContext(ctx)
	stopping, err := s.systemd.Stopping(ctx)
	if err != nil {
		log.Error(err, "Could not learn whether the node goes down; containers keep running")
	}
	if !stopping {
		return
	}
	grace := time.Duration(s.cfg.Runtime.ShutdownGrace)
	ctx, cancel := context.WithTimeout(ctx, grace+stopMargin)
	defer cancel()
	notify(ctx, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", (grace+stopMargin+drainTime).Microseconds()))
	if err := s.manager.StopAll(ctx, grace); err != nil {
		log.Error(err, "Not all containers were stopped before the node goes down")
	}
}

// passLocks passes through what operations share: if one of them hangs, so does this.
func (s *services) passLocks() {
	s.manager.Operations()
	s.manager.Counts()
	s.manager.SandboxIDs()
}

// closeTelemetry sends what is still to be sent; a collector that does not answer holds up the end no longer than flushTime.
func closeTelemetry(watch *telemetry.Telemetry) {
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	if err := watch.Close(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Could not tell everything to who watches")
	}
}
