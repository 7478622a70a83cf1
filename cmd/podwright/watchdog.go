package main

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// watchdog tells systemd that the daemon serves, as often as the unit's WatchdogSec wants it, and only when it does: a
// call through its own socket is answered, and what every operation has to pass through does not hang. It is not told of
// what podwright waits for, a keeper, a plugin or a disk: starting it anew would help with none of them.
type watchdog struct {
	client criv1.RuntimeServiceClient
	close  func() error
	// locks passes through what operations share.
	locks func()
	every time.Duration // between two probes
	limit time.Duration // of one
	tell  func()
}

// startWatchdog begins where systemd asks for it; what it gives ends it.
func startWatchdog(ctx context.Context, socket string, locks func()) (func(), error) {
	within, err := daemon.SdWatchdogEnabled(false)
	if err != nil || within == 0 {
		return func() {}, err
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	// On a machine with too much to do a probe may take half of what systemd waits for: the next word is in time all the same.
	w := &watchdog{client: criv1.NewRuntimeServiceClient(conn), close: conn.Close, locks: locks, every: within / 4, limit: within / 2}
	w.tell = func() { notify(ctx, daemon.SdNotifyWatchdog) }
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	// Owner: serve; ends with the cancel below, which waits.
	go func() {
		defer close(done)
		w.run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}, nil
}

func (w *watchdog) run(ctx context.Context) {
	defer w.close()
	next := time.NewTicker(w.every)
	defer next.Stop()
	for {
		if err := w.probe(ctx); err == nil {
			w.tell()
		} else if ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "The daemon does not serve; systemd will start it anew if that lasts")
		}
		select {
		case <-next.C:
		case <-ctx.Done():
			return
		}
	}
}

// probe says why the daemon does not serve, or nil.
func (w *watchdog) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.limit)
	defer cancel()
	passed := make(chan struct{})
	// Owner: this call, which does not wait for one that hangs: that is what it is there to find.
	go func() {
		w.locks()
		close(passed)
	}()
	if _, err := w.client.Version(ctx, &criv1.VersionRequest{}); err != nil {
		return fmt.Errorf("a call through the socket: %w", err)
	}
	if _, err := w.client.ListPodSandbox(ctx, &criv1.ListPodSandboxRequest{}); err != nil {
		return fmt.Errorf("a call through the socket: %w", err)
	}
	select {
	case <-passed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("a lock that operations share was not free within %v", w.limit)
	}
}
