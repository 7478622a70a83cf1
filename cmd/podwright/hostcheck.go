package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/cmd/podwright/internal/config"
	"github.com/podwright/podwright/cni"
	"github.com/podwright/podwright/runtime/apparmor"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/mounts"
	"github.com/podwright/podwright/runtime/namespace"
	"github.com/podwright/podwright/runtime/selinux"
	"github.com/podwright/podwright/runtime/systemd"
)

// hostChecks asks the kernel by trying, as the daemon does at its start, and changes nothing that stays.
func hostChecks(ctx context.Context, cfg config.Config) []hostCheck {
	list := []hostCheck{checkRoot()}
	list = append(list, checkCalls()...)
	list = append(list, checkNamespaces()...)
	list = append(list, checkCgroups(cfg)...)
	list = append(list, checkMounts(cfg)...)
	list = append(list, checkSeccomp(), checkLSM(cfg), checkPrograms(cfg))
	list = append(list, checkSysctls()...)
	return append(list, checkNetwork(ctx, cfg))
}

func ok(name, found string) hostCheck { return hostCheck{Name: name, State: stateOK, Found: found} }

func checkRoot() hostCheck {
	const name = "privileges"
	caps, err := heldCapabilities()
	needed := []struct {
		bit  uint
		name string
	}{
		{unix.CAP_SYS_ADMIN, "SYS_ADMIN"}, {unix.CAP_SETUID, "SETUID"}, {unix.CAP_SETGID, "SETGID"}, {unix.CAP_SETPCAP, "SETPCAP"},
		{unix.CAP_CHOWN, "CHOWN"}, {unix.CAP_DAC_OVERRIDE, "DAC_OVERRIDE"}, {unix.CAP_NET_ADMIN, "NET_ADMIN"}, {unix.CAP_KILL, "KILL"},
		{unix.CAP_MKNOD, "MKNOD"}, {unix.CAP_SYS_CHROOT, "SYS_CHROOT"}, {unix.CAP_SYS_PTRACE, "SYS_PTRACE"},
	}
	var lacking []string
	for _, c := range needed {
		if caps&(1<<c.bit) == 0 {
			lacking = append(lacking, c.name)
		}
	}
	switch {
	case err != nil:
		return hostCheck{Name: name, State: stateMissing, Found: err.Error(), Do: "mount /proc"}
	case len(lacking) > 0:
		return hostCheck{Name: name, State: stateMissing, Found: "without " + strings.Join(lacking, ", "), Do: "run as root with all capabilities"}
	case caps&(1<<unix.CAP_SYS_RESOURCE) == 0:
		return hostCheck{Name: name, State: stateLimited, Found: "without SYS_RESOURCE: OOM scores and limits of pods can't go beyond podwright's own", Do: "run with CAP_SYS_RESOURCE"}
	}
	return ok(name, "all that is needed")
}

// checkCalls tries calls with arguments that a kernel which has them refuses.
func checkCalls() []hostCheck {
	calls := []struct {
		name    string
		version string
		try     func() error
	}{
		{"clone3", "5.3", func() error { _, _, e := unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0); return e }},
		{"openat2", "5.6", func() error { _, err := unix.Openat2(-1, "", &unix.OpenHow{}); return err }},
		{"pidfd_open", "5.3", func() error { _, err := unix.PidfdOpen(0, 0); return err }},
		{"close_range", "5.9", func() error { return unix.CloseRange(2, 1, 0) }},
		{"mount_setattr", "5.12", func() error { return unix.MountSetattr(-1, "", 0, &unix.MountAttr{}) }},
		{"fsopen", "5.2", func() error { _, err := unix.Fsopen("", 0); return err }},
	}
	var release unix.Utsname
	if err := unix.Uname(&release); err != nil {
		return []hostCheck{{Name: "kernel", State: stateMissing, Found: err.Error()}}
	}
	version := unix.ByteSliceToString(release.Release[:])
	var list []hostCheck
	for _, c := range calls {
		if err := c.try(); errors.Is(err, unix.ENOSYS) {
			list = append(list, hostCheck{Name: "kernel: " + c.name, State: stateMissing, Found: "Linux " + version + " answers " + err.Error(),
				Do: "Linux " + c.version + " or newer, and no filter around podwright that refuses the call"})
		}
	}
	if len(list) == 0 {
		list = append(list, ok("kernel", "Linux "+version+" has the system calls"))
	}
	return list
}

