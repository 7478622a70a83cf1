package cgroup

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OOMEvents count what the OOM killer did. A caller that wants to know whether a
// container was hit reads them before the group is removed (B19), and compares
// Kills with the value it saw earlier.
type OOMEvents struct {
	// Kills are processes killed in the group and below it; KillsLocal without below.
	Kills, KillsLocal uint64
	// GroupKills are times when the whole group was killed (memory.oom.group); v2.
	GroupKills uint64
	// Limit is the group's own: a kill may as well come of a limit above it, or of
	// the whole machine's.
	Limit MemoryLimit
}

// MemoryLimit is a group's limit of memory and how often it was in the way.
type MemoryLimit struct {
	Bytes uint64 // NoLimit if there is none
	// Hits are times when the limit was reached and reclaim did not help; v2.
	Hits uint64
	// AtPeak says that as much was in use once as the limit allows; v1, whose kernel
	// counts no more than that (failcnt stays 0 on recent ones).
	AtPeak bool
}

// chargeBytes may be missing to a v1 limit when the kernel can't charge what it needs
// at once: a slab of several pages, MEMCG_CHARGE_BATCH of mm/memcontrol.c at most.
const chargeBytes = 64 * 4096

// OOM reads the counters of a group. On v1 the kernel counts a kill in the
// victim's own group only, so those below are added up.
func (m *Manager) OOM(path string) (OOMEvents, error) {
	var out OOMEvents
	g, err := m.group(path)
	if err != nil {
		return out, err
	}
	dir, ok := g.dir("memory")
	if !ok {
		return out, fmt.Errorf("oom events: controller memory: %w", ErrNotSupported)
	}
	if out.Limit, err = g.memoryLimit(); err != nil {
		return out, fmt.Errorf("oom events: %w", err)
	}
	if g.version == 2 {
		events, err := readFlatKeyed(filepath.Join(dir, "memory.events"))
		if err != nil {
			return out, fmt.Errorf("oom events: %w", err)
		}
		local, err := readFlatKeyed(filepath.Join(dir, "memory.events.local"))
		if err != nil {
			return out, fmt.Errorf("oom events: %w", err)
		}
		out.Kills, out.KillsLocal, out.GroupKills = events["oom_kill"], local["oom_kill"], events["oom_group_kill"]
		return out, nil
	}
	own, err := readFlatKeyed(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		return out, fmt.Errorf("oom events: %w", err)
	}
	out.KillsLocal = own["oom_kill"]
	err = walkDirs(dir, func(dir string) error {
		control, err := readFlatKeyed(filepath.Join(dir, "memory.oom_control"))
		out.Kills += control["oom_kill"]
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		return err
	})
	if err != nil {
		return out, fmt.Errorf("oom events: %w", err)
	}
	return out, nil
}

// MemoryLimit reads a group's own limit, of memory or of memory and swap together.
func (m *Manager) MemoryLimit(path string) (MemoryLimit, error) {
	g, err := m.group(path)
	if err != nil {
		return MemoryLimit{}, err
	}
	limit, err := g.memoryLimit()
	if err != nil {
		return limit, fmt.Errorf("memory limit: %w", err)
	}
	return limit, nil
}

func (g group) memoryLimit() (MemoryLimit, error) {
	r := reader{group: g}
	if g.version == 2 {
		out := MemoryLimit{Bytes: r.limit("memory", "memory.max")}
		// Local: those of the groups below are theirs.
		out.Hits = r.keyed("memory", "memory.events.local")["oom"]
		return out, r.err
	}
	out := MemoryLimit{Bytes: r.limit("memory", "memory.limit_in_bytes")}
	out.AtPeak = out.Bytes != NoLimit && r.number("memory", "memory.max_usage_in_bytes")+chargeBytes >= out.Bytes
	if !g.has("memory") || r.err != nil {
		return out, r.err
	}
	// The sum with swap is the one that is reached where swap makes room below the
	// other. Without swap accounting there is none.
	dir, _ := g.dir("memory")
	sum, err := readTrimmed(filepath.Join(dir, "memory.memsw.limit_in_bytes"))
	most, mostErr := readUint(filepath.Join(dir, "memory.memsw.max_usage_in_bytes"))
	if limit := parseLimit(sum); err == nil && mostErr == nil && limit != math.MaxInt64 {
		out.AtPeak = out.AtPeak || most+chargeBytes >= uint64(limit)
	}
	return out, nil
}
