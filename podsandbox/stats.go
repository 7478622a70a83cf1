package podsandbox

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/diskuse"
)

// Statistics
//
// Every call looks anew: at the control groups (looks), into the network namespaces (networkLooks) and, for metrics, at
// processes. Only what writable layers take is counted beforehand (layers). None of it takes a lock of sandboxes and
// containers, and what hangs in the kernel is missing after lookPatience; so is what ends meanwhile. Lists have what
// runs: running containers, and ready sandboxes.
//
// A pod's figures are those of its own control group where it has one (ownGroup): the kubelet makes one, which counts
// what has ended as well. Otherwise they are the sum of what its containers use now.

// statsManager answers questions about what sandboxes and containers use.
type statsManager struct {
	*core
	groups   *looks
	networks *networkLooks
	layers   *layers
}

func newStatsManager(m *core) *statsManager {
	run := func(f func()) {
		m.exits.Add(1)
		go func() { // its owner says when it ends
			defer m.exits.Done()
			f()
		}()
	}
	return &statsManager{
		core: m, groups: newLooks(lookAtGroup(m.cfg.Cgroups)), networks: newNetworkLooks(m.cfg.Namespaces.Links),
		layers: newLayers(m.leaving, run, func(ctx context.Context, id string, step func(int) error) (diskuse.Use, error) {
			return diskuse.Count(ctx, step, filepath.Join(m.stateDir(id), "upper"), filepath.Join(m.stateDir(id), "volumes"))
		}),
	}
}

// lookAtGroup gives how looks reads.
func lookAtGroup(groups *cgroup.Manager) func(target) (*figures, error) {
	return func(t target) (*figures, error) {
		out := &figures{at: time.Now(), stats: &cgroup.Stats{}}
		var err error
		if t.depth == depthAll {
			out.stats, err = groups.Stats(t.group)
		} else {
			var usage *cgroup.Usage
			if usage, err = groups.Usage(t.group); err == nil {
				out.stats.Usage = *usage
			}
		}
		if err != nil || t.depth == depthUsage || t.pid == 0 {
			return out, err
		}
		pids, err := groups.Processes(t.group)
		out.processes = len(pids)
		if err == nil && t.depth == depthAll {
			out.proc = lookAtProcesses(pids, t.pid)
		}
		return out, err
	}
}

// containerLook is what is known of a running container.
type containerLook struct {
	c   *container
	rec *record.Container
	*figures
	layer *layerUse
}

// podLook is what is known of a ready sandbox.
type podLook struct {
	s          *sandbox
	rec        *record.Sandbox
	own        *figures // of the pod's own group
	network    networkFigures
	containers []containerLook
}

func containerTarget(rec *record.Container, depth depth) target {
	return target{group: rec.CgroupPath, depth: depth, began: time.Unix(0, rec.StartedNanos), pid: rec.PID}
}

// ownGroup says whether a sandbox's group is its pod's alone: by the names that the kubelet gives, for either driver.
func ownGroup(s *sandbox, rec *record.Sandbox) bool {
	uid, name := s.config.GetMetadata().GetUid(), path.Base(rec.CgroupParent)
	return uid != "" && (name == "pod"+uid || strings.HasSuffix(name, "-pod"+strings.ReplaceAll(uid, "-", "_")+".slice"))
}

// lookAtContainers looks at running containers. Those that end meanwhile are left out.
func (m *statsManager) lookAtContainers(ctx context.Context, list []*container, depth depth) []containerLook {
	var found []containerLook
	var targets []target
	var ids []string
	for _, c := range list {
		if rec := c.record(); rec.Phase == record.ContainerRunning {
			found = append(found, containerLook{c: c, rec: rec})
			targets, ids = append(targets, containerTarget(rec, depth)), append(ids, c.id)
		}
	}
	m.layers.of(ids...) // a small layer that nobody asked for before is counted while groups are looked at
	looked := m.groups.at(ctx, targets)
	for i, use := range m.layers.of(ids...) {
		found[i].figures, found[i].layer = looked[i], use
	}
	return slices.DeleteFunc(found, func(l containerLook) bool { return l.figures == nil })
}

