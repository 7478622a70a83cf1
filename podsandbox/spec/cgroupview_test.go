package spec

import (
	"slices"
	"strings"
	"testing"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCgroupViewIsWritableOnlyWhereAskedAndAllowed(t *testing.T) {
	for _, c := range []struct {
		name, value string
		privileged  bool
		nodesUsers  bool
		node        func(*Node)
		access      string // "" is refused, with these words
		refused     string
	}{
		{name: "not asked", access: "ro"},
		{name: "asked not to", value: "false", node: func(n *Node) { n.AllowWritableCgroups = false }, access: "ro"},
		{name: "asked", value: "true", access: "rw"},
		{name: "asked with other words", value: "yes", refused: "want true or false"},
		{name: "not allowed", value: "true", node: func(n *Node) { n.AllowWritableCgroups = false }, refused: "cgroup.allow_writable"},
		{name: "v1", value: "true", node: func(n *Node) { n.CgroupVersion = 1 }, refused: "cgroup v1"},
		{name: "without delegation", value: "true", node: func(n *Node) { n.CgroupDelegation = false }, refused: "nsdelegate"},
		{name: "without a user namespace", value: "true", nodesUsers: true, refused: "needs a user namespace"},
		{name: "privileged", privileged: true, node: func(n *Node) { n.AllowWritableCgroups, n.CgroupDelegation = false, false }, access: "rw"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := goodInput()
			in.Node.AllowWritableCgroups, in.Node.CgroupDelegation = true, true
			if c.node != nil {
				c.node(&in.Node)
			}
			if c.value != "" {
				in.Sandbox.Config.Annotations = map[string]string{WritableCgroups: c.value}
			}
			if c.value == "true" && !c.nodesUsers {
				in.Sandbox.Config.Linux.SecurityContext.NamespaceOptions, in.Config.Linux.SecurityContext.NamespaceOptions = userOptions(), userOptions()
				in.Sandbox.UserPath = "/user"
			}
			in.Sandbox.Config.Linux.SecurityContext.Privileged, in.Config.Linux.SecurityContext.Privileged = c.privileged, c.privileged
			sandboxErr := ValidateSandbox(in.Sandbox.Config, in.Node)
			s, err := Container(in)
			if c.refused != "" {
				const field = `annotations["` + WritableCgroups + `"]`
				wantField(t, sandboxErr, field)
				wantField(t, err, "sandbox_config."+field)
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("got %v, want one that says %q", err, c.refused)
				}
				return
			}
			if sandboxErr != nil || err != nil {
				t.Fatal(sandboxErr, err)
			}
			want := ""
			if c.access == "rw" && !c.privileged {
				want = "4096"
			}
			if got := s.Linux.Resources.Unified["cgroup.max.descendants"]; got != want {
				t.Errorf("groups below it are limited to %q, want %q", got, want)
			}
			if err := SetResources(s, &criv1.LinuxContainerResources{CpuShares: 100}, in.Node); err != nil || s.Linux.Resources.Unified["cgroup.max.descendants"] != want {
				t.Errorf("after an update: %v, %q, want %q", err, s.Linux.Resources.Unified, want)
			}
			for _, m := range s.Mounts {
				if m.Destination == "/sys/fs/cgroup" && !slices.Contains(m.Options, c.access) {
					t.Errorf("the view has options %q, want %s", m.Options, c.access)
				}
				if m.Destination == "/sys" && slices.Contains(m.Options, "rw") != c.privileged {
					t.Errorf("/sys has options %q", m.Options)
				}
			}
		})
	}
}
