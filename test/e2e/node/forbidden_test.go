package node

import (
	"testing"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A workload tries what it must not do. Each attempt succeeds where it is allowed, so that its failure is the doing of
// what stands in its way and not of the attempt.
func TestWorkloadsTryWhatTheyMustNotDo(t *testing.T) {
	n := onNode(t)
	p := n.pod(t, ownNetwork)
	with := func(changes ...func(*criv1.ContainerConfig)) func(*criv1.ContainerConfig) {
		return func(c *criv1.ContainerConfig) {
			kubeletLike(c)
			for _, change := range changes {
				change(c)
			}
		}
	}
	add := func(caps ...string) func(*criv1.ContainerConfig) {
		return func(c *criv1.ContainerConfig) { security(c).Capabilities.AddCapabilities = caps }
	}
	drop := func(caps ...string) func(*criv1.ContainerConfig) {
		return func(c *criv1.ContainerConfig) { security(c).Capabilities.DropCapabilities = caps }
	}
	asUser := func(c *criv1.ContainerConfig) { security(c).RunAsUser = &criv1.Int64Value{Value: 1000} }
	for _, test := range []struct {
		name, attempt    string
		denied, allowing func(*criv1.ContainerConfig)
	}{
		{"configure the network without NET_ADMIN", "ip link set lo up && ip addr add 10.99.0.1/32 dev lo", with(), with(add("NET_ADMIN"))},
		{"mount without SYS_ADMIN", "mkdir /m && mount -t tmpfs none /m", with(), with(add("SYS_ADMIN"))},
		{"give a file away without CHOWN", "touch /f && chown 1000 /f", with(drop("CHOWN")), with()},
		{"change the root without SYS_CHROOT", "chroot / true", with(drop("SYS_CHROOT")), with()},
		{"read another's file without DAC_OVERRIDE", "touch /f && chown 1000 /f && chmod 600 /f && cat /f", with(drop("DAC_OVERRIDE", "DAC_READ_SEARCH")), with()},
		{"gain root by a set-user-ID program with no_new_privs", "suid-probe id | grep -q 'euid 0 '",
			with(asUser, func(c *criv1.ContainerConfig) { security(c).NoNewPrivs = true }), with(asUser)},
		{"read what is masked", "grep -q . /proc/keys", with(), with(func(c *criv1.ContainerConfig) { security(c).MaskedPaths = nil })},
		{"write what is read-only", "echo 1 >/proc/sys/net/ipv4/ip_forward", with(add("NET_ADMIN")),
			with(add("NET_ADMIN"), func(c *criv1.ContainerConfig) { security(c).ReadonlyPaths = nil })},
		{"use a call that RuntimeDefault refuses", "probe syscalls | grep keyctl | grep -q -v EPERM",
			with(), with(seccomp(criv1.SecurityProfile_Unconfined))},
		{"make a user namespace under RuntimeDefault", "probe syscalls | grep -q '^unshare -U ok'", with(), with(seccomp(criv1.SecurityProfile_Unconfined))},
		{"open a device that was not given", "mknod /log c 1 11 && echo podwright >/log", with(), with(func(c *criv1.ContainerConfig) {
			c.Devices = []*criv1.Device{{HostPath: "/dev/kmsg", ContainerPath: "/dev/kmsg", Permissions: "rwm"}}
		})},
		{"make a device node without MKNOD", "mknod /log c 1 3", with(drop("MKNOD")), with()},
		{"write to a read-only root", "touch /x", with(func(c *criv1.ContainerConfig) { security(c).ReadonlyRootfs = true }), with()},
	} {
		t.Run(test.name, func(t *testing.T) {
			p.t = t
			try := func(config func(*criv1.ContainerConfig)) (int32, string) {
				c := p.start(both(config, outsideModules), "sh", "-c", test.attempt)
				s := c.wait(30 * time.Second)
				return s.GetExitCode(), c.stream("stderr")
			}
			if code, said := try(test.denied); code == 0 {
				t.Errorf("it succeeds: %s", said)
			}
			if code, said := try(test.allowing); code != 0 {
				t.Errorf("where it is allowed it fails too, with code %d: %s", code, said)
			}
		})
	}
}

// outsideModules makes a container one that SELinux and AppArmor leave alone, where there is either: what stands in the way of
// an attempt is then none of their rules.
func outsideModules(c *criv1.ContainerConfig) {
	if hasLabels() {
		security(c).SelinuxOptions = &criv1.SELinuxOption{Type: "spc_t"}
	}
	if hasAppArmor() {
		profiled(criv1.SecurityProfile_Unconfined, "")(c)
	}
}
