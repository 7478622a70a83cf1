package isolation

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// namespaceKinds in the words of the spec and of procfs.
var namespaceKinds = []struct {
	kind specs.LinuxNamespaceType
	file string
}{
	{specs.UserNamespace, "user"}, {specs.MountNamespace, "mnt"}, {specs.PIDNamespace, "pid"}, {specs.NetworkNamespace, "net"},
	{specs.IPCNamespace, "ipc"}, {specs.UTSNamespace, "uts"}, {specs.CgroupNamespace, "cgroup"},
}

const (
	hosts  = "the host's"
	joined = "the sandbox's"
	own    = "its own"
)

func namespaces(p *process, s *specs.Spec, pidOwner string) ([]Finding, error) {
	var out []Finding
	for _, k := range namespaceKinds {
		has, err := p.namespace(k.file)
		if err != nil {
			return nil, err
		}
		host, err := os.Readlink("/proc/self/ns/" + k.file)
		if err != nil {
			return nil, err
		}
		f := Finding{Aspect: string(k.kind) + " namespace", Asked: hosts, Enforced: own}
		at := slices.IndexFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == k.kind })
		if at >= 0 {
			f.Asked = own
		}
		if has == host {
			f.Enforced = hosts
		}
		if at >= 0 && s.Linux.Namespaces[at].Path != "" {
			f.Asked = joined
			if k.kind == specs.PIDNamespace && pidOwner != "" {
				f.Asked = pidOwner
			}
			var info unix.Stat_t
			if err := unix.Stat(s.Linux.Namespaces[at].Path, &info); err == nil && has == fmt.Sprintf("%s:[%d]", k.file, info.Ino) {
				f.Enforced = f.Asked
			}
		}
		// In a namespace of its own where the host's was asked for, it is confined more, by its own doing.
		f.Differs = f.Enforced != f.Asked && f.Asked != hosts
		out = append(out, f)
	}
	return out, nil
}

func mappings(p *process, s *specs.Spec) ([]Finding, error) {
	var out []Finding
	for _, m := range []struct {
		file  string
		asked []specs.LinuxIDMapping
	}{{"uid_map", s.Linux.UIDMappings}, {"gid_map", s.Linux.GIDMappings}} {
		text, err := p.read(m.file, smallFile)
		if err != nil {
			return nil, err
		}
		asked := m.asked
		if len(asked) == 0 {
			asked = []specs.LinuxIDMapping{{Size: math.MaxUint32}}
		}
		f := Finding{Aspect: strings.ReplaceAll(m.file, "_", " "), Enforced: strings.Join(strings.Fields(text), " ")}
		var all []string
		for _, a := range asked {
			all = append(all, fmt.Sprintf("%d %d %d", a.ContainerID, a.HostID, a.Size))
		}
		f.Asked = strings.Join(all, " ")
		f.Differs = f.Asked != f.Enforced
		out = append(out, f)
	}
	return out, nil
}

// onHost is what an id of the container is on the host.
func onHost(id uint32, mappings []specs.LinuxIDMapping) uint32 {
	for _, m := range mappings {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + id - m.ContainerID
		}
	}
	return id
}

