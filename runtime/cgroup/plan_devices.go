package cgroup

import (
	"fmt"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// dev_t holds 12 bits of major and 20 of minor: include/linux/kdev_t.h.
const (
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

// deviceRule is one specs.LinuxDeviceCgroup, checked. -1 is any number.
type deviceRule struct {
	allow        bool
	kind         byte // 'a', 'b', 'c'
	major, minor int64
	access       access
}

// access is a set of r, w, m with the bits of BPF_DEVCG_ACC_*.
type access uint8

const (
	accessMknod access = 1 << iota
	accessRead
	accessWrite
	accessAll = accessMknod | accessRead | accessWrite
)

func (a access) String() string {
	var b strings.Builder
	for _, bit := range []struct {
		bit  access
		name byte
	}{{accessRead, 'r'}, {accessWrite, 'w'}, {accessMknod, 'm'}} {
		if a&bit.bit != 0 {
			b.WriteByte(bit.name)
		}
	}
	return b.String()
}

func (c *compiler) devices(res *specs.LinuxResources) error {
	if res.Devices == nil {
		return nil
	}
	if _, err := deviceRules(res.Devices); err != nil {
		return err
	}
	// On v2 a BPF program filters, which needs no controller.
	if c.host.version == 1 {
		if err := c.need("devices", "devices"); err != nil {
			return err
		}
	}
	c.out.devices = res.Devices
	return nil
}

func deviceRules(devices []specs.LinuxDeviceCgroup) ([]deviceRule, error) {
	rules := make([]deviceRule, 0, len(devices))
	for _, d := range devices {
		rule, err := parseDeviceRule(d)
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

func parseDeviceRule(d specs.LinuxDeviceCgroup) (deviceRule, error) {
	rule := deviceRule{allow: d.Allow, major: -1, minor: -1}
	if d.Major != nil {
		rule.major = *d.Major
	}
	if d.Minor != nil {
		rule.minor = *d.Minor
	}
	text := fmt.Sprintf("%s %d:%d %s", d.Type, rule.major, rule.minor, d.Access)
	for _, r := range d.Access {
		bit, ok := map[rune]access{'r': accessRead, 'w': accessWrite, 'm': accessMknod}[r]
		if !ok || rule.access&bit != 0 {
			return rule, invalid("device rule", text, "access %q, want a selection of rwm", d.Access)
		}
		rule.access |= bit
	}
	if rule.major < -1 || rule.major > maxMajor || rule.minor < -1 || rule.minor > maxMinor {
		return rule, invalid("device rule", text, "want a major of at most %d, a minor of at most %d", maxMajor, maxMinor)
	}
	switch d.Type {
	case "", "a":
		rule.kind = 'a'
		// The v1 kernel takes "a" for everything, whatever follows it.
		if rule.major != -1 || rule.minor != -1 || (rule.access != accessAll && rule.access != 0) {
			return rule, invalid("device rule", text, "type a takes no numbers and no access but rwm")
		}
		rule.access = accessAll
	case "b", "c":
		rule.kind = d.Type[0]
		if rule.access == 0 {
			return rule, invalid("device rule", text, "no access named, want a selection of rwm")
		}
	default:
		return rule, invalid("device rule", text, "type %q, want a, b or c", d.Type)
	}
	return rule, nil
}
