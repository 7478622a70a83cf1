package keeper

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// openRunDir opens the run directory. Sockets are bound and reached below it through its descriptor: a path may be
// longer than the 108 bytes of a socket's address.
func (l *link) openRunDir() (*os.File, error) {
	dir, err := os.OpenFile(l.config.RunDir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open keeper's directory: %w", err)
	}
	return dir, nil
}

func socketAddress(dir *os.File) *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + wire.SocketName}
}

// dial gives a connected socket. ENOENT and ECONNREFUSED mean that there is no keeper.
func (l *link) dial() (*os.File, error) {
	dir, err := l.openRunDir()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Connect(fd, socketAddress(dir)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect to %s: %w", l.config.RunDir+"/"+wire.SocketName, err)
	}
	return os.NewFile(uintptr(fd), "keeper"), nil
}

// startPair starts an anchor, which starts the keeper. Of several clients one does, the others get an error. The lock lies on the open directory, which the anchor and keeper share: it is held for as long as one of them lives.
func (l *link) startPair() error {
	dir, err := l.openRunDir()
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another keeper has, or is about to make, its socket in %s: %w", l.config.RunDir, err)
	}
	if fate := l.anchorFate(); fate != nil && !l.greeted { // the one before, which never had a keeper that answered
		return fate
	}
	listener, err := listen(dir)
	if err != nil {
		return permanentError{fmt.Errorf("listen for keeper: %w", err)}
	}
	defer listener.Close()
	binaries, err := l.programs()
	if err != nil {
		return permanentError{err}
	}
	defer closeFiles(binaries)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	log := l.config.Log
	if log == nil {
		log = os.Stderr
	}
	files := []*os.File{0: null, 1: log, 2: log, wire.PeerFd: null, wire.ListenerFd: listener, wire.RunDirFd: dir,
		wire.BinaryFd: binaries[0], wire.InitFd: binaries[1]}
	files = append(files, l.config.CgroupProcs...)
	process, err := os.StartProcess("/proc/self/fd/"+strconv.Itoa(wire.BinaryFd),
		[]string{"podwright-keeper", wire.ArgAnchor, strconv.Itoa(len(l.config.CgroupProcs))},
		&os.ProcAttr{
			Files: files,
			// Nothing of the daemon's environment reaches keeper or init.
			Env: []string{"GOMAXPROCS=1", "GOGC=25", "GOTRACEBACK=single", wire.JournalVariable()},
			// The unshared mount namespace is made private; the anchor then leaves the host's mounts altogether.
			Sys: &syscall.SysProcAttr{Setsid: true, Unshareflags: syscall.CLONE_NEWNS},
		})
	if err != nil {
		return permanentError{fmt.Errorf("start anchor: %w", err)}
	}
	l.anchorPID = process.Pid
	return process.Release() // it outlives us; anchorFate waits for it where it doesn't
}

// anchorFate reaps an anchor that we started and that has ended, and says how.
func (l *link) anchorFate() error {
	if l.anchorPID == 0 {
		return nil
	}
	var status unix.WaitStatus
	pid, err := unix.Wait4(l.anchorPID, &status, unix.WNOHANG, nil)
	if err == nil && pid == 0 {
		return nil
	}
	l.anchorPID = 0
	return permanentError{fmt.Errorf("anchor ended with wait status %#x, its log says why", int(status))}
}

func listen(dir *os.File) (*os.File, error) {
	err := unix.Unlinkat(int(dir.Fd()), wire.SocketName, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), wire.SocketName)
	// Before bind: the file is never there with another mode.
	err = errors.Join(unix.Fchmod(fd, 0o600), unix.Bind(fd, socketAddress(dir)), unix.Listen(fd, 128))
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// programs gives keeper and init as files that nobody can change, not even a container that reaches them through
// /proc/<pid>/exe (CVE-2019-5736), and that keep no file system of the host busy.
func (l *link) programs() ([]*os.File, error) {
	var files []*os.File
	for _, path := range []string{l.config.KeeperBinary, l.config.InitBinary} {
		f, err := sealedCopy(path)
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) { // vm.memfd_noexec=2, or an LSM
			f, err = readOnlyCopy(path)
		}
		if err != nil {
			closeFiles(files)
			return nil, fmt.Errorf("copy %s: %w", path, err)
		}
		files = append(files, f)
	}
	return files, nil
}

// programMode lets every user execute and none but root read: init runs as the root of a container's user namespace,
// and whoever may not read a program may not trace it either, nor look into its memory (execve(2), would_dump).
const programMode = 0o711

func sealedCopy(path string) (*os.File, error) {
	source, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	f, err := sealed("podwright", unix.MFD_EXEC, source)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(programMode); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// sealed gives a memfd with what source holds, which can't change any more. flag is MFD_EXEC or MFD_NOEXEC_SEAL.
func sealed(name string, flag int, source io.Reader) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|flag)
	if err == unix.EINVAL { // before 6.3, which has neither flag
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err = io.Copy(f, source); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("seal %s: %w", name, err)
	}
	return f, nil
}

// readOnlyCopy does without memfds: a tmpfs that is never attached anywhere, whose superblock is made read-only once
// the copy is there. A read-only bind would be no substitute: another mount of the same file system could write.
func readOnlyCopy(path string) (*os.File, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	context, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(context)
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, fmt.Errorf("make a tmpfs: %w", err)
	}
	mount, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	defer unix.Close(mount) // the open file keeps what it needs
	root := "/proc/self/fd/" + strconv.Itoa(mount)
	if err := os.WriteFile(root+"/program", text, programMode&^0o200); err != nil {
		return nil, err
	}
	err = unix.FsconfigSetFlag(context, "ro")
	if err == nil {
		err = unix.FsconfigReconfigure(context)
	}
	if err != nil {
		return nil, fmt.Errorf("make the tmpfs read-only: %w", err)
	}
	return os.Open(root + "/program")
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// undoTimeout bounds what is done for a launch nobody waits for any more.
const undoTimeout = 10 * time.Second
