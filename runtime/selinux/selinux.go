// Package selinux owns what podwright knows of SELinux on this host. For now that is whether the kernel has a policy
// loaded: labels are refused where they would have to be enforced and are not yet, and accepted without effect elsewhere.
// It may not write labels anywhere.
// Source: selinux(8), /sys/fs/selinux; github.com/opencontainers/selinux.
package selinux

import "github.com/opencontainers/selinux/go-selinux"

// Enabled says whether SELinux decides on this host, enforcing or permissive.
func Enabled() bool { return selinux.GetEnabled() }
