package image

import (
	"slices"
	"time"
)

// maxPhases bounds what is remembered of a pull.
const maxPhases = 64

// Archive stands for the reference in what is said of an import.
const Archive = "archive"

// Phase is a part of a pull's time.
type Phase struct {
	Name  string // as in Progress
	Began time.Time
}

// Pull is one look at a pull, or at an import, that goes on.
type Pull struct {
	Progress
	Started time.Time
	Phase   Phase
	Host    string // whom the last request went to; "" before the first
	// Idle is since when the registry has sent nothing that it owes; 0 while
	// it owes nothing.
	Idle time.Duration
}

// Pulled is a pull that ended.
type Pulled struct {
	Reference string
	Started   time.Time
	Took      time.Duration
	Phases    []Phase
	// ReceivedBytes came from registries; what was here before is not in it.
	ReceivedBytes int64
	Err           error
}

// Pulls lists what goes on, oldest first. It reads memory only.
func (s *Store) Pulls() []Pull {
	s.flights.mu.Lock()
	var list []Pull
	for _, fl := range s.flights.open {
		list = append(list, fl.monitor.look())
	}
	s.flights.mu.Unlock()
	slices.SortFunc(list, func(a, b Pull) int { return a.Started.Compare(b.Started) })
	return list
}

// Count says how many images are visible.
func (s *Store) Count() int { return len(s.table.catalog.Load().images) }

func (m *monitor) look() Pull {
	p := Pull{Progress: m.progress(), Started: m.started, Phase: *m.phase.Load()}
	if host := m.host.Load(); host != nil {
		p.Host = *host
	}
	if m.waiting.Load() > 0 {
		p.Idle = time.Since(time.Unix(0, m.lastMove.Load()))
	}
	return p
}

func (m *monitor) pulled(err error) Pulled {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Pulled{
		Reference: m.reference, Started: m.started, Took: time.Since(m.started), Phases: slices.Clone(m.phases),
		ReceivedBytes: m.received.Load(), Err: err,
	}
}
