package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/podwright/podwright/runtime/sys"
)

// deviceSet is what devices.list shows: everything, or exactly the listed.
type deviceSet struct {
	everything bool
	listed     map[string]access // "c 1:3", "b *:*"
}

// deviceKey is the rule's device in the words of devices.allow.
func (r deviceRule) deviceKey() string {
	number := func(n int64) string {
		if n == -1 {
			return "*"
		}
		return strconv.FormatInt(n, 10)
	}
	return string(r.kind) + " " + number(r.major) + ":" + number(r.minor)
}

// deviceWritesV1 are the writes of the rules one by one, for a group that was
// just made and has no process yet.
func deviceWritesV1(rules []deviceRule) []write {
	var out []write
	for _, r := range rules {
		w := write{Controller: "devices", File: "devices.deny", Value: "a"}
		if r.allow {
			w.File = "devices.allow"
		}
		if r.kind != 'a' {
			w.Value = r.deviceKey() + " " + r.access.String()
		}
		out = append(out, w)
	}
	return out
}

// deviceSetOf is what the kernel's list will be after rules, if they begin with
// one for everything; otherwise the result depends on the parent and ok is false.
func deviceSetOf(rules []deviceRule) (set deviceSet, ok bool) {
	if len(rules) == 0 || rules[0].kind != 'a' {
		return set, false
	}
	for _, r := range rules {
		switch {
		case r.kind == 'a':
			set = deviceSet{everything: r.allow, listed: map[string]access{}}
		case set.everything:
			return set, false // denials on top of everything are not in devices.list
		case r.allow:
			set.listed[r.deviceKey()] |= r.access
		default:
			set.listed[r.deviceKey()] &^= r.access
		}
	}
	return set, true
}

func parseDevicesList(text string) (deviceSet, error) {
	set := deviceSet{listed: map[string]access{}}
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if line == "" {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 3 {
			return set, fmt.Errorf("devices.list: unexpected line %q", line)
		}
		if f[0] == "a" {
			set.everything = true
			continue
		}
		for _, r := range f[2] {
			switch r {
			case 'r':
				set.listed[f[0]+" "+f[1]] |= accessRead
			case 'w':
				set.listed[f[0]+" "+f[1]] |= accessWrite
			case 'm':
				set.listed[f[0]+" "+f[1]] |= accessMknod
			}
		}
	}
	return set, nil
}

// deviceDiffV1 are the writes that lead from have to want. Additions come first
// and nothing that stays is ever taken away: denying everything and allowing it
// again would fail a running container's opens in between.
func deviceDiffV1(have, want deviceSet) []write {
	var out []write
	if want.everything {
		if !have.everything {
			out = append(out, write{Controller: "devices", File: "devices.allow", Value: "a"})
		}
		return out
	}
	current := have.listed
	if have.everything {
		out = append(out, write{Controller: "devices", File: "devices.deny", Value: "a"})
		current = nil
	}
	for _, key := range slices.Sorted(maps.Keys(want.listed)) {
		if add := want.listed[key] &^ current[key]; add != 0 {
			out = append(out, write{Controller: "devices", File: "devices.allow", Value: key + " " + add.String()})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(current)) {
		if drop := current[key] &^ want.listed[key]; drop != 0 {
			out = append(out, write{Controller: "devices", File: "devices.deny", Value: key + " " + drop.String()})
		}
	}
	return out
}

// setDevicesV1 applies rules to the group's directory; after an error the old
// list is back.
func setDevicesV1(dir string, rules []deviceRule, fresh bool) error {
	if fresh {
		return writeAll(dir, deviceWritesV1(rules))
	}
	text, err := sys.ReadKernelFile(filepath.Join(dir, "devices.list"), smallFile)
	if err != nil {
		return err
	}
	have, err := parseDevicesList(text)
	if err != nil {
		return err
	}
	writes := deviceWritesV1(rules)
	if want, ok := deviceSetOf(rules); ok {
		writes = deviceDiffV1(have, want)
	}
	if err := writeAll(dir, writes); err != nil {
		return errors.Join(err, restoreDevicesV1(dir, have))
	}
	return nil
}

func restoreDevicesV1(dir string, old deviceSet) error {
	text, err := sys.ReadKernelFile(filepath.Join(dir, "devices.list"), smallFile)
	if err != nil {
		return fmt.Errorf("restore devices: %w", err)
	}
	now, err := parseDevicesList(text)
	if err == nil {
		err = writeAll(dir, deviceDiffV1(now, old))
	}
	if err != nil {
		return fmt.Errorf("restore devices: %w", err)
	}
	return nil
}

func writeAll(dir string, writes []write) error {
	for _, w := range writes {
		if err := sys.WriteKernelFile(filepath.Join(dir, w.File), w.Value); err != nil {
			return writeError(w, err)
		}
	}
	return nil
}
