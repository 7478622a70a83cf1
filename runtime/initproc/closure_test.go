package initproc

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// allowed is everything init may be made of besides what package runtime itself needs. A package costs pages to
// fault in and variables to initialise on every exec probe, and is code that runs with all of the node's
// privileges inside a container.
var allowed = map[string]string{
	"errors":  "what launch reports with",
	"strconv": "decimal numbers of a plan",
	"strings": "paths and PATH", "unicode": "by strings", "unicode/utf8": "by strconv", "io": "by strings",
	"syscall": "the raw calls", "internal/oserror": "by syscall", "sync": "by syscall", "sync/atomic": "by sync",
	"iter": "by strings", "slices": "by syscall", "cmp": "by slices",
	"internal/unsafeheader": "by reflectlite", "internal/sync": "by sync", "internal/synctest": "by sync", "internal/reflectlite": "by errors",
}

func TestDependencyClosure(t *testing.T) {
	runtimes := map[string]bool{}
	for _, p := range deps(t, "runtime") {
		runtimes[p] = true
	}
	const ours = "github.com/podwright/podwright/"
	for _, p := range deps(t, "../../cmd/podwright-init") {
		switch strings.TrimPrefix(p, ours) {
		case "cmd/podwright-init", "runtime/initproc", "runtime/launch", "runtime/spawn":
			continue
		}
		if !runtimes[p] && allowed[p] == "" {
			t.Errorf("podwright-init depends on %s, which is on no list of what it may", p)
		}
	}
}

