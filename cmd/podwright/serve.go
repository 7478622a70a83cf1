package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/cmd/podwright/internal/config"
	"github.com/podwright/podwright/cri"
	"github.com/podwright/podwright/cri/telemetry"
)

// spareProcs are for calls while all processors are busy with images.
const spareProcs = 4

func serveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "serve", Short: "Run the daemon; containers outlive it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			if err := setLogLevel(cfg.LogLevel); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			return serve(ctx, cfg)
		},
	}
}

// setLogLevel sets klog's level. The embedded image libraries log through logrus, with warnings about what a file
// system lacks that nobody can act on: only their errors are shown.
func setLogLevel(level int) error {
	logrus.SetLevel(logrus.ErrorLevel)
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	return errors.Join(flags.Set("v", strconv.Itoa(level)), logToJournal(flags))
}

// serve runs until ctx ends. The socket opens only after recovery, or with a keeper that does not answer, and READY is said
// only then.
func serve(ctx context.Context, cfg config.Config) error {
	unix.Umask(0o022) // whatever the caller's was: files and sockets below depend on it, and CNI plugins inherit it
	// More than there are processors: a call must not wait for a goroutine that unpacks to be preempted, which takes Go 10 ms
	// and the kernel no time.
	runtime.GOMAXPROCS(runtime.NumCPU() + spareProcs)
	log := klog.FromContext(ctx)
	begin := time.Now()
	lock, err := lockInstance(cfg.RunDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	watch, err := telemetry.New(ctx, telemetry.Config{
		Version: version, MetricsAddress: cfg.Metrics.Address, TracingEndpoint: cfg.Tracing.Endpoint, SamplingRatePerMillion: cfg.Tracing.SamplingRate,
	})
	if err != nil {
		return err
	}
	defer closeTelemetry(watch)
	services, err := openServices(ctx, cfg, watch)
	if err != nil {
		return err
	}
	defer services.close()
	watch.Serve(ctx, services.sources())
	calls := &openCalls{}
	streams, gate := cri.Streams{Leaving: services.manager.Leaving()}, cri.Gate{Recovered: services.manager.Recovered}
	server := grpc.NewServer(append(watch.ServerOptions(), grpc.MaxRecvMsgSize(cri.MaxMessageBytes), grpc.MaxSendMsgSize(cri.MaxMessageBytes),
		grpc.ChainUnaryInterceptor(calls.unary, gate.Intercept), grpc.ChainStreamInterceptor(calls.stream, streams.Intercept))...)
	if err := services.register(server); err != nil {
		return err
	}
	listener, err := listen(cfg.Socket)
	if err != nil {
		return err
	}
	done := make(chan error, 2)
	// Owner: serve; ends with the server; serve waits below.
	go func() { done <- server.Serve(listener) }()
	// Owner: serve; ends with stopServing, which waits for the sessions.
	go func() { done <- services.sessions.Serve() }()
	log.Info("Serving", "socket", cfg.Socket, "version", version, "duration", time.Since(begin))
	notify(ctx, daemon.SdNotifyReady)
	endWatchdog, err := startWatchdog(ctx, cfg.Socket, services.passLocks)
	if err != nil {
		log.Error(err, "The unit's watchdog is not served")
		endWatchdog = func() {}
	}
	defer endWatchdog()
	select {
	case err = <-done:
		return fmt.Errorf("serve %s: %w", cfg.Socket, err)
	case <-ctx.Done():
	}
	detached := context.WithoutCancel(ctx)
	notify(detached, daemon.SdNotifyStopping)
	services.stopWithNode(detached)
	log.Info("Stopping; containers keep running")
	return stopServing(server, services, calls)
}

func notify(ctx context.Context, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		klog.FromContext(ctx).Error(err, "Could not notify systemd", "state", state)
	}
}

// lockPatience is how long the lock of a daemon that is gone may still be held.
const lockPatience = 3 * time.Second

// lockInstance makes this the only daemon of the run directory, until the file is closed or the process ends.
func lockInstance(runDir string) (*os.File, error) {
	if err := os.MkdirAll(runDir, 0o711); err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	path := filepath.Join(runDir, "podwright.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	// A child that a killed daemon was forking holds its lock until it executes.
	for end := time.Now().Add(lockPatience); ; time.Sleep(20 * time.Millisecond) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another podwright runs on %s (it holds %s)", runDir, path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// listen opens the socket for root and its group alone. The instance lock is held, so a socket that is there is stale.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("make socket directory: %w", err)
	}
	switch info, err := os.Lstat(path); {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("look at socket: %w", err)
	case info.Mode()&os.ModeSocket == 0:
		return nil, fmt.Errorf("socket %s: a file that is no socket is there", path)
	default:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove stale socket: %w", err)
		}
	}
	// By the umask of serve nobody but root may write to it, that is connect, before its mode is set.
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		listener.Close()
		return nil, fmt.Errorf("set mode of socket: %w", err)
	}
	return listener, nil
}
