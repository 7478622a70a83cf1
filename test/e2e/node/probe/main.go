// Command probe is what the end-to-end tests run inside containers where busybox has no word for it: system calls
// that a filter may refuse, numbered lines, identities. It only reports; the tests judge.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: probe syscalls | id | keyring | lines INTERVAL FILE | alloc MIB | hold MIB | serve ADDRESS HOW | labels PATH... | queue NAME | winsize | trace PID | hunt TIME | ping")
		os.Exit(64)
	}
	var err error
	switch os.Args[1] {
	case "syscalls":
		syscalls()
	case "id":
		groups, groupsErr := unix.Getgroups()
		fmt.Printf("uid %d euid %d gid %d egid %d groups %v\n", unix.Getuid(), unix.Geteuid(), unix.Getgid(), unix.Getegid(), groups)
		err = groupsErr
	case "keyring":
		err = keyring()
	case "lines":
		err = lines(os.Args[2], os.Args[3])
	case "alloc":
		_, err = alloc(os.Args[2])
	case "hold":
		err = hold(os.Args[2])
	case "serve":
		err = serve(os.Args[2], os.Args[3])
	case "labels":
		labels(os.Args[2:])
	case "queue":
		err = queue(os.Args[2])
	case "winsize":
		err = windowSize()
	case "trace":
		err = trace(os.Args[2])
	case "hunt":
		err = hunt(os.Args[2])
	case "ping":
		err = ping()
	default:
		err = errors.New("unknown command " + os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

// syscalls tries each with arguments that a kernel without a filter refuses, if at all, for another reason than EPERM.
// Nothing of the machine is changed where they are allowed.
func syscalls() {
	report := func(name string, errno syscall.Errno) {
		text := "ok"
		if errno != 0 {
			text = unix.ErrnoName(errno)
		}
		fmt.Printf("%s %s\n", name, text)
	}
	raw := func(name string, nr uintptr, args ...uintptr) {
		args = append(args, 0, 0, 0, 0, 0)
		_, _, errno := unix.RawSyscall6(nr, args[0], args[1], args[2], args[3], args[4], 0)
		report(name, errno)
	}
	keyringID := unix.KEY_SPEC_SESSION_KEYRING
	raw("keyctl", unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, uintptr(keyringID), 0)
	raw("socket AF_ALG", unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
	raw("socket AF_VSOCK", unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	raw("io_uring_setup", unix.SYS_IO_URING_SETUP, 1, 0)
	raw("userfaultfd", unix.SYS_USERFAULTFD, 1) // UFFD_USER_MODE_ONLY needs no capability
	raw("bpf", unix.SYS_BPF, 9999, 0, 0)
	raw("clock_settime", unix.SYS_CLOCK_SETTIME, unix.CLOCK_REALTIME, 0)
	raw("init_module", unix.SYS_INIT_MODULE, 0, 0, 0)
	raw("newer than any profile", 4000)
	raw("getpid", unix.SYS_GETPID)
	report("unshare -U", inUserNamespace())
}

// inUserNamespace starts a program in a user namespace of its own: this process has several threads and may not
// unshare one for itself.
func inUserNamespace() syscall.Errno {
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
	var errno syscall.Errno
	if err := cmd.Run(); err != nil && !errors.As(err, &errno) {
		return unix.EIO
	}
	return errno
}

// keyring prints the session keyring's serial number.
func keyring() error {
	id, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	if err != nil {
		return err
	}
	description, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, id)
	label, _ := unix.KeyctlString(unix.KEYCTL_GET_SECURITY, id)
	fmt.Println(id, description, label)
	return err
}

// labels prints the SELinux label of each path.
func labels(paths []string) {
	for _, path := range paths {
		buffer := make([]byte, 256)
		n, err := unix.Lgetxattr(path, "security.selinux", buffer)
		if err != nil {
			fmt.Println(path, err)
			continue
		}
		fmt.Println(path, unix.ByteSliceToString(buffer[:n]))
	}
}

// queue makes a POSIX message queue.
func queue(name string) error {
	path, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(path)), unix.O_CREAT|unix.O_RDWR, 0o600, 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("mq_open %s: %w", name, errno)
	}
	return unix.Close(int(fd))
}

// lines writes "line 0", "line 1" ... each by one write, until SIGTERM, or until file is there, which ends it with code 7.
func lines(interval, file string) error {
	pause, err := time.ParseDuration(interval)
	if err != nil {
		return err
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGTERM)
	for i := 0; ; i++ {
		if _, err := fmt.Fprintf(os.Stdout, "line %d\n", i); err != nil {
			return err
		}
		if _, err := os.Stat(file); err == nil {
			os.Exit(7)
		}
		select {
		case <-asked:
			return nil
		case <-time.After(pause):
		}
	}
}

// alloc takes so many MiB and touches every page.
func alloc(mib string) ([][]byte, error) {
	n, err := strconv.Atoi(mib)
	if err != nil {
		return nil, err
	}
	var all [][]byte
	for range n {
		piece := make([]byte, 1<<20)
		for i := 0; i < len(piece); i += 4096 {
			piece[i] = 1
		}
		all = append(all, piece)
	}
	fmt.Println("allocated", len(all), "MiB")
	return all, nil
}

// hold keeps it until SIGTERM.
func hold(mib string) error {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGTERM)
	all, err := alloc(mib)
	if err == nil {
		<-asked
		fmt.Println("held", len(all), "MiB")
	}
	return err
}
