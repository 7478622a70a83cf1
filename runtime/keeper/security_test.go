package keeper

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// unprivilegedClient connects to the socket in its first argument and gives 0 when it was answered.
func unprivilegedClient() int {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: os.Args[1]})
	}
	if err != nil {
		return 3
	}
	wire.Send(fd, &wire.Message{Seq: 1, Op: wire.OpList})
	if m, _, err := new(wire.Inbox).Receive(fd, new(wire.Scratch), 0); err != nil || m == nil {
		return 4
	}
	return 0
}

// Promise 8.
func TestOnlyRootIsAnswered(t *testing.T) {
	n := newNode(t)
	socket := n.config.RunDir + "/" + wire.SocketName
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: got %v, %v, want mode 0600", info, err)
	}
	// Its path opened to everybody: still nobody else is served.
	short, err := os.MkdirTemp("", "k") // on the socket's file system, and short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(short)
	os.Chmod(short, 0o755)
	os.Chmod(socket, 0o777)
	if err := os.Link(socket, short+"/s"); err != nil {
		t.Skipf("linking the socket to a short path: %v", err)
	}
	self, _ := os.Executable()
	program := short + "/client"
	if text, err := os.ReadFile(self); err != nil || os.WriteFile(program, text, 0o755) != nil {
		t.Fatal(err)
	}
	for uid, want := range map[uint32]int{0: 0, 65534: 4} {
		cmd := exec.Command(program)
		cmd.Args = []string{"socket-client", short + "/s"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("uid %d: got %d, want %d", uid, got, want)
		}
	}
}

func TestMalformedMessageEndsOnlyItsConnection(t *testing.T) {
	n := newNode(t)
	before := n.hello()
	for _, packet := range []string{"rubbish", "pw\x01\x00{}", "pw\x01\x00{\"op\":\"list\",\"roles\":[\"log\"]}"} {
		f, err := n.dial()
		if err != nil {
			t.Fatal(err)
		}
		fd := int(f.Fd())
		unix.SetNonblock(fd, false)
		unix.Write(fd, []byte(packet))
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
		if n, err := unix.Read(fd, make([]byte, 10)); n != 0 || err != nil {
			t.Errorf("%q: got %d bytes, %v, want end of file", packet, n, err)
		}
		f.Close()
	}
	for _, m := range []*wire.Message{
		{Op: "no such operation", ID: "c1"},
		{Op: wire.OpLaunch, ID: "c1"},
		{Op: wire.OpLaunch, ID: "../c1", Launch: &wire.Launch{}},
		{Op: wire.OpAdopt, ID: "c1", Child: &wire.Child{Process: wire.Process{PID: -1}}},
		{Op: wire.OpUpgrade},
	} {
		if _, _, err := n.call(n.ctx(), m, nil); err == nil || errors.Is(err, ErrDisconnected) {
			t.Errorf("%+v: got %v, want an answer with an error", m, err)
		}
	}
	if after := n.hello(); after != before || !n.Connected() {
		t.Errorf("got keeper %+v afterwards, want %+v", after, before)
	}
}

// Promises 6 and 7.
func TestKeeperSeesNothingOfTheHost(t *testing.T) {
	n := newNode(t)
	h := n.hello()
	for _, pid := range []int{h.KeeperPID, h.AnchorPID} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil {
			t.Fatal(err)
		}
		var points []string
		for line := range strings.Lines(string(text)) {
			points = append(points, strings.Fields(line)[4])
		}
		if got := strings.Join(points, " "); got != "/ /proc /sys" {
			t.Errorf("pid %d: got mounts %q, want / /proc /sys", pid, got)
		}
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", pid))
		if err != nil || len(entries) != 3 {
			t.Errorf("pid %d: got root %v, %v, want proc, r, sys", pid, entries, err)
		}
		environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if strings.Contains(string(environ), "HOME=") || strings.Contains(string(environ), "PATH=") {
			t.Errorf("pid %d inherited the daemon's environment: %q", pid, environ)
		}
		if session, _ := unix.Getsid(pid); session != h.AnchorPID {
			t.Errorf("pid %d: got session %d, want the anchor's %d", pid, session, h.AnchorPID)
		}
	}
	// Its program and init's are sealed.
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", h.KeeperPID, wire.InitFd), os.O_RDWR, 0)
	if err == nil {
		if _, err = f.Write([]byte("x")); err == nil {
			t.Error("init's program could be changed")
		}
		f.Close()
	}
}

