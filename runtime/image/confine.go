package image

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/seccomp"
	"github.com/podwright/podwright/runtime/sys"
)

// Confinement of unpackers
//
// An unpacker parses what anybody made, as root: layers have owners, device nodes and trusted attributes. Whoever takes it
// over shall have that one layer, and nothing else of the node. It is born into namespaces of its own, of mounts, processes,
// IPC and names, with no more capabilities than unpacking takes. Before it reads a byte of the layer it makes the layer's
// directory its root, on which no device can be opened and nothing executed (enterLayer), and takes from itself the system
// calls that lead past that (refuse): sockets, files by handle, mounts, namespaces, keys, and what changes the kernel or a
// file system as a whole.

// unpackerCapabilities are for owners, modes, device nodes and attributes of a layer's files; CAP_SYS_ADMIN is for the
// trusted ones, and for the unpacker's own root.
var unpackerCapabilities = []int{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_MKNOD, unix.CAP_SETFCAP, unix.CAP_SYS_ADMIN,
}

// unpackerNamespaces are made with the process.
func unpackerNamespaces() *syscall.SysProcAttr {
	// The mounts of a namespace that was unshared there are made private before anything is executed.
	return &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS, Unshareflags: unix.CLONE_NEWNS}
}

// forbidden are system calls that neither Go's runtime nor unpacking has a use for.
var forbidden = []string{
	"socket", "socketpair", "io_uring_setup", "open_by_handle_at", "ioctl",
	"ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "process_madvise", "kcmp",
	"mount", "umount", "umount2", "move_mount", "open_tree", "open_tree_attr", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
	"pivot_root", "chroot", "setns", "unshare", "execve", "execveat",
	"bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key",
	"init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff", "acct", "quotactl",
	"quotactl_fd", "iopl", "ioperm", "syslog", "lookup_dcookie",
	"settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname",
}

// confinementFilter is compiled once, for all.
var confinementFilter = sync.OnceValues(func() (*seccomp.Filter, error) {
	compiler, err := seccomp.New(seccomp.Config{})
	if err != nil {
		return nil, err
	}
	denied, absent := uint(unix.EPERM), uint(unix.ENOSYS)
	rules := []specs.LinuxSyscall{
		{Names: forbidden, Action: specs.ActErrno, ErrnoRet: &denied},
		{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &absent}, // its flags are in memory; who uses it goes back to clone
	}
	for _, namespace := range []uint64{
		unix.CLONE_NEWNS, unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWNET, unix.CLONE_NEWIPC, unix.CLONE_NEWUTS, unix.CLONE_NEWCGROUP,
	} {
		made := specs.LinuxSeccompArg{Index: 0, Value: namespace, ValueTwo: namespace, Op: specs.OpMaskedEqual}
		rules = append(rules, specs.LinuxSyscall{Names: []string{"clone"}, Action: specs.ActErrno, ErrnoRet: &denied, Args: []specs.LinuxSeccompArg{made}})
	}
	return compiler.Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: rules})
})

// enterLayer makes a directory the root of this process, which has a mount namespace of its own. Nothing of the node is
// mounted there afterwards.
func enterLayer(dir string) error {
	// Nothing of what follows may reach the node, also if the namespace came with shared mounts.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return &os.PathError{Op: "make private", Path: "/", Err: err}
	}
	root, err := sys.OpenTree(nil, dir, unix.OPEN_TREE_CLONE)
	if err != nil {
		return err
	}
	defer root.Close()
	closed := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC}
	if err := sys.MountSetattr(root, false, closed); err != nil {
		return err
	}
	fd := int(root.Fd())
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: dir, Err: err}
	}
	// The mount is above "/", and the root still below: the new one is reached by its descriptor only.
	if err := unix.Fchdir(fd); err != nil {
		return &os.PathError{Op: "fchdir", Path: dir, Err: err}
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return &os.PathError{Op: "pivot_root", Path: dir, Err: err}
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return &os.PathError{Op: "unmount", Path: "/", Err: err}
	}
	return os.NewSyscallError("chdir", unix.Chdir("/"))
}

// refuse puts the filter on all threads of this process.
func refuse(filter *seccomp.Filter) error {
	if filter == nil || filter.Instructions() == 0 {
		return errors.New("no filter of system calls")
	}
	program := unix.SockFprog{Len: uint16(filter.Instructions()), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter.Program[0]))}
	flags := uintptr(filter.Flags) | unix.SECCOMP_FILTER_FLAG_TSYNC
	thread, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	if thread != 0 {
		return fmt.Errorf("thread %d has another filter of system calls", thread)
	}
	return nil
}
