package apparmor

import (
	"fmt"
	"regexp"
	"strings"
)

// profileBody is what RuntimeDefault means, for profile DefaultName.
//
// It holds everywhere, whatever a container may mount and whatever capabilities it was given: paths are those of the
// container, as it sees them. What is allowed as a whole is held by capabilities, seccomp and devices; what is denied here
// is what capabilities give too much of. Denials win over permissions, so their order says nothing.
//
// It uses no file of the node's /etc/apparmor.d but the version of the language: no administrator's change to a shared
// abstraction changes what confines containers.
const profileBody = `
  # Files, programs, sockets and capabilities as such: others decide about them.
  file,
  network,
  unix,
  capability,
  # Nobody in a container loads policy.
  deny capability mac_admin,
  deny capability mac_override,

  # Among the processes that this profile confines, and what the node does to them.
  signal (send, receive) peer=podwright-default,
  signal (receive) peer=unconfined,
  ptrace (trace, tracedby, read, readby) peer=podwright-default,

  # The tree of mounts stays as it was made: masks and read-only paths are mounts.
  deny mount,
  deny umount,
  deny pivot_root,

  # In procfs a process writes to processes, and to nothing of the kernel's: files on top,
  # directories that are no process's, and settings, but for System V shared memory, which belongs
  # to the IPC namespace.
  deny /proc/* wkl,
  deny /proc/[^0-9s]*/** wkl,
  deny /proc/s[^y]*/** wkl,
  deny /proc/sy[^s]*/** wkl,
  deny /proc/sys[^/]*/** wkl,
  deny /proc/sys/[^k]** wkl,
  deny /proc/sys/k[^e]** wkl,
  deny /proc/sys/ke[^r]** wkl,
  deny /proc/sys/kernel/[^s]** wkl,
  deny /proc/sys/kernel/s[^h]** wkl,
  deny /proc/sys/kernel/sh[^m]** wkl,
  # What must not be read either: memory of the kernel, and what reboots the node.
  deny /proc/kcore rwklx,
  deny /proc/kmem rwklx,
  deny /proc/mem rwklx,
  deny /proc/sysrq-trigger rwklx,

  # Of sysfs a container writes to its control groups alone, where it was given a view that can be written.
  deny /sys/[^f]** wklx,
  deny /sys/f[^s]** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/fs/c[^g]** wklx,
  deny /sys/fs/cg[^r]** wklx,
  # Firmware, the node's policy, and power meters fine enough to read keys from (CVE-2020-8694).
  deny /sys/firmware/{,**} rwklx,
  deny /sys/kernel/security/{,**} rwklx,
  deny /sys/devices/virtual/powercap/{,**} rwklx,
`

// plainLabel is a label that stands in a rule for itself alone: none of its characters is one of the language's.
var plainLabel = regexp.MustCompile(`^[A-Za-z0-9_./:&+@-]+$`)

// profileText is the whole profile. own is the label of the daemon, which signals and looks at containers; with abi the
// language's version is pinned to one that every parser since AppArmor 3.0 knows, so that a newer one makes no new kind
// of access that no rule here allows.
func profileText(own string, abi bool) (string, error) {
	var b strings.Builder
	if abi {
		b.WriteString("abi <abi/3.0>,\n\n")
	}
	// attach_disconnected: descriptors made outside the container's mounts, its standard streams above all.
	// mediate_deleted: a deleted file is still the file it was.
	fmt.Fprintf(&b, "profile %s flags=(attach_disconnected, mediate_deleted) {%s", DefaultName, profileBody)
	if own != unconfined {
		if !plainLabel.MatchString(own) {
			return "", fmt.Errorf("podwright's own AppArmor label %q cannot be written into a rule", own)
		}
		fmt.Fprintf(&b, "\n  # The daemon, which a profile confines too.\n  signal (receive) peer=%s,\n  ptrace (tracedby, readby) peer=%s,\n", own, own)
	}
	b.WriteString("}\n")
	return b.String(), nil
}