// identity holds a workload that was not root to that. It may change its user with a set-user-ID program, but for root.
func identity(p *process, s *specs.Spec) ([]Finding, error) {
	u := s.Process.User
	root, asked := onHost(0, s.Linux.UIDMappings), onHost(u.UID, s.Linux.UIDMappings)
	uids, gids := strings.Fields(p.status["Uid"]), strings.Fields(p.status["Gid"])
	if len(uids) != 4 || len(gids) != 4 {
		return nil, fmt.Errorf("status without Uid and Gid")
	}
	id := func(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
	user := Finding{Aspect: "user", Asked: id(asked), Enforced: strings.Join(slices.Compact(uids), " ")}
	user.Differs = asked != root && slices.Contains(uids, id(root))
	group := Finding{Aspect: "group", Asked: id(onHost(u.GID, s.Linux.GIDMappings)), Enforced: strings.Join(slices.Compact(gids), " ")}
	rootGroup := id(onHost(0, s.Linux.GIDMappings))
	group.Differs = asked != root && group.Asked != rootGroup && slices.Contains(gids, rootGroup)
	allowed := []string{group.Asked}
	for _, g := range u.AdditionalGids {
		allowed = append(allowed, id(onHost(g, s.Linux.GIDMappings)))
	}
	groups := Finding{Aspect: "supplementary groups", Asked: strings.Join(allowed[1:], " "), Enforced: p.status["Groups"]}
	for _, g := range strings.Fields(p.status["Groups"]) {
		groups.Differs = groups.Differs || asked != root && !slices.Contains(allowed, g)
	}
	return []Finding{user, group, groups}, nil
}

// capabilities compares the five sets. What a program with a file capability may gain is within the bounding set;
// with no_new_privs nothing is gained.
func capabilities(p *process, s *specs.Spec) ([]Finding, error) {
	c := s.Process.Capabilities
	if c == nil {
		c = &specs.LinuxCapabilities{}
	}
	bounding, err := bits(c.Bounding)
	if err != nil {
		return nil, err
	}
	var out []Finding
	for _, set := range []struct {
		name, key string
		asked     []string
	}{
		{"bounding", "CapBnd", c.Bounding}, {"permitted", "CapPrm", c.Permitted}, {"effective", "CapEff", c.Effective},
		{"inheritable", "CapInh", c.Inheritable}, {"ambient", "CapAmb", c.Ambient},
	} {
		asked, err := bits(set.asked)
		if err != nil {
			return nil, err
		}
		has, err := strconv.ParseUint(p.status[set.key], 16, 64)
		if err != nil {
			return nil, fmt.Errorf("status %s %q: %w", set.key, p.status[set.key], err)
		}
		allowed := asked
		if !s.Process.NoNewPrivileges {
			allowed |= bounding
		}
		f := Finding{Aspect: set.name + " capabilities", Asked: names(asked), Enforced: names(has), Differs: has&^allowed != 0}
		if f.Differs {
			f.Enforced += " (too many: " + names(has&^allowed) + ")"
		}
		out = append(out, f)
	}
	return out, nil
}

func bits(list []string) (mask uint64, err error) {
	for _, name := range list {
		c, ok := capabilityNumber(name)
		if !ok {
			return 0, fmt.Errorf("capability %q is unknown", name)
		}
		mask |= 1 << c
	}
	return mask, nil
}

func capabilityNumber(name string) (uint, bool) {
	for _, c := range capability.ListKnown() {
		if strings.EqualFold("CAP_"+c.String(), name) {
			return uint(c), true
		}
	}
	return 0, false
}

// names lists a set, without the CAP_ before each.
func names(mask uint64) string {
	if mask == 0 {
		return "none"
	}
	var list []string
	for c := range uint(64) {
		if mask&(1<<c) != 0 {
			list = append(list, strings.ToUpper(capability.Cap(c).String()))
		}
	}
	return strings.Join(list, " ")
}

func privileges(p *process, s *specs.Spec, filter []byte) ([]Finding, error) {
	nnp := Finding{Aspect: "no_new_privs", Asked: strconv.FormatBool(s.Process.NoNewPrivileges), Enforced: strconv.FormatBool(p.status["NoNewPrivs"] == "1")}
	nnp.Differs = s.Process.NoNewPrivileges && p.status["NoNewPrivs"] != "1"
	f, err := seccomp(p, s, filter)
	return []Finding{nnp, f}, err
}

// label compares the security label, where one is asked for. The spec has it as the kernel writes it.
func label(p *process, s *specs.Spec) ([]Finding, error) {
	asked, file := s.Process.SelinuxLabel, "attr/current"
	if s.Process.ApparmorProfile != "" {
		asked, file = s.Process.ApparmorProfile, "attr/apparmor/current"
	}
	text, err := p.read(file, smallFile)
	if err != nil { // no security module, or none that labels processes
		text = ""
	}
	f := Finding{Aspect: "security label", Asked: orNone(asked), Enforced: orNone(strings.TrimRight(text, "\x00\n"))}
	f.Differs = asked != "" && f.Enforced != asked
	if s.Process.ApparmorProfile != "" {
		f.Differs = !underProfile(f.Enforced, asked)
	}
	return []Finding{f}, nil
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}
