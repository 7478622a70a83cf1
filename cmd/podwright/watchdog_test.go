package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// fakeRuntime answers the probe's calls.
type fakeRuntime struct {
	criv1.RuntimeServiceClient
	fail atomic.Bool
}

func (f *fakeRuntime) Version(context.Context, *criv1.VersionRequest, ...grpc.CallOption) (*criv1.VersionResponse, error) {
	if f.fail.Load() {
		return nil, errors.New("refused")
	}
	return &criv1.VersionResponse{}, nil
}

func (f *fakeRuntime) ListPodSandbox(context.Context, *criv1.ListPodSandboxRequest, ...grpc.CallOption) (*criv1.ListPodSandboxResponse, error) {
	return &criv1.ListPodSandboxResponse{}, nil
}

func TestWatchdogIsToldOnlyWhileTheDaemonServes(t *testing.T) {
	client := &fakeRuntime{}
	var told atomic.Int32
	var hangs atomic.Bool
	release := make(chan struct{})
	w := &watchdog{
		client: client, close: func() error { return nil }, every: 5 * time.Millisecond, limit: 20 * time.Millisecond,
		tell: func() { told.Add(1) },
		locks: func() {
			if hangs.Load() {
				<-release
			}
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.run(ctx)
	}()
	grows := func(want bool) {
		t.Helper()
		time.Sleep(50 * time.Millisecond) // a probe that began before
		before := told.Load()
		time.Sleep(150 * time.Millisecond)
		if got := told.Load() > before; got != want {
			t.Errorf("told %d times within 150 ms, want any: %v", told.Load()-before, want)
		}
	}
	grows(true)
	hangs.Store(true)
	grows(false)
	hangs.Store(false)
	close(release)
	grows(true)
	client.fail.Store(true)
	grows(false)
	cancel()
	<-done
}

func TestWatchdogOnlyWhereSystemdAsksForIt(t *testing.T) {
	end, err := startWatchdog(t.Context(), "/nonexistent", func() { t.Error("probed") })
	if err != nil {
		t.Fatal(err)
	}
	end()
}

// klog's settings are the process's, so this is one of its own.
func TestJournalLinesHavePrioritiesAndNoTime(t *testing.T) {
	if os.Getenv("PODWRIGHT_TEST_JOURNAL") != "" {
		flags := flag.NewFlagSet("klog", flag.ContinueOnError)
		klog.InitFlags(flags)
		if err := logWithPriorities(flags, os.Stderr); err != nil {
			t.Fatal(err)
		}
		klog.InfoS("Serving", "socket", "x")
		klog.ErrorS(errors.New("boom"), "Could not", "id", "y")
		klog.Warning("odd")
		klog.Flush()
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestJournalLinesHavePrioritiesAndNoTime$")
	cmd.Env = append(os.Environ(), "PODWRIGHT_TEST_JOURNAL=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	want := []string{`<6>"Serving" socket="x"`, `<3>"Could not" err="boom" id="y"`, `<4>odd`}
	if got := strings.Split(strings.TrimSpace(stderr.String()), "\n"); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q, want %q", got, want)
	}
}
