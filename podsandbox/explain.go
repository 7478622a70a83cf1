package podsandbox

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/podwright/podwright/podsandbox/isolation"
	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/cgroup"
)

// isolationReport compares what a running container's spec asks for with what holds for its first process.
func (m *core) isolationReport(rec *record.Container, ociSpec *specs.Spec) (*isolation.Report, error) {
	in := isolation.Input{PID: rec.PID, StartTime: rec.StartTime, Spec: ociSpec, Cgroup: rec.CgroupPath, Notes: spec.Notes(ociSpec)}
	readings, err := cgroup.Check(m.cfg.Cgroups, rec.CgroupPath, ociSpec.Linux.Resources)
	if err != nil {
		return nil, err
	}
	for _, r := range readings {
		in.Limits = append(in.Limits, isolation.Finding{Aspect: r.Limit, Asked: r.Asked, Enforced: r.Enforced, Differs: r.Differs})
	}
	return isolation.Read(in)
}
