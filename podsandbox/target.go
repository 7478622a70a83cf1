package podsandbox

import (
	"fmt"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/wire"
)

// joinedBy is the process whose PID namespace a container of s joins: that of another container of the same sandbox
// (kubectl debug --target), or else the sandbox's own PID 1 if it has one.
//
// A target is one run of one container, which never runs again. Its namespace ends with its first process; whoever
// joined it is killed with all others in there, by the kernel, and ends with 137.
func joinedBy(m *core, s *sandbox, config *criv1.ContainerConfig) (joined, error) {
	id := spec.TargetID(config)
	if id == "" {
		rec := s.record()
		return joined{wire.Process{PID: rec.ReaperPID, StartTime: rec.ReaperStartTime}, "the sandbox's PID 1"}, nil
	}
	const field = "linux.security_context.namespace_options.target_id"
	target, err := m.containers.find("container", id)
	if err != nil {
		return joined{}, fmt.Errorf("%s: %w", field, err)
	}
	switch rec := target.record(); {
	case rec.SandboxID != s.id:
		// What a pod's containers do is for that pod alone to see.
		return joined{}, kindf(ErrInvalid, "%s %q: that container is not of this sandbox", field, id)
	case rec.Phase != record.ContainerRunning:
		return joined{}, kindf(ErrPrecondition, "%s %q: that container is %s, not running", field, id, rec.Phase)
	default:
		return joined{wire.Process{PID: rec.PID, StartTime: rec.StartTime}, "target container " + target.id}, nil
	}
}

// pidPath is the file of a process's PID namespace.
func pidPath(pid int) string { return fmt.Sprintf("/proc/%d/ns/pid", pid) }

// endOfTarget explains the end of a container that nobody asked for where its PID namespace ended, "" for any other.
// The target's first process may still be there: it stays until all others of its namespace are reaped.
func endOfTarget(m *core, c *container, exit wire.Exit, asked bool) string {
	id := spec.TargetID(c.config)
	if id == "" || asked || exit.Code != killedCode {
		return ""
	}
	target, err := m.containers.find("container", id)
	if err == nil {
		rec := target.record()
		now, err := readMember(rec.PID)
		if rec.Phase == record.ContainerRunning && err == nil && now.start == rec.StartTime && !now.exiting {
			return ""
		}
	}
	return fmt.Sprintf("container %s ended, and with its PID namespace everything in it", id)
}