func checkNamespaces() []hostCheck {
	var lacking []string
	for _, kind := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		if _, err := os.Lstat("/proc/self/ns/" + kind); err != nil {
			lacking = append(lacking, kind)
		}
	}
	if len(lacking) > 0 {
		return []hostCheck{{Name: "namespaces", State: stateMissing, Found: "none of kind " + strings.Join(lacking, ", "), Do: "a kernel with CONFIG_NAMESPACES and all its kinds"}}
	}
	return []hostCheck{ok("namespaces", "mnt, pid, net, ipc, uts, cgroup")}
}

func checkCgroups(cfg config.Config) []hostCheck {
	const name = "control groups"
	var units *systemd.Conn
	if systemd.Booted() {
		units = systemd.New()
		defer units.Close()
	}
	groups, _, err := openCgroups(cfg, units)
	if err != nil {
		return []hostCheck{{Name: name, State: stateMissing, Found: err.Error(), Do: "mount -t cgroup2 cgroup2 " + cfg.Cgroup.Root}}
	}
	list := []hostCheck{ok(name, fmt.Sprintf("version %d, driver %s", groups.Version(), groups.Driver()))}
	if groups.Driver() == cgroup.DriverSystemd {
		list = append(list, checkSystemd(units))
	}
	for _, c := range []struct {
		controller string
		use        string
	}{{"cpu", "CPU shares and limits"}, {"memory", "memory limits"}, {"pids", "process limits"}, {"cpuset", "CPU pinning"}, {"hugetlb", "huge page limits"}} {
		if !slices.Contains(groups.Controllers(), c.controller) {
			list = append(list, hostCheck{Name: name + ": " + c.controller, State: stateLimited, Found: "not available: " + c.use + " are refused",
				Do: "enable the controller (kernel command line, or cgroup.subtree_control down to " + cfg.Cgroup.Root + ")"})
		}
	}
	if !swapLimit(groups) {
		list = append(list, hostCheck{Name: name + ": swap", State: stateLimited, Found: "no swap to limit, or no accounting of it", Do: "on version 1: swapaccount=1 on the kernel command line"})
	}
	return list
}

// checkSystemd asks it for something: without an answer no pod has a control group.
func checkSystemd(units *systemd.Conn) hostCheck {
	const name = "control groups: systemd"
	if _, err := units.Stopping(context.Background()); err != nil {
		return hostCheck{Name: name, State: stateMissing, Found: err.Error(),
			Do: "let podwright talk to systemd through /run/systemd/private or D-Bus, or set cgroup.driver to cgroupfs here and for the kubelet"}
	}
	return ok(name, "answers")
}

// checkMounts tries what root file systems are made of, and user namespaces on the state directory's file system.
func checkMounts(cfg config.Config) []hostCheck {
	opener, err := mounts.New()
	if err != nil {
		return []hostCheck{{Name: "mounts", State: stateMissing, Found: err.Error(), Do: "modprobe overlay; Linux 5.12 or newer"}}
	}
	list := []hostCheck{ok("mounts", "detached mounts and overlay")}
	if err := mounts.ProbeReadOnlyBelow(); err != nil {
		list = append(list, hostCheck{Name: "recursively read-only mounts", State: stateLimited, Found: err.Error(), Do: "Linux 5.12 or newer, and nothing that only stands in for it"})
	}
	user := hostCheck{Name: "user namespaces", State: stateLimited, Do: "sysctl user.max_user_namespaces; a state directory on a file system with idmapped mounts (ext4, xfs, btrfs, tmpfs; overlay from Linux 5.19)"}
	dir := cfg.StateDir
	for _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) && dir != "/"; _, err = os.Stat(dir) {
		dir = filepath.Dir(dir) // where it will be made
	}
	if err := tryUserNamespace(cfg, dir, opener); err != nil {
		user.Found = "pods cannot have them: " + err.Error()
		return append(list, user)
	}
	return append(list, ok(user.Name, "with idmapped layers on "+dir))
}

// tryUserNamespace is the daemon's own probe, with a directory for pins that is none of its.
func tryUserNamespace(cfg config.Config, stateDir string, opener *mounts.Opener) error {
	holder, err := binary(cfg.Runtime.InitBinary, "podwright-init")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "podwright-check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	netDir, pinDir := filepath.Join(dir, "net"), filepath.Join(dir, "ns")
	pins, err := namespace.New(namespace.Config{NetnsDir: netDir, RunDir: pinDir, Holder: []string{holder}})
	defer func() { // both are mounts of their own, made for pins
		unix.Unmount(netDir, unix.MNT_DETACH)
		unix.Unmount(pinDir, unix.MNT_DETACH)
	}()
	if err != nil {
		return err
	}
	return tryMappedRoot(stateDir, pins, opener)
}

