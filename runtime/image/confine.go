package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/runtime/seccomp"
	"github.com/podwright/podwright/runtime/sys"
)

// Confinement of unpackers
//
// An unpacker parses what anybody made, as root: layers have owners, device nodes and trusted attributes. Whoever takes it
// over shall have the layers, and nothing else of the node. Landlock leaves it the directories of blobs (to read) and of
// layers; the filter takes away every way past that: sockets (one in the file system leads to the daemon itself),
// descriptors of files by handle, other processes' memory, mounts, namespaces, keys, and what changes the kernel. Both are
// put on the thread that starts it, before it begins.

// forbidden are system calls that neither Go's runtime nor unpacking has a use for.
var forbidden = []string{
	"socket", "socketpair", "io_uring_setup", "open_by_handle_at",
	"ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "process_madvise", "kcmp",
	"mount", "umount", "umount2", "move_mount", "open_tree", "open_tree_attr", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
	"pivot_root", "chroot", "setns", "unshare",
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

var sayUnconfined sync.Once

// newUnpackers are for one pull.
func (d *disk) newUnpackers(command, reads []string) *unpackers {
	return &unpackers{
		command: command, lock: d.unpacking,
		reads: append([]string{filepath.Join(d.root, "content")}, reads...), writes: []string{filepath.Join(d.root, "layers", "snapshots")},
	}
}

// confine keeps the calling thread, and what it starts from now on, to what an unpacker needs. The thread must end with its
// goroutine.
func (u *unpackers) confine() error {
	filter, err := confinementFilter()
	if err != nil {
		return fmt.Errorf("confine unpacker: %w", err)
	}
	err = sys.RestrictFiles(sys.FileAccess{Read: append(u.command[:1:1], u.reads...), Write: u.writes}) // the kernel reads the program as the thread
	if errors.Is(err, errors.ErrUnsupported) {
		sayUnconfined.Do(func() { klog.InfoS("Layers are unpacked by processes that may open any file", "err", err) })
		err = nil
	}
	if err != nil {
		return fmt.Errorf("confine unpacker: %w", err)
	}
	program := unix.SockFprog{Len: uint16(filter.Instructions()), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter.Program[0]))}
	if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(filter.Flags), uintptr(unsafe.Pointer(&program))); errno != 0 {
		return fmt.Errorf("confine unpacker: %w", os.NewSyscallError("seccomp", errno))
	}
	return nil
}
