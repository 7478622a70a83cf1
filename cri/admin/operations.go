package admin

import (
	"context"
	"fmt"
	"slices"
	"time"

	adminv1 "github.com/podwright/podwright/cri/admin/v1"
	"github.com/podwright/podwright/podsandbox"
	"github.com/podwright/podwright/runtime/image"
)

// ListOperations says what is under way, since when, where it is and what it waits for. It waits for nothing itself.
func (s *Server) ListOperations(context.Context, *adminv1.ListOperationsRequest) (*adminv1.ListOperationsResponse, error) {
	resp := &adminv1.ListOperationsResponse{}
	for _, op := range s.cfg.Manager.Operations() {
		resp.Operations = append(resp.Operations, operation(op, s.cfg.Manager.Waits(op)))
	}
	for _, p := range s.cfg.Images.Pulls() {
		resp.Operations = append(resp.Operations, pull(p))
	}
	slices.SortStableFunc(resp.Operations, func(a, b *adminv1.Operation) int { return int(min(max(a.StartedAt-b.StartedAt, -1), 1)) })
	return resp, nil
}

func operation(op *podsandbox.Operation, waits []podsandbox.Wait) *adminv1.Operation {
	out := &adminv1.Operation{Kind: op.Kind, Name: op.Name, Id: op.ID(), StartedAt: op.Started.UnixNano(), StepStartedAt: op.Started.UnixNano()}
	if steps := op.Steps(); len(steps) > 0 {
		last := steps[len(steps)-1]
		out.Step, out.StepStartedAt = last.Name, last.Began.UnixNano()
	}
	for _, w := range waits {
		wait := &adminv1.Wait{Kind: w.For, Name: w.Name, Pid: int32(w.PID), Detail: w.Detail}
		if !w.Until.IsZero() {
			wait.Until = w.Until.UnixNano()
		}
		out.WaitsFor = append(out.WaitsFor, wait)
	}
	return out
}

// pull shows a pull, or an import, as the operation that it is.
func pull(p image.Pull) *adminv1.Operation {
	out := &adminv1.Operation{
		Kind: "pull image", Name: p.Reference, Step: p.Phase.Name, StartedAt: p.Started.UnixNano(), StepStartedAt: p.Phase.Began.UnixNano(),
	}
	switch {
	case p.Reference == image.Archive:
		out.Kind = "import images"
		return out
	case p.Host == "":
		return out
	}
	wait := &adminv1.Wait{Kind: "registry", Name: p.Host, Detail: fmt.Sprintf("%d of %d bytes, %d of %d layers", p.BytesDone, p.BytesTotal, p.LayersDone, p.LayersTotal)}
	if p.Idle >= time.Second {
		wait.Detail += fmt.Sprintf(", nothing for %s", p.Idle.Round(time.Second))
	}
	out.WaitsFor = []*adminv1.Wait{wait}
	return out
}