func checkSeccomp() hostCheck {
	const name = "seccomp"
	action := uint32(unix.SECCOMP_RET_ERRNO)
	const getActionAvail = 2
	if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, getActionAvail, 0, uintptr(unsafe.Pointer(&action))); errno != 0 {
		return hostCheck{Name: name, State: stateMissing, Found: errno.Error(), Do: "a kernel with CONFIG_SECCOMP_FILTER"}
	}
	return ok(name, "filters")
}

func checkLSM(cfg config.Config) hostCheck {
	const name = "security modules"
	if selinux.Enabled() {
		return checkLabels(cfg.SELinux)
	}
	if !apparmor.Enabled() {
		return ok(name, "neither SELinux nor AppArmor is on; labels and profiles have no effect")
	}
	return checkAppArmor(cfg)
}

func checkPrograms(cfg config.Config) hostCheck {
	const name = "programs"
	for program, configured := range map[string]string{"podwright-keeper": cfg.Runtime.KeeperBinary, "podwright-init": cfg.Runtime.InitBinary} {
		path, err := binary(configured, program)
		if err == nil {
			err = unix.Access(path, unix.X_OK)
		}
		if err != nil {
			return hostCheck{Name: name, State: stateMissing, Found: program + ": " + err.Error(), Do: "make install, or set it in the section [runtime]"}
		}
	}
	return ok(name, "podwright-keeper and podwright-init")
}

// checkSysctls looks at limits that many pods reach.
func checkSysctls() []hostCheck {
	var list []hostCheck
	for _, s := range []struct {
		name string
		min  uint64
		why  string
	}{
		{"kernel/pid_max", 65536, "processes of the whole node"},
		{"kernel/keys/root_maxkeys", 10000, "one session keyring for each container"},
		{"fs/inotify/max_user_instances", 512, "programs that watch files"},
		{"user/max_net_namespaces", 1000, "one network namespace for each pod"},
		{"user/max_pid_namespaces", 1000, "one for each container"}, {"user/max_mnt_namespaces", 1000, "one for each container"},
	} {
		raw, err := os.ReadFile("/proc/sys/" + s.name)
		value, bad := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64)
		if err != nil || bad != nil || value >= s.min {
			continue
		}
		name := strings.ReplaceAll(s.name, "/", ".")
		list = append(list, hostCheck{Name: "sysctl " + name, State: stateLimited, Found: fmt.Sprintf("%d: %s", value, s.why), Do: fmt.Sprintf("sysctl -w %s=%d", name, s.min)})
	}
	if len(list) == 0 {
		list = append(list, ok("sysctls", "limits of the kernel leave room for many pods"))
	}
	return list
}

// networkPatience is longer than the plugins get for telling whether they are ready.
const networkPatience = 8 * time.Second

func checkNetwork(ctx context.Context, cfg config.Config) hostCheck {
	const name = "pod network (CNI)"
	do := "a configuration in " + cfg.Network.ConfDir + " and its executables in " + strings.Join(cfg.Network.BinDirs, " or ") + "; pods on the host's network need none"
	dir, err := os.MkdirTemp("", "podwright-check-")
	if err != nil {
		return hostCheck{Name: name, State: stateLimited, Found: err.Error()}
	}
	defer os.RemoveAll(dir)
	network, err := cni.New(cni.Config{ConfDir: cfg.Network.ConfDir, BinDirs: cfg.Network.BinDirs, CacheDir: dir, PluginTimeout: time.Duration(cfg.Network.PluginTimeout)})
	if err == nil {
		err = network.Start(ctx)
	}
	if err != nil {
		return hostCheck{Name: name, State: stateLimited, Found: err.Error(), Do: do}
	}
	defer network.Close()
	for end := time.Now().Add(networkPatience); ; time.Sleep(50 * time.Millisecond) {
		err := network.Status()
		if err == nil {
			return ok(name, "the plugins of "+cfg.Network.ConfDir+" are ready")
		}
		if !strings.Contains(err.Error(), "are being asked") || time.Now().After(end) {
			return hostCheck{Name: name, State: stateLimited, Found: err.Error(), Do: do}
		}
	}
}
