package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Names of measures that floors and readers look for.
const (
	podToRunning = "pod to running"
	podToLine    = "pod to first log line"
	cpuOfAll     = "CPU, runtime and pods"
	cpuOfRuntime = "CPU, runtime"
)

// service says that it is up, and ends when it is told to. A shell that is PID 1 gets a
// signal only if it traps it, and obeys only while it waits.
var service = []string{"/bin/sh", "-c", "trap 'exit 0' TERM; echo ready; sleep 100000 & wait"}

// kinds are the pods whose life is measured: how the kubelet makes them, and for interest
// one with the PID namespace shared.
func (b *bench) kinds() []podKind {
	var kinds []podKind
	for _, n := range b.networks() {
		kinds = append(kinds, podKind{network: n, pid: ownPID, command: service})
	}
	if !b.skip["shared-pid"] {
		kinds = append(kinds, podKind{network: hostNetwork, pid: criv1.NamespaceMode_POD, command: service})
	}
	return kinds
}

func (k podKind) String() string {
	if k.pid == criv1.NamespaceMode_POD {
		return string(k.network) + ", shared PID namespace"
	}
	return string(k.network)
}

// lifecycles measures pods from RunPodSandbox to RemovePodSandbox, one at a time.
func (b *bench) lifecycles(ctx context.Context) error {
	for _, kind := range b.kinds() {
		section := "pod life cycle, " + kind.String()
		say("%s: %d pods", section, b.n)
		meters := b.meters(section, 1)
		// The first pod makes what a node makes once: parent groups, the bridge.
		for i := -1; i < b.n; i++ {
			err := b.alternate(i+1, func(r *candidate) error {
				p, err := b.newPod(r, kind)
				if err != nil {
					return err
				}
				took := b.samples.of(section, r.name)
				if i < 0 {
					took = discard
				} else {
					meters[r].mark()
				}
				return p.live(ctx, took)
			})
			if err != nil {
				return err
			}
		}
		if err := meters.finish(ctx); err != nil {
			return err
		}
	}
	return nil
}

// parallelLifecycles does the same with several pods at a time. Between runtimes it
// alternates by batch.
func (b *bench) parallelLifecycles(ctx context.Context) error {
	for _, network := range b.networks() {
		kind := podKind{network: network, pid: ownPID, command: service}
		section := fmt.Sprintf("pod life cycle, %s, %d at a time", kind, b.parallel)
		batches := max(1, b.n/b.parallel)
		say("%s: %d batches", section, batches)
		meters := b.meters(section, b.parallel)
		for i := range batches {
			err := b.alternate(i, func(r *candidate) error {
				meters[r].mark()
				pods := make([]*pod, b.parallel)
				for j := range pods {
					var err error
					if pods[j], err = b.newPod(r, kind); err != nil {
						return err
					}
				}
				took := b.samples.of(section, r.name)
				begin := time.Now()
				err := inParallel(pods, b.parallel, func(p *pod) error { return p.live(ctx, took) })
				took("whole batch", time.Since(begin))
				return err
			})
			if err != nil {
				return err
			}
		}
		if err := meters.finish(ctx); err != nil {
			return err
		}
	}
	return nil
}

// live takes a pod through its life and hands over how long each step took.
func (p *pod) live(ctx context.Context, took func(string, time.Duration)) error {
	line, err := watchLog(p.logPath())
	if err != nil {
		return err
	}
	defer line.close()
	begin := time.Now()
	if err := do(ctx, p.startSteps(), took); err != nil {
		return err
	}
	took(podToRunning, time.Since(begin))
	at, err := line.wait(ctx, "stdout F ready\n")
	if err != nil {
		return err
	}
	took(podToLine, at.Sub(begin))
	err = do(ctx, p.stopSteps(), took)
	took("whole life", time.Since(begin))
	return err
}

// logWatch waits for a container's first log line.
type logWatch struct {
	path    string
	watcher *fsnotify.Watcher
	seen    chan seenLine
}

type seenLine struct {
	at   time.Time
	text string
	err  error
}

// watchLog starts to watch; the log need not be there yet, its directory must.
func watchLog(path string) (*logWatch, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	if err := watcher.Add(filepath.Dir(path)); err != nil {
		watcher.Close()
		return nil, err
	}
	w := &logWatch{path: path, watcher: watcher, seen: make(chan seenLine, 1)}
	// Owned by the logWatch: ends with the first line or when close ends the events.
	go w.watch()
	return w, nil
}

func (w *logWatch) watch() {
	for {
		select {
		case _, ok := <-w.watcher.Events:
			if !ok {
				return
			}
			text, err := os.ReadFile(w.path)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if end := bytes.IndexByte(text, '\n'); end >= 0 || err != nil {
				w.seen <- seenLine{time.Now(), string(text[:end+1]), err}
				return
			}
		case err, ok := <-w.watcher.Errors:
			if ok {
				w.seen <- seenLine{err: err}
			}
			return
		}
	}
}

// wait returns when the first line was there, which must end as given.
func (w *logWatch) wait(ctx context.Context, want string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	select {
	case line := <-w.seen:
		if line.err == nil && !bytes.HasSuffix([]byte(line.text), []byte(want)) {
			line.err = fmt.Errorf("%s: the first line is %q, want it to end in %q", w.path, line.text, want)
		}
		return line.at, line.err
	case <-ctx.Done():
		return time.Time{}, fmt.Errorf("%s: first line: %w", w.path, ctx.Err())
	}
}

func (w *logWatch) close() { w.watcher.Close() }

func discard(string, time.Duration) {}
