package podsandbox

import (
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/podwright/podwright/podsandbox/isolation"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/wire"
)

// isolationReport compares what a running container's spec asks for with what holds for its first process.
func (m *core) isolationReport(process wire.Process, group string, ociSpec *specs.Spec) (*isolation.Report, error) {
	in := isolation.Input{PID: process.PID, StartTime: process.StartTime, Spec: ociSpec, Cgroup: group, Notes: spec.Notes(ociSpec)}
	readings, err := cgroup.Check(m.cfg.Cgroups, group, ociSpec.Linux.Resources)
	if err != nil {
		return nil, err
	}
	for _, r := range readings {
		in.Limits = append(in.Limits, isolation.Finding{Aspect: r.Limit, Asked: r.Asked, Enforced: r.Enforced, Differs: r.Differs})
	}
	return isolation.Read(in)
}

// verifyIsolation refuses a container that was started and is confined less than asked, where the operator wants that. The
// workload has run for the milliseconds that it took to look.
func verifyIsolation(m *core, process wire.Process, group string, ociSpec *specs.Spec) error {
	if !m.cfg.RefuseWeakIsolation {
		return nil
	}
	report, err := m.isolationReport(process, group, ociSpec)
	if errors.Is(err, isolation.ErrGone) { // a short run: there is nothing left to confine
		return nil
	}
	if err != nil {
		return fmt.Errorf("verify isolation: %w", err)
	}
	var weak []string
	for _, f := range report.Findings {
		if f.Differs {
			weak = append(weak, fmt.Sprintf("%s is %s, asked was %s", f.Aspect, f.Enforced, f.Asked))
		}
	}
	if len(weak) == 0 {
		return nil
	}
	return fmt.Errorf("verify isolation (runtime.refuse_weak_isolation): %s", strings.Join(weak, "; "))
}
