package cgroup

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// memory compiles limit, swap, reservation and their v1 companions. OCI's swap
// is memory and swap together, as on v1; v2 wants swap alone.
func (c *compiler) memory(res *specs.LinuxResources) error {
	mem := res.Memory
	if mem == nil {
		return nil
	}
	limit, swap, reservation := value(mem.Limit), value(mem.Swap), value(mem.Reservation)
	for _, f := range []struct {
		field string
		bytes int64
	}{{"memory.limit", limit}, {"memory.swap", swap}, {"memory.reservation", reservation}} {
		if f.bytes < -1 {
			return invalid(f.field, f.bytes, "want -1 or a number of bytes")
		}
	}
	if limit > 0 && swap > 0 && swap < limit {
		return invalid("memory.swap", swap, "memory and swap together are less than the memory limit %d", limit)
	}
	if limit == -1 && swap > 0 {
		return invalid("memory.swap", swap, "a limit of memory and swap together needs one of memory")
	}
	if limit == 0 && swap == 0 && reservation == 0 && mem.Swappiness == nil && mem.DisableOOMKiller == nil {
		return nil
	}
	if err := c.need("memory", "memory"); err != nil {
		return err
	}
	c.out.wantMemoryBytes = limit
	if c.host.version == 2 {
		return c.memoryV2(limit, swap, reservation)
	}
	return c.memoryV1(mem, limit, swap, reservation)
}

func (c *compiler) memoryV2(limit, swap, reservation int64) error {
	if limit != 0 {
		c.set("memory", "memory.max", limitText(limit, "max"))
	}
	if swap != 0 {
		text, none := "max", false
		if swap > 0 {
			memory := limit
			if memory == 0 {
				memory = c.now.memoryBytes
			}
			if memory == math.MaxInt64 {
				return invalid("memory.swap", swap, "a limit of memory and swap together needs one of memory")
			}
			if swap < memory {
				return invalid("memory.swap", swap, "memory and swap together are less than the memory limit %d", memory)
			}
			text, none = strconv.FormatInt(swap-memory, 10), swap == memory
		}
		// Without swap accounting the file is absent. Then no swap at all is as close
		// as the host gets, as in the field; a distinct amount is refused.
		c.out.writes = append(c.out.writes, write{
			Controller: "memory", File: "memory.swap.max", Value: text, Optional: none || swap == -1,
		})
	}
	if reservation != 0 {
		c.set("memory", "memory.low", limitText(reservation, "max"))
	}
	return nil
}

func (c *compiler) memoryV1(mem *specs.LinuxMemory, limit, swap, reservation int64) error {
	if err := c.limitsV1(limit, swap); err != nil {
		return err
	}
	if reservation != 0 {
		c.set("memory", "memory.soft_limit_in_bytes", strconv.FormatInt(reservation, 10))
	}
	if mem.Swappiness != nil {
		if *mem.Swappiness > 100 {
			return invalid("memory.swappiness", *mem.Swappiness, "want 0 to 100")
		}
		c.set("memory", "memory.swappiness", strconv.FormatUint(*mem.Swappiness, 10))
	}
	if mem.DisableOOMKiller != nil {
		text := "0"
		if *mem.DisableOOMKiller {
			text = "1"
		}
		c.set("memory", "memory.oom_control", text)
	}
	return nil
}

// limitsV1 orders the two v1 limits: the kernel holds memory <= memory+swap at
// every moment, so a growing pair is written from the larger end.
func (c *compiler) limitsV1(limit, swap int64) error {
	const memoryFile, memswFile = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
	if !c.host.memsw {
		if swap > 0 && swap != limit {
			return fmt.Errorf("set memory.swap to %d: the kernel does not account swap (swapaccount=1): %w", swap, ErrNotSupported)
		}
		if swap > 0 {
			c.note("memory.swap", "the kernel does not account swap, so use of swap is not limited")
		}
		if limit != 0 {
			c.set("memory", memoryFile, strconv.FormatInt(limit, 10))
		}
		return nil
	}
	// An unlimited memory can't stay below a limited total.
	if limit == -1 && swap == 0 && c.now.memswBytes != math.MaxInt64 {
		swap = -1
	}
	newLimit, newSwap := c.now.memoryBytes, c.now.memswBytes
	if limit != 0 {
		newLimit = c.pages(limit)
	}
	if swap != 0 {
		newSwap = c.pages(swap)
	}
	if newLimit > newSwap && swap == 0 && limit != 0 {
		return invalid(memoryFile, limit, "above the limit of memory and swap together, %d", newSwap)
	}
	if newLimit > newSwap && swap != 0 {
		return invalid(memswFile, swap, "below the memory limit %d", newLimit)
	}
	pair := []write{
		{Controller: "memory", File: memoryFile, Value: strconv.FormatInt(limit, 10)},
		{Controller: "memory", File: memswFile, Value: strconv.FormatInt(swap, 10)},
	}
	if newSwap >= c.now.memswBytes {
		slices.Reverse(pair)
	}
	for _, w := range pair {
		if w.Value != "0" {
			c.out.writes = append(c.out.writes, w)
		}
	}
	return nil
}

// pages is the limit as the kernel keeps it: whole pages, -1 is none.
func (c *compiler) pages(bytes int64) int64 {
	if bytes == -1 {
		return math.MaxInt64
	}
	return bytes / c.host.pageSize * c.host.pageSize
}

func value(p *int64) int64 {
	if p == nil {
		return 0
	}
	return *p
}

var hugePageSize = regexp.MustCompile(`^[1-9][0-9]{0,9}(KB|MB|GB)$`)

// hugePages sets both usage and reservation: a limit on usage alone shows as
// SIGBUS at fault time instead of ENOMEM at mmap.
func (c *compiler) hugePages(res *specs.LinuxResources) error {
	present := slices.Contains(c.host.controllers, "hugetlb")
	for _, limit := range res.HugepageLimits {
		field := "hugetlb." + limit.Pagesize
		if !hugePageSize.MatchString(limit.Pagesize) {
			return invalid("hugepage size", limit.Pagesize, "want a number and KB, MB or GB")
		}
		switch {
		case !present:
			// B60: the kubelet sends a limit for every size it knows.
			c.note(field, "controller hugetlb is not available on this host")
			continue
		case !slices.Contains(c.host.hugePages, limit.Pagesize) && limit.Limit == 0:
			c.note(field, "this host has no pages of that size")
			continue
		case !slices.Contains(c.host.hugePages, limit.Pagesize):
			return invalid(field, limit.Limit, "this host has no pages of that size")
		}
		suffix, none := ".limit_in_bytes", "-1"
		if c.host.version == 2 {
			suffix, none = ".max", "max"
		}
		text := strconv.FormatUint(limit.Limit, 10)
		if limit.Limit > math.MaxInt64 {
			text = none
		}
		c.set("hugetlb", field+".rsvd"+suffix, text)
		c.set("hugetlb", field+suffix, text)
	}
	return nil
}