// lookAtPods looks at ready sandboxes and at what runs in them.
func (m *statsManager) lookAtPods(ctx context.Context, list []*sandbox, depth depth) []podLook {
	var pods []podLook
	var ids []string
	var own []target
	var ownOf []int // whose
	index := map[string]int{}
	for _, s := range list {
		rec := s.record()
		if rec.Phase != record.SandboxReady {
			continue
		}
		index[s.id] = len(pods)
		pods = append(pods, podLook{s: s, rec: rec})
		if rec.NetPath != "" { // the host's is nobody's own
			ids = append(ids, s.id)
		}
		if ownGroup(s, rec) {
			own = append(own, target{group: rec.CgroupParent, depth: depth, began: time.Unix(0, rec.CreatedNanos)})
			ownOf = append(ownOf, len(pods)-1)
		}
	}
	networks, groups := make(chan map[string]networkFigures, 1), make(chan []*figures, 1)
	// Owner: this call, which waits for both below; they end by lookPatience.
	go func() { networks <- m.networks.at(ctx, ids) }()
	go func() { groups <- m.groups.at(ctx, own) }()
	var running []*container
	m.containers.each(func(c *container) {
		if _, ok := index[c.record().SandboxID]; ok {
			running = append(running, c)
		}
	})
	for _, found := range m.lookAtContainers(ctx, running, depth) {
		pod := &pods[index[found.rec.SandboxID]]
		pod.containers = append(pod.containers, found)
	}
	for i, found := range <-groups {
		pods[ownOf[i]].own = found
	}
	links := <-networks
	for i := range pods {
		pods[i].network = links[pods[i].s.id]
		slices.SortFunc(pods[i].containers, func(a, b containerLook) int { return cmp.Compare(b.rec.CreatedNanos, a.rec.CreatedNanos) })
	}
	return pods
}

// ContainerStats is of any container; what is not running uses nothing but its writable layer.
func (m *statsManager) ContainerStats(ctx context.Context, id string) (*criv1.ContainerStats, error) {
	c, err := m.containers.find("container", id)
	if b, ok := m.unreadable.find(kindContainer, id); err != nil && ok {
		status := badContainerStatus(b)
		return &criv1.ContainerStats{Attributes: &criv1.ContainerAttributes{Id: b.ID, Metadata: status.Metadata, Annotations: status.Annotations}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("statistics: %w", err)
	}
	if found := m.lookAtContainers(ctx, []*container{c}, depthUsage); len(found) == 1 {
		return m.containerStats(found[0]), nil
	}
	if c.record().Phase == record.ContainerRunning {
		return nil, kindf(ErrUnavailable, "statistics of container %s: its control group %s does not answer", c.id, c.record().CgroupPath)
	}
	return m.containerStats(containerLook{c: c, rec: c.record(), layer: m.layers.of(c.id)[0]}), nil
}

// ListContainerStats gives the running containers that match every part of filter, newest first, as ContainerStats.
func (m *statsManager) ListContainerStats(ctx context.Context, filter *criv1.ContainerStatsFilter) []Encoded {
	var match []*container
	m.containers.each(func(c *container) {
		if idMatches(filter.GetId(), c.id) && idMatches(filter.GetPodSandboxId(), c.record().SandboxID) &&
			labelsMatch(filter.GetLabelSelector(), c.config.GetLabels()) {
			match = append(match, c)
		}
	})
	return newestFirst(sideBySide(m.lookAtContainers(ctx, match, depthUsage), func(found containerLook) dated {
		full := m.containerStats(found)
		bare := &criv1.ContainerStats{Attributes: &criv1.ContainerAttributes{Id: found.c.id}, Cpu: full.Cpu, Memory: full.Memory}
		return dated{found.rec.CreatedNanos, encode(full, bare)}
	}))
}

// SandboxStats is of any sandbox; one that is not ready uses nothing.
func (m *statsManager) SandboxStats(ctx context.Context, id string) (*criv1.PodSandboxStats, error) {
	s, err := m.sandboxes.find("sandbox", id)
	if b, ok := m.unreadable.find(kindSandbox, id); err != nil && ok {
		status := badSandboxStatus(b)
		return &criv1.PodSandboxStats{
			Attributes: &criv1.PodSandboxAttributes{Id: b.ID, Metadata: status.Metadata, Annotations: status.Annotations}, Linux: &criv1.LinuxPodSandboxStats{},
		}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("statistics: %w", err)
	}
	if found := m.lookAtPods(ctx, []*sandbox{s}, depthProcess); len(found) == 1 {
		return m.sandboxStats(found[0]), nil
	}
	return &criv1.PodSandboxStats{Attributes: sandboxAttributes(s), Linux: &criv1.LinuxPodSandboxStats{}}, nil
}

// ListSandboxStats gives the ready sandboxes that match every part of filter, newest first, as PodSandboxStats.
func (m *statsManager) ListSandboxStats(ctx context.Context, filter *criv1.PodSandboxStatsFilter) []Encoded {
	var match []*sandbox
	m.sandboxes.each(func(s *sandbox) {
		if idMatches(filter.GetId(), s.id) && labelsMatch(filter.GetLabelSelector(), s.config.GetLabels()) {
			match = append(match, s)
		}
	})
	return newestFirst(sideBySide(m.lookAtPods(ctx, match, depthProcess), func(found podLook) dated {
		full := m.sandboxStats(found)
		bare := &criv1.PodSandboxStats{Attributes: &criv1.PodSandboxAttributes{Id: found.s.id}, Linux: &criv1.LinuxPodSandboxStats{Cpu: full.Linux.Cpu, Memory: full.Linux.Memory}}
		return dated{found.rec.CreatedNanos, encode(full, bare)}
	}))
}
