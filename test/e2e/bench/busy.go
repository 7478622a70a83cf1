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

	idleLists, busyLists = ", at rest", ", while an image is pulled and ten pods start"
	busyTimes            = " p99, busy by rest"
	busySection          = "lists of 500 pods"
)

// watched are the lists that the kubelet asks for every second.
var watched = listCalls[:2]

// busy measures the lists of the first runtime at rest, and then while it pulls an image and starts ten pods at a time,
// again and again.
func (b *bench) busy(ctx context.Context) error {
	r := b.candidates[0]
	// This process serves the image too: what it sends must not hold up what it measures.
	defer goruntime.GOMAXPROCS(goruntime.GOMAXPROCS(goruntime.NumCPU() + heavyLayers))
	say("%s: starting them on %s", busySection, r.name)
	kind := podKind{network: hostNetwork, pid: ownPID, command: idle}
	pods, err := b.startAll(ctx, r, kind, busyPods)
	defer func() { b.stopAll(context.WithoutCancel(ctx), started(pods)) }()
	if err != nil {
		return err
	}
	image, stop, err := serveHeavyImage(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if err := sleep(ctx, b.settle/3); err != nil {
		return err
	}
	calls := 10 * b.n
	rest, err := b.listAgainAndAgain(ctx, r, calls, idleLists)
	if err != nil {
		return err
	}
	load, cancel := context.WithCancel(ctx)
	ended := make(chan error, 2)
	// Owned by this call, which waits for both; they end with load.
	go func() { ended <- again(load, func() error { return pullAnew(ctx, r, image) }) }()
	go func() {
		ended <- again(load, func() error {
			ten, err := b.startAll(ctx, r, kind, b.parallel)
			return errors.Join(err, b.stopAll(ctx, started(ten)))
		})
	}()
	busy, err := b.listAgainAndAgain(ctx, r, calls, busyLists)
	cancel()
	err = errors.Join(err, <-ended, <-ended)
	for _, list := range watched {
		if err == nil {
			b.samples.add(busySection, list.name+busyTimes, "times", r.name, busy[list.name]/rest[list.name])
		}
	}
	return err
}

// listAgainAndAgain gives the p99 of each list.
func (b *bench) listAgainAndAgain(ctx context.Context, r *candidate, calls int, when string) (map[string]float64, error) {
	say("%s%s: %d calls of each", busySection, when, calls)
	took := map[string][]float64{}
	for range calls {
		for _, list := range watched {
			begin := time.Now()
			count, err := list.call(ctx, r)
			d := time.Since(begin)
			if err != nil || count < busyPods {
				return nil, errors.Join(err, fmt.Errorf("%s answered %d entries with %d pods there", list.name, count, busyPods))
			}
			took[list.name] = append(took[list.name], milliseconds(d))
			b.samples.of(busySection, r.name)(list.name+when, d)
			time.Sleep(listPause)
		}
	}
	p99 := map[string]float64{}
	for name, values := range took {
		p99[name] = percentile(slices.Sorted(slices.Values(values)), 99)
	}
	return p99, nil
}

// again repeats work until ctx ends or it fails.
func again(ctx context.Context, work func() error) error {
	for ctx.Err() == nil {
		if err := work(); err != nil {
			return err
		}
	}
	return nil
}

func pullAnew(ctx context.Context, r *candidate, ref string) error {
	spec := &criv1.ImageSpec{Image: ref}
	if _, err := r.images.PullImage(ctx, &criv1.PullImageRequest{Image: spec}); err != nil {
		return err
	}
	_, err := r.images.RemoveImage(ctx, &criv1.RemoveImageRequest{Image: spec})
	return err
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
