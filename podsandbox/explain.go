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
func (m *core) isolationReport(c *container, process wire.Process, ociSpec *specs.Spec) (*isolation.Report, error) {
	group := c.record().CgroupPath
	in := isolation.Input{PID: process.PID, StartTime: process.StartTime, Spec: ociSpec, Cgroup: group, Notes: spec.Notes(ociSpec)}
	if target := spec.TargetID(c.config); target != "" {
		in.PIDOwner = "container " + target + "'s"
	}
	if profile := ociSpec.Linux.Seccomp; profile != nil {
		filter, err := m.cfg.Seccomp.Compile(profile)
		if err != nil {
			return nil, fmt.Errorf("seccomp: %w", err)
		}
		in.Filter = filter.Program
	}
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
func verifyIsolation(m *core, c *container, process wire.Process, ociSpec *specs.Spec) error {
	if !m.cfg.RefuseWeakIsolation {
		return nil
	}
	report, err := m.isolationReport(c, process, ociSpec)
	if errors.Is(err, isolation.ErrGone) { // a short run: there is nothing left to confine
		return nil
	}
	if err != nil {
		return fmt.Errorf("verify isolation: %w", err)
	}
	if weak := differences(report); weak != "" {
		return fmt.Errorf("verify isolation (runtime.refuse_weak_isolation): %s", weak)
	}
	return nil
}

// differences names what holds less than was asked, "" for nothing.
func differences(report *isolation.Report) string {
	var weak []string
	for _, f := range report.Findings {
		if f.Differs {
			weak = append(weak, fmt.Sprintf("%s is %s, asked was %s", f.Aspect, f.Enforced, f.Asked))
		}
	}
	return strings.Join(weak, "; ")
}
