package main

import (
	"context"
	"fmt"
	"time"
)

// pssPerPod is what one more idle pod costs in memory of the runtime's processes.
const pssPerPod = "PSS growth per pod"

// idleCPU is what manyPods cost that do nothing, while nobody asks for anything.
const idleCPU = "processor in use, 110 pods"

// Pods at the first and the last reading of memory, and afterwards when lists are measured.
const (
	fewPods  = 10
	manyPods = 110
	listPods = 100
)

// idle is the workload that memory is not counted of.
var idle = []string{"/bin/sleep", "100000"}

// memory measures growth from few pods to many, and processor time while they idle. A pod is
// the ordinary one with a network of its own.
func (b *bench) memory(ctx context.Context) error {
	networks := b.networks()
	kind := podKind{network: networks[len(networks)-1], pid: ownPID, command: idle}
	section := fmt.Sprintf("idle pods, %s", kind)
	for round := range b.rounds {
		say("%s: round %d of %d", section, round+1, b.rounds)
		pods := map[*candidate][]*pod{}
		grow := func(to int) error {
			return b.alternate(round, func(r *candidate) error {
				more, err := b.startAll(ctx, r, kind, to-len(pods[r]))
				pods[r] = append(pods[r], more...)
				return err
			})
		}
		if err := grow(fewPods); err != nil {
			return err
		}
		few, err := b.readMemory(ctx)
		if err != nil {
			return err
		}
		if err := grow(manyPods); err != nil {
			return err
		}
		if err := b.readIdle(ctx, section, few); err != nil {
			return err
		}
		// After the last reading: answers to lists make garbage, which is not what a pod costs.
		if round == b.rounds-1 && !b.skip["lists"] {
			err := b.alternate(round, func(r *candidate) error {
				surplus := pods[r][listPods:]
				pods[r] = pods[r][:listPods]
				return b.stopAll(ctx, surplus)
			})
			if err == nil {
				err = b.lists(ctx, listPods)
			}
			if err != nil {
				return err
			}
		}
		if err := b.alternate(round, func(r *candidate) error { return b.stopAll(ctx, pods[r]) }); err != nil {
			return err
		}
	}
	return nil
}

// readIdle reads memory and processor time of many idle pods.
func (b *bench) readIdle(ctx context.Context, section string, few map[*candidate]int64) error {
	used := map[*candidate]time.Duration{}
	begin := time.Now()
	for _, r := range b.accounted() {
		var err error
		if used[r], err = r.cpu("/runtime"); err != nil {
			return err
		}
	}
	many, err := b.readMemory(ctx)
	if err != nil {
		return err
	}
	for _, r := range b.accounted() {
		now, err := r.cpu("/runtime")
		if err != nil {
			return err
		}
		b.samples.add(section, pssPerPod, "KB", r.name, float64(many[r]-few[r])/(manyPods-fewPods))
		b.samples.add(section, fmt.Sprintf("PSS with %d pods", manyPods), "KB", r.name, float64(many[r]))
		b.samples.add(section, idleCPU, "% of one", r.name, 100*float64(now-used[r])/float64(time.Since(begin)))
	}
	return nil
}

// accounted are the runtimes whose control group is known.
func (b *bench) accounted() []*candidate {
	var known []*candidate
	for _, r := range b.candidates {
		if r.cgroup != "" {
			known = append(known, r)
		}
	}
	return known
}

// stopAll kills and removes pods, as the kubelet does with those it lost interest in.
func (b *bench) stopAll(ctx context.Context, pods []*pod) error {
	return inParallel(pods, b.parallel, func(p *pod) error { return do(ctx, p.stopSteps()[2:], nil) })
}

// readMemory lets the runtimes come to rest and returns their PSS in KB.
func (b *bench) readMemory(ctx context.Context) (map[*candidate]int64, error) {
	if err := sleep(ctx, b.settle); err != nil {
		return nil, err
	}
	sizes := map[*candidate]int64{}
	for _, r := range b.accounted() {
		var err error
		if sizes[r], err = r.pss(idle); err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return sizes, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