func deps(t *testing.T, pkg string) []string {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", pkg).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

func TestInitCompilesForArm64(t *testing.T) {
	build := exec.Command("go", "vet", "../../cmd/podwright-init", ".", "../spawn")
	build.Env = append(build.Environ(), "GOARCH=arm64", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestConstantsAreTheKernels(t *testing.T) {
	for name, c := range map[string][2]uint64{
		"open_tree": {sysOpenTree, unix.SYS_OPEN_TREE}, "move_mount": {sysMoveMount, unix.SYS_MOVE_MOUNT}, "fsopen": {sysFsopen, unix.SYS_FSOPEN},
		"fsconfig": {sysFsconfig, unix.SYS_FSCONFIG}, "fsmount": {sysFsmount, unix.SYS_FSMOUNT}, "close_range": {sysCloseRange, unix.SYS_CLOSE_RANGE},
		"openat2": {sysOpenat2, unix.SYS_OPENAT2}, "mount_setattr": {sysMountSetattr, unix.SYS_MOUNT_SETATTR}, "setns": {sysSetns, unix.SYS_SETNS},
		"seccomp": {sysSeccomp, unix.SYS_SECCOMP}, "statx": {sysStatx, unix.SYS_STATX}, "execveat": {sysExecveat, unix.SYS_EXECVEAT},
		"O_PATH": {oPath, unix.O_PATH}, "AT_EMPTY_PATH": {atEmptyPath, unix.AT_EMPTY_PATH}, "AT_SYMLINK_NOFOLLOW": {atNoFollow, unix.AT_SYMLINK_NOFOLLOW},
		"AT_RECURSIVE": {atRecursive, unix.AT_RECURSIVE}, "RESOLVE_NO_XDEV": {resolveNoXdev, unix.RESOLVE_NO_XDEV},
		"RESOLVE_NO_MAGICLINKS": {resolveNoMagiclinks, unix.RESOLVE_NO_MAGICLINKS}, "RESOLVE_NO_SYMLINKS": {resolveNoSymlinks, unix.RESOLVE_NO_SYMLINKS},
		"RESOLVE_BENEATH": {resolveBeneath, unix.RESOLVE_BENEATH}, "RESOLVE_IN_ROOT": {resolveInRoot, unix.RESOLVE_IN_ROOT},
		"FSCONFIG_SET_FLAG": {fsconfigSetFlag, unix.FSCONFIG_SET_FLAG}, "FSCONFIG_SET_STRING": {fsconfigSetString, unix.FSCONFIG_SET_STRING},
		"FSCONFIG_SET_FD": {fsconfigSetFd, unix.FSCONFIG_SET_FD}, "FSCONFIG_CMD_CREATE": {fsconfigCreate, unix.FSCONFIG_CMD_CREATE},
		"FSOPEN_CLOEXEC": {fsopenCloexec, unix.FSOPEN_CLOEXEC}, "FSMOUNT_CLOEXEC": {fsmountCloexec, unix.FSMOUNT_CLOEXEC},
		"OPEN_TREE_CLONE": {openTreeClone, unix.OPEN_TREE_CLONE}, "OPEN_TREE_CLOEXEC": {openTreeCloexec, unix.OPEN_TREE_CLOEXEC},
		"MOVE_MOUNT_F_EMPTY_PATH": {moveFromEmpty, unix.MOVE_MOUNT_F_EMPTY_PATH}, "MOVE_MOUNT_T_EMPTY_PATH": {moveToEmpty, unix.MOVE_MOUNT_T_EMPTY_PATH},
		"MOUNT_ATTR_RDONLY": {mountAttrReadonly, unix.MOUNT_ATTR_RDONLY}, "MOUNT_ATTR_NOSUID": {mountAttrNosuid, unix.MOUNT_ATTR_NOSUID},
		"MOUNT_ATTR_NODEV": {mountAttrNodev, unix.MOUNT_ATTR_NODEV}, "MOUNT_ATTR_NOEXEC": {mountAttrNoexec, unix.MOUNT_ATTR_NOEXEC},
		"STATX_BASIC_STATS": {statxBasic, unix.STATX_BASIC_STATS}, "STATX_MNT_ID": {statxMountID, unix.STATX_MNT_ID},
		"CLOSE_RANGE_CLOEXEC": {closeRangeCloexec, unix.CLOSE_RANGE_CLOEXEC}, "PROC_SUPER_MAGIC": {procMagic, unix.PROC_SUPER_MAGIC},
		"DEVPTS_SUPER_MAGIC": {devptsMagic, unix.DEVPTS_SUPER_MAGIC}, "__WALL": {waitAll, unix.WALL}, "CLONE_PARENT": {cloneFlagParent, unix.CLONE_PARENT},
		"CLONE_FILES": {cloneFlagFiles, unix.CLONE_FILES}, "TIOCSCTTY": {ioctlControllingTty, unix.TIOCSCTTY}, "TIOCSPTLCK": {ioctlLockPty, unix.TIOCSPTLCK},
		"TIOCGPTPEER": {ioctlOpenPeer, unix.TIOCGPTPEER}, "KEYCTL_JOIN_SESSION_KEYRING": {keyctlJoinSession, unix.KEYCTL_JOIN_SESSION_KEYRING},
		"_LINUX_CAPABILITY_VERSION_3": {capVersion3, unix.LINUX_CAPABILITY_VERSION_3}, "PR_CAPBSET_READ": {prCapbsetRead, unix.PR_CAPBSET_READ},
		"PR_CAPBSET_DROP": {prCapbsetDrop, unix.PR_CAPBSET_DROP}, "PR_SET_KEEPCAPS": {prSetKeepCaps, unix.PR_SET_KEEPCAPS}, "PR_CAP_AMBIENT": {prCapAmbient, unix.PR_CAP_AMBIENT},
		"PR_CAP_AMBIENT_RAISE": {prCapAmbientRaise, unix.PR_CAP_AMBIENT_RAISE}, "PR_CAP_AMBIENT_CLEAR_ALL": {prCapAmbientClear, unix.PR_CAP_AMBIENT_CLEAR_ALL},
		"PR_SET_NO_NEW_PRIVS": {prNoNewPrivs, unix.PR_SET_NO_NEW_PRIVS}, "SECCOMP_SET_MODE_FILTER": {seccompSetFilter, unix.SECCOMP_SET_MODE_FILTER},
		"SIG_SETMASK": {setMask, unix.SIG_SETMASK},
		"mkdev":       {device(300, 70000), unix.Mkdev(300, 70000)}, "/dev/null": {nullDevice, unix.Mkdev(1, 3)}, "/dev/ptmx": {ptmxDevice, unix.Mkdev(5, 2)},
	} {
		if c[0] != c[1] {
			t.Errorf("%s: got %#x, want %#x", name, c[0], c[1])
		}
	}
	var st syscall.Stat_t
	if err := syscall.Stat("/dev/null", &st); err != nil || st.Rdev != nullDevice {
		t.Errorf("/dev/null is %#x, %v", st.Rdev, err)
	}
}
