package main

import (
	"context"
	"fmt"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const execSync = "ExecSync"

// execs measures ExecSync of a probe-like command; output and exit code are checked.
func (b *bench) execs(ctx context.Context) error {
	for _, kind := range b.kinds() {
		if kind.network != hostNetwork {
			continue
		}
		section := "exec, " + kind.String()
		say("%s: %d calls", section, 2*b.n)
		pods := map[*candidate]*pod{}
		for _, r := range b.candidates {
			started, err := b.startAll(ctx, r, kind, 1)
			if err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			pods[r] = started[0]
		}
		meters := b.meters(section, 1)
		for i := range 2 * b.n {
			err := b.alternate(i, func(r *candidate) error {
				meters[r].mark()
				return pods[r].probe(ctx, i, b.samples.of(section, r.name))
			})
			if err != nil {
				return err
			}
		}
		if err := meters.finish(ctx); err != nil {
			return err
		}
		for r, p := range pods {
			if err := do(ctx, p.stopSteps(), nil); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
	}
	return nil
}

// probe runs one command whose answer differs from call to call.
func (p *pod) probe(ctx context.Context, i int, took func(string, time.Duration)) error {
	code := int32(i % 100)
	command := fmt.Sprintf("echo out %d; echo err %d >&2; exit %d", i, i, code)
	begin := time.Now()
	resp, err := p.r.cri.ExecSync(ctx, &criv1.ExecSyncRequest{ContainerId: p.id, Cmd: []string{"/bin/sh", "-c", command}, Timeout: 30})
	if err != nil {
		return fmt.Errorf("ExecSync: %w", err)
	}
	took(execSync, time.Since(begin))
	stdout, stderr := fmt.Sprintf("out %d\n", i), fmt.Sprintf("err %d\n", i)
	if string(resp.Stdout) != stdout || string(resp.Stderr) != stderr || resp.ExitCode != code {
		return fmt.Errorf("ExecSync answered stdout %q, stderr %q, exit code %d; want %q, %q, %d", resp.Stdout, resp.Stderr, resp.ExitCode, stdout, stderr, code)
	}
	return nil
}
