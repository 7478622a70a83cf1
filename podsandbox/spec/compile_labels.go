package spec

import (
	"slices"

	"github.com/podwright/podwright/runtime/launch"
)

// keyring makes the workload's session keyring, labelled as the workload is: it could not use the runtime's.
func (p *planner) keyring() {
	if label := p.spec.Process.SelinuxLabel; label != "" {
		p.add(launch.Op{Code: launch.OpExecLabel, Step: "set label of keys", Path: "keycreate", Arg: label})
	}
	p.add(launch.Op{Code: launch.OpKeyring, Step: "join session keyring", Arg: p.id})
}

// execLabel comes before no_new_privs: with it the policy may forbid to change the label.
func (p *planner) execLabel() {
	if label := p.spec.Process.SelinuxLabel; label != "" {
		p.add(launch.Op{Code: launch.OpExecLabel, Step: "set SELinux label", Path: "exec", Arg: label})
	}
}

// labelled adds to a new file system's options that all of its files have the container's label. Of the kernel's own the
// policy knows what they hold.
func (p *planner) labelled(fsType string, options []string) []string {
	label := p.spec.Linux.MountLabel
	if label == "" || fsType != "tmpfs" && fsType != "devpts" {
		return options
	}
	return append(slices.Clone(options), "context="+label)
}
