package cgroup

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// unified compiles the v2 files that are named verbatim, last and in the order
// of their names: what they say wins over the fields above. A value of several
// lines is as many writes, because cgroupfs takes one line per write.
func (c *compiler) unified(res *specs.LinuxResources) error {
	if len(res.Unified) == 0 {
		return nil
	}
	keys := slices.Sorted(maps.Keys(res.Unified))
	if c.host.version != 2 {
		return fmt.Errorf("unified resources (%s) need cgroup v2, this host has v1: %w",
			strings.Join(keys, ", "), ErrNotSupported)
	}
	for _, key := range keys {
		controller, err := checkUnifiedKey(key)
		if err != nil {
			return err
		}
		if controller != "cgroup" {
			if err := c.need(controller, "unified "+key); err != nil {
				return err
			}
		}
		text := strings.TrimRight(res.Unified[key], "\n")
		if text == "" || len(text) > 4096 || strings.ContainsRune(text, 0) {
			return invalid(key, text, "want 1 to 4096 bytes")
		}
		if err := c.checkUnifiedValue(key, text); err != nil {
			return err
		}
		for _, line := range strings.Split(text, "\n") {
			c.set(controller, key, line)
		}
	}
	return nil
}

// checkUnifiedValue judges what the kernel would take and not do: a memory limit below what is in use, which has it
// kill, and processors that the machine lacks, for which it gives all there are.
func (c *compiler) checkUnifiedValue(key, text string) error {
	switch key {
	case "memory.max":
		c.out.wantMemoryBytes = 0
		if n := parseLimit(text); n != math.MaxInt64 {
			c.out.wantMemoryBytes = n
		}
	case "cpuset.cpus":
		return checkHas(key, text, c.host.cpus)
	case "cpuset.mems":
		return checkHas(key, text, c.host.mems)
	}
	return nil
}

// checkHas refuses a list with processors or memory nodes that the host does not have; have "" is unknown.
func checkHas(file, list, have string) error {
	want, err := parseList(list)
	if err != nil {
		return invalid(file, list, "%v", err)
	}
	if has, err := parseList(have); err == nil && have != "" && !want.within(has) {
		return invalid(file, list, "this host has %s", have)
	}
	return nil
}

// checkUnifiedKey returns the controller of a file. Of the core's files only
// those that limit are allowed: cgroup.procs, cgroup.kill and the like act. So do
// memory.reclaim and the peaks; a trigger of a pressure file ends with the write.
func checkUnifiedKey(key string) (string, error) {
	if len(key) > 200 || strings.ContainsFunc(key, func(r rune) bool {
		return r != '.' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		return "", invalid("unified", key, "want the name of a cgroup v2 file: letters, digits, '.' and '_'")
	}
	controller, rest, ok := strings.Cut(key, ".")
	if !ok || controller == "" || rest == "" {
		return "", invalid("unified", key, "want the name of a cgroup v2 file, controller.file")
	}
	if controller == "cgroup" && key != "cgroup.max.depth" && key != "cgroup.max.descendants" && key != "cgroup.pressure" {
		return "", invalid("unified", key, "not a limit")
	}
	acts := key == "memory.reclaim" || strings.HasSuffix(key, ".peak") || strings.HasSuffix(key, ".pressure") && controller != "cgroup"
	if acts {
		return "", invalid("unified", key, "not a limit: writing to it changes nothing that lasts")
	}
	return controller, nil
}
