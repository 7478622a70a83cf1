package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// listBudget ends the calls of one list early: some are slow, and figures need no more.
const listBudget = 20 * time.Second

// listCall lists something and says how many there are.
type listCall struct {
	name string
	call func(ctx context.Context, r *candidate) (int, error)
}

var listCalls = []listCall{
	{"ListPodSandbox", func(ctx context.Context, r *candidate) (int, error) {
		resp, err := r.cri.ListPodSandbox(ctx, &criv1.ListPodSandboxRequest{})
		return len(resp.GetItems()), err
	}},
	{"ListContainers", func(ctx context.Context, r *candidate) (int, error) {
		resp, err := r.cri.ListContainers(ctx, &criv1.ListContainersRequest{})
		return len(resp.GetContainers()), err
	}},
	{"ListContainerStats", func(ctx context.Context, r *candidate) (int, error) {
		resp, err := r.cri.ListContainerStats(ctx, &criv1.ListContainerStatsRequest{})
		return len(resp.GetStats()), err
	}},
	{"ListPodSandboxStats", func(ctx context.Context, r *candidate) (int, error) {
		resp, err := r.cri.ListPodSandboxStats(ctx, &criv1.ListPodSandboxStatsRequest{})
		return len(resp.GetStats()), err
	}},
	{"ListPodSandboxMetrics", func(ctx context.Context, r *candidate) (int, error) {
		resp, err := r.cri.ListPodSandboxMetrics(ctx, &criv1.ListPodSandboxMetricsRequest{})
		return len(resp.GetPodMetrics()), err
	}},
	{"ListImages", func(ctx context.Context, r *candidate) (int, error) {
		resp, err := r.images.ListImages(ctx, &criv1.ListImagesRequest{})
		return len(resp.GetImages()), err
	}},
}

// lists measures them while every runtime has the given number of pods. What a runtime
// doesn't implement stays without a figure.
func (b *bench) lists(ctx context.Context, pods int) error {
	section := fmt.Sprintf("lists, %d pods", pods)
	say("%s: %d calls", section, b.n)
	for _, list := range listCalls {
		deadline := time.Now().Add(listBudget)
		for i := 0; i < b.n && time.Now().Before(deadline); i++ {
			err := b.alternate(i, func(r *candidate) error {
				ctx, cancel := context.WithTimeout(ctx, callTimeout)
				defer cancel()
				begin := time.Now()
				count, err := list.call(ctx, r)
				if status.Code(err) == codes.Unimplemented {
					return nil
				}
				if err != nil {
					return fmt.Errorf("%s: %w", list.name, err)
				}
				b.samples.of(section, r.name)(list.name, time.Since(begin))
				if list.name != "ListImages" && count != pods || count == 0 {
					return fmt.Errorf("%s answered %d entries with %d pods there", list.name, count, pods)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
