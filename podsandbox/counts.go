package podsandbox

import (
	"strings"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/record"
)

// Counts says how many objects there are in each state, by the states' names in CRI.
type Counts struct {
	Sandboxes  map[string]int // ready, notready
	Containers map[string]int // created, running, exited, unknown
	Isolation  map[string]int // of the running ones: confirmed, weaker, unknown
}

// Counts reads memory only.
func (m *Manager) Counts() Counts {
	c := Counts{Sandboxes: map[string]int{}, Containers: map[string]int{}, Isolation: m.watch.counts()}
	for name := range criv1.PodSandboxState_value {
		c.Sandboxes[stateName(name)] = 0
	}
	for name := range criv1.ContainerState_value {
		c.Containers[stateName(name)] = 0
	}
	m.sandboxes.each(func(s *sandbox) { c.Sandboxes[stateName(sandboxState(s.record()).String())]++ })
	m.containers.each(func(one *container) { c.Containers[stateName(containerState(one.record()).String())]++ })
	c.Sandboxes[stateName(sandboxState(&record.Sandbox{}).String())] += len(m.unreadable.all(kindSandbox))
	c.Containers[stateName(containerState(&record.Container{}).String())] += len(m.unreadable.all(kindContainer))
	return c
}

// stateName makes "ready" of SANDBOX_READY.
func stateName(name string) string {
	_, state, _ := strings.Cut(name, "_")
	return strings.ToLower(state)
}