// Children have nothing but their standard streams, whatever the keeper has open.
func TestDescriptorsAndGoroutinesDoNotGrow(t *testing.T) {
	n := newNode(t)
	h := n.hello()
	count := func(pid int, what string) int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", pid, what))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	round := func(i int) {
		id := fmt.Sprintf("c%d", i)
		w := n.sh(id, "echo x; kill -9 $$")
		if i%2 == 0 {
			w.Plan.Ops[0].Arg = "clone"
		}
		n.start(w)
		n.exit(id)
		if err := n.Forget(n.ctx(), id); err != nil {
			t.Fatal(err)
		}
		fail := n.workload("f", "error", "true")
		n.Launch(n.ctx(), fail.Launch)
		closeFiles(fail.files)
	}
	for i := range 10 {
		round(i)
	}
	self := count(os.Getpid(), "fd")
	keeperFds, anchorFds, threads := count(h.KeeperPID, "fd"), count(h.AnchorPID, "fd"), count(h.KeeperPID, "task")
	for i := range 40 {
		round(100 + i)
	}
	n.eventually("the same number of descriptors", func() bool {
		return count(h.KeeperPID, "fd") <= keeperFds && count(h.AnchorPID, "fd") <= anchorFds && count(os.Getpid(), "fd") <= self
	})
	if got := count(h.KeeperPID, "task"); got > threads+3 {
		t.Errorf("got %d threads, had %d", got, threads)
	}
}

func TestTwoClients(t *testing.T) {
	n := newNode(t)
	told := make(chan string, 10)
	config := n.config
	config.OnExit = func(id string, e wire.Exit) { told <- id }
	second, err := Connect(n.ctx(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	n.start(n.workload("c1", "exec", "true"))
	n.exit("c1")
	select {
	case id := <-told:
		if id != "c1" {
			t.Errorf("got %s, want c1", id)
		}
	case <-time.After(10 * time.Second):
		t.Error("the second client was not told")
	}
	// A third one that comes later learns of it, too.
	third, err := Connect(n.ctx(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	select {
	case <-told:
	case <-time.After(10 * time.Second):
		t.Error("the third client was not told")
	}
}

func TestConnectSaysWhyNoKeeperStarts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	log, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	none := func(string, wire.Exit) {}
	n := &node{t: t}
	for want, config := range map[string]Config{
		"no such file":      {RunDir: t.TempDir(), KeeperBinary: "/nonexistent", InitBinary: initBinary, OnExit: none, Log: log},
		"exec format error": {RunDir: t.TempDir(), KeeperBinary: "/etc/hostname", InitBinary: initBinary, OnExit: none, Log: log},
		"anchor ended":      {RunDir: t.TempDir(), KeeperBinary: "/bin/true", InitBinary: initBinary, OnExit: none, Log: log},
		"are required":      {},
	} {
		if _, err := Connect(n.ctx(), config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// What was started in a directory that is gone, for a demonstration or a test, goes by itself.
func TestKeeperWithoutDirectoryEnds(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	n := &node{t: t}
	dir := t.TempDir() + "/run"
	c, err := Connect(n.ctx(), Config{RunDir: dir, KeeperBinary: keeperBinary, InitBinary: initBinary, OnExit: func(string, wire.Exit) {}})
	if err != nil {
		t.Fatal(err)
	}
	h, err := c.Hello(n.ctx())
	if err != nil {
		t.Fatal(err)
	}
	n.Client, n.dir = c, t.TempDir()
	w := n.sh("c1", "exit 1") // exited, and nobody forgets it
	n.start(w)
	n.eventually("its exit", func() bool { _, exited, err := c.Exit(n.ctx(), "c1"); return exited && err == nil })
	os.RemoveAll(dir)
	c.Close()
	n.eventually("end of keeper and anchor", func() bool { c.anchorFate(); return !alive(h.KeeperPID) && !alive(h.AnchorPID) })
}

// Decision 7: where memfds may not be executed, programs come from a read-only file system that nobody can mount.
func TestReadOnlyCopyRunsAndCannotBeChanged(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes a file system")
	}
	f, err := readOnlyCopy("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("/proc/self/fd/3", "echo", "ran")
	cmd.Args[0], cmd.ExtraFiles = "busybox", []*os.File{f}
	if text, err := cmd.CombinedOutput(); err != nil || string(text) != "ran\n" {
		t.Errorf("got %q, %v, want it to run", text, err)
	}
	path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	if _, err := os.OpenFile(path, os.O_RDWR, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("open for writing: got %v, want EROFS", err)
	}
	if err := os.Chmod(path, 0o777); !errors.Is(err, unix.EROFS) {
		t.Errorf("chmod: got %v, want EROFS", err)
	}
}
