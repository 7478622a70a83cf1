package podsandbox

import (
	"fmt"

	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/wire"
)

// Ends for want of memory
//
// The kernel counts the processes of a group that its OOM killer killed; whom, and why, it tells nobody but the log. What
// is known at a container's end, before its group is removed (B19):
//
//   - the count, which an end while no daemon ran does not change: the group stays until the end is recorded;
//   - how many of those were commands that ended killed, which is noted when they end (B21);
//   - whether the limit of the container or of its pod was reached since the start.
//
// An end is OOMKilled where the kernel killed a process of the container's own and the first process did not end well:
// it was killed itself (137) and not by podwright, or it gave up (1 to 127) without having been asked to. Ends with 0, by
// another signal, or after a stop are never OOMKilled, whatever was killed before.

const (
	oomReason  = "OOMKilled"
	killedCode = 128 + 9
)

// oomEnd says whether an end is one for want of memory. own are the processes of the container's own that were killed.
func oomEnd(code int, own uint64, asked, killed bool) bool {
	switch {
	case own == 0:
		return false
	case code == killedCode:
		return !killed
	}
	return code >= 1 && code <= 127 && !asked && !killed
}

// oomMessage names the container, whom the kernel killed and which limit was reached, as far as the counters prove it.
func oomMessage(m *core, c *container, exit wire.Exit, events cgroup.OOMEvents) string {
	rec := c.record()
	victims := fmt.Sprintf("%d of its processes were", events.Kills)
	switch {
	case events.GroupKills > 0:
		victims = "all its processes were"
	case exit.Signal == 9:
		victims = "its first process was"
	case events.Kills == 1:
		victims = "one of its processes was"
	}
	pod := cgroup.PodGroup(rec.CgroupPath)
	limits, err := m.cfg.Cgroups.MemoryLimit(pod)
	if pod == "/" || err != nil {
		limits = cgroup.MemoryLimit{Bytes: cgroup.NoLimit}
	}
	return fmt.Sprintf("container %q: %s killed by the kernel for want of memory: %s",
		c.config.GetMetadata().GetName(), victims, oomCause(events.Limit, limits, rec.PodLimitHits, pod))
}

// oomCause tells whose limit it was. The container's own count is of its whole life, as its group is; the pod's group is
// older than the container, so that only what was added since the start says something.
func oomCause(own, pod cgroup.MemoryLimit, podHitsBefore uint64, podGroup string) string {
	switch {
	case own.Bytes != cgroup.NoLimit && (own.Hits > 0 || own.AtPeak):
		return fmt.Sprintf("the container's own limit of %d bytes was reached", own.Bytes)
	case pod.Bytes != cgroup.NoLimit && pod.Hits > podHitsBefore:
		return fmt.Sprintf("its pod's limit of %d bytes was reached (cgroup %s)", pod.Bytes, podGroup)
	case pod.Bytes != cgroup.NoLimit && pod.AtPeak:
		return fmt.Sprintf("its pod's limit of %d bytes was reached, now or before its start (cgroup %s)", pod.Bytes, podGroup)
	}
	return "neither the container's own limit nor its pod's was reached, so the node, or a group above the pod, had no more"
}

// podLimitHits is how often the limit of a container's pod was reached so far.
func podLimitHits(m *core, group string) uint64 {
	pod := cgroup.PodGroup(group)
	if pod == "/" {
		return 0
	}
	limit, err := m.cfg.Cgroups.MemoryLimit(pod)
	if err != nil {
		return 0 // a pod that cannot be asked now is not going to be blamed: oomMessage asks again
	}
	return limit.Hits
}

// oomKilledBefore says whether the kernel killed a process of the container so far, which is what makes an end by
// podwright's own signal look like one for want of memory.
func oomKilledBefore(m *core, c *container) bool {
	events, err := m.cfg.Cgroups.OOM(c.record().CgroupPath)
	return err == nil && events.Kills > 0
}

// noteKilledCommand keeps apart what the kernel killed of a command from what it killed of the container's own. A command
// that ends killed accounts for one process at most.
func noteKilledCommand(m *core, c *container, exit wire.Exit) {
	if exit.Code != killedCode {
		return
	}
	events, err := m.cfg.Cgroups.OOM(c.record().CgroupPath)
	if err == nil && events.Kills > c.record().CommandOOMKills {
		err = m.changeContainer(c, func(r *record.Container) bool {
			if r.Phase != record.ContainerRunning || events.Kills <= r.CommandOOMKills {
				return false
			}
			r.CommandOOMKills++
			return true
		})
	}
	if err != nil {
		klog.ErrorS(err, "Could not note a command that was killed for want of memory", "containerID", c.id)
	}
}
