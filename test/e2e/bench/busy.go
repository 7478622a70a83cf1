package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	goruntime "runtime"
	"slices"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/test/e2e/registry"
)

const (
	// busyPods are there while lists are measured at rest and under load.
	busyPods = 500
	// listPause is between two lists. The kubelet pauses for a second.
	listPause = 5 * time.Millisecond
	// heavyImage has so many layers of so many megabytes, which compress to about two thirds.
	heavyLayers, heavyMegabytes = 4, 40

	idleLists, busyLists, startLists = ", at rest", ", while an image is pulled and ten pods start", ", of those while the ten pods start"
	busyTimes, startTimes            = " p99, busy by rest", " p99, starting by rest"
	busySection                      = "lists of 500 pods"
)

// watched are the lists that the kubelet asks for every second, and a call that costs nothing: what that one loses under
// load is the processors' doing.
var watched = append(slices.Clone(listCalls[:2]), listCall{"Version", func(ctx context.Context, r *candidate) (int, error) {
	_, err := r.cri.Version(ctx, &criv1.VersionRequest{})
	return busyPods, err
}})

// busy measures the lists of every runtime at rest, and then while it pulls an image and starts ten pods, round after
// round. What a round made is removed after it, with nobody looking.
func (b *bench) busy(ctx context.Context) error {
	// This process serves the image too: what it sends must not hold up what it measures.
	defer goruntime.GOMAXPROCS(goruntime.GOMAXPROCS(goruntime.NumCPU() + heavyLayers))
	image, stop, err := serveHeavyImage(ctx)
	if err != nil {
		return err
	}
	defer stop()
	for _, r := range b.candidates {
		if err := b.busyOn(ctx, r, image); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}

func (b *bench) busyOn(ctx context.Context, r *candidate, image string) error {
	say("%s: starting them on %s", busySection, r.name)
	pods, err := b.startAll(ctx, r, busyKind, busyPods)
	defer func() { b.stopAll(context.WithoutCancel(ctx), started(pods)) }()
	if err != nil {
		return err
	}
	if err := sleep(ctx, b.settle/3); err != nil {
		return err
	}
	calls := 10 * b.n
	say("%s%s: %d calls of each", busySection, idleLists, calls)
	rest, busy, starting := latencies{}, latencies{}, latencies{}
	for range calls {
		if err := b.listOnce(ctx, r, rest); err != nil {
			return err
		}
	}
	say("%s%s: %d calls of each", busySection, busyLists, calls)
	for len(busy[watched[0].name]) < calls {
		if err := b.busyRound(ctx, r, image, busy, starting); err != nil {
			return err
		}
	}
	for _, list := range watched {
		for _, phase := range []struct {
			when, times string
			took        latencies
		}{{idleLists, "", rest}, {busyLists, busyTimes, busy}, {startLists, startTimes, starting}} {
			for _, d := range phase.took[list.name] {
				b.samples.add(busySection, list.name+phase.when, "ms", r.name, d)
			}
			if phase.times != "" && len(phase.took[list.name]) > 0 {
				b.samples.add(busySection, list.name+phase.times, "times", r.name, phase.took.p99(list.name)/rest.p99(list.name))
			}
		}
	}
	return nil
}

var busyKind = podKind{network: hostNetwork, pid: ownPID, command: idle}

// latencies are in milliseconds, by call.
type latencies map[string][]float64

func (l latencies) p99(name string) float64 {
	return percentile(slices.Sorted(slices.Values(l[name])), 99)
}

// busyRound lists for as long as one image is pulled and ten pods are started, which begin together.
func (b *bench) busyRound(ctx context.Context, r *candidate, image string, busy, starting latencies) error {
	var ten []*pod
	pulled, startedTen := make(chan error, 1), make(chan error, 1)
	spec := &criv1.ImageSpec{Image: image}
	// Owned by this call, which waits for both; each ends with its work.
	go func() {
		_, err := r.images.PullImage(ctx, &criv1.PullImageRequest{Image: spec})
		pulled <- err
	}()
	go func() {
		var err error
		ten, err = b.startAll(ctx, r, busyKind, b.parallel)
		startedTen <- err
	}()
	var errs []error
	for open := 2; open > 0; {
		took := latencies{}
		if err := b.listOnce(ctx, r, took); err != nil {
			errs = append(errs, err)
		}
		for name, d := range took {
			busy[name] = append(busy[name], d...)
			if startedTen != nil {
				starting[name] = append(starting[name], d...)
			}
		}
		select {
		case err := <-pulled:
			errs, pulled, open = append(errs, err), nil, open-1
		case err := <-startedTen:
			errs, startedTen, open = append(errs, err), nil, open-1
		default:
		}
	}
	errs = append(errs, b.stopAll(ctx, started(ten)))
	_, err := r.images.RemoveImage(ctx, &criv1.RemoveImageRequest{Image: spec})
	return errors.Join(append(errs, err, sleep(ctx, max(b.settle/30, time.Second)))...)
}

// listOnce makes each call once.
func (b *bench) listOnce(ctx context.Context, r *candidate, took latencies) error {
	for _, list := range watched {
		begin := time.Now()
		count, err := list.call(ctx, r)
		d := time.Since(begin)
		if err != nil || count < busyPods {
			return errors.Join(err, fmt.Errorf("%s answered %d entries with %d pods there", list.name, count, busyPods))
		}
		took[list.name] = append(took[list.name], milliseconds(d))
		time.Sleep(listPause)
	}
	return nil
}

// started are the pods that have a sandbox.
func started(pods []*pod) []*pod {
	return slices.DeleteFunc(slices.Clone(pods), func(p *pod) bool { return p == nil || p.sandboxID == "" })
}

// serveHeavyImage serves an image from this process until stop is called.
func serveHeavyImage(ctx context.Context) (ref string, stop func(), err error) {
	random := rand.NewChaCha8([32]byte{1})
	var layers []v1.Layer
	for i := range heavyLayers {
		content := make([]byte, heavyMegabytes<<20)
		for at := 0; at < len(content); at += 3 << 10 { // two of three KiB are noise
			random.Read(content[at:min(at+2<<10, len(content))])
		}
		layer, err := registry.Layer(registry.Gzip, registry.Regular(fmt.Sprintf("data-%d", i), 0o644, string(content)))
		if err != nil {
			return "", nil, err
		}
		layers = append(layers, layer)
	}
	img, err := registry.Image(goruntime.GOARCH, v1.Config{}, layers...)
	if err != nil {
		return "", nil, err
	}
	server := registry.New(registry.Config{})
	if _, err := server.Push("bench/heavy:1", img); err != nil {
		return "", nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	// Owned by the caller: stop ends it and waits.
	serving.Go(func() { server.Serve(ctx, listener) })
	return listener.Addr().String() + "/bench/heavy:1", func() { cancel(); serving.Wait() }, nil
}
