package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/kerneltest"
)

// What the server below is asked (linux/fuse.h); the rest it does not know.
const (
	fuseLookup, fuseForget, fuseGetattr, fuseInit = 1, 2, 3, 26
	fuseInterrupt, fuseBatchForget                = 36, 42
	fuseHeader                                    = 40 // bytes before a request's own
)

// stuckFileSystem has one file, "stuck", of which the server takes every question and answers none, until the returned
// function is called. Whoever waits for an answer to a question that was taken can't be killed (request_wait_answer in
// fs/fuse/dev.c), as with a disk or server that is dead: a signal only makes its state D. asked says that somebody waits.
func stuckFileSystem(t *testing.T, dir string) (asked <-chan struct{}, release func()) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("FUSE is missing: %v", err)
	}
	if err := unix.Mount("stuck", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)); err != nil {
		unix.Close(fd)
		t.Fatal(err)
	}
	device := os.NewFile(uintptr(fd), "fuse")
	questions := make(chan struct{}, 16)
	var serving sync.WaitGroup
	// Owned by the test; ends when release closes the device, and release waits for it.
	serving.Go(func() { serveStuck(device, questions) })
	return questions, sync.OnceFunc(func() {
		unix.Unmount(dir, unix.MNT_DETACH)
		device.Close() // ends the connection: what waits gets an error
		serving.Wait()
	})
}

func serveStuck(device *os.File, asked chan<- struct{}) {
	request := make([]byte, 1<<16)
	for {
		n, err := device.Read(request)
		if err != nil || n < fuseHeader {
			return
		}
		order := binary.LittleEndian
		var answer []byte
		failed := uint32(0)
		switch order.Uint32(request[4:]) {
		case fuseForget, fuseBatchForget, fuseInterrupt:
			continue // nobody waits for an answer
		case fuseLookup:
			if strings.HasPrefix(string(request[fuseHeader:n]), "stuck\x00") {
				select {
				case asked <- struct{}{}:
				default:
				}
				continue // somebody does, for good
			}
			failed = uint32(unix.ENOENT)
		case fuseInit: // fuse_init_out: version 7.31, and the least that may be written at once
			answer = make([]byte, 64)
			order.PutUint32(answer, 7)
			order.PutUint32(answer[4:], 31)
			order.PutUint32(answer[20:], 4096)
		case fuseGetattr: // fuse_attr_out: inode 1, a directory with two links
			answer = make([]byte, 104)
			order.PutUint64(answer[16:], 1)
			order.PutUint32(answer[76:], unix.S_IFDIR|0o755)
			order.PutUint32(answer[80:], 2)
		default:
			failed = uint32(unix.ENOSYS)
		}
		reply := make([]byte, 16, 16+len(answer))
		order.PutUint32(reply, uint32(16+len(answer)))
		order.PutUint32(reply[4:], -failed)
		copy(reply[8:], request[8:16]) // the request's number
		if _, err := device.Write(append(reply, answer...)); err != nil {
			return
		}
	}
}

// stuckContainer runs a program that waits for the stuck file system and can't be killed.
func stuckContainer(t *testing.T, p *pod) (c *container, pid int, release func()) {
	t.Helper()
	dir := t.TempDir()
	asked, release := stuckFileSystem(t, dir)
	t.Cleanup(release)
	c = p.start(onFUSE(dir), "cat", "/fs/stuck")
	select {
	case <-asked:
	case <-time.After(10 * time.Second):
		t.Fatal("the container's program does not wait for the file system")
	}
	return c, c.info().PID, release
}

// onFUSE gives a container the file system at /fs, from which SELinux's policy keeps ordinary ones.
func onFUSE(dir string) func(*criv1.ContainerConfig) {
	return both(outsideModules, func(c *criv1.ContainerConfig) { c.Mounts = []*criv1.Mount{bind(dir, "/fs")} })
}

func wantUnkillable(t *testing.T, pid int) {
	t.Helper()
	if process, err := kerneltest.ReadProcess(pid); err != nil || process.State != 'D' {
		t.Errorf("process %d, which was killed: got state %c, %v, want D", pid, process.State, err)
	}
}

// StopContainer and RemoveContainer of what can't be killed fail at their deadline and say which process it is; the
// container stays running, nobody else notices, retries leave nothing behind, and its end is an end like any other.
func TestProcessThatCannotBeKilledB25(t *testing.T) {
	const address = "127.0.0.1:9421"
	n := ownNode(t, options{config: "[metrics]\naddress = \"" + address + "\"\n"})
	n.watch(t)
	p := n.pod(t)
	c, pid, release := stuckContainer(t, p)
	other := p.sleeper(nil)
	goroutines, files := gauges(t, address)
	began := time.Now()
	calls := map[string]func() error{}
	for i := range 8 {
		calls[fmt.Sprintf("stop %d", i)] = func() error {
			_, err := n.StopContainer(ctx(t), &criv1.StopContainerRequest{ContainerId: c.id, Timeout: int64(i % 2)})
			return err
		}
	}
	calls["remove"] = func() error {
		_, err := n.RemoveContainer(ctx(t), &criv1.RemoveContainerRequest{ContainerId: c.id})
		return err
	}
	var wait sync.WaitGroup
	for name, call := range calls {
		wait.Go(func() {
			err := call()
			wantError(t, err, codes.DeadlineExceeded, c.id, fmt.Sprint(pid), "still running")
			if took := time.Since(began); took > patient(40*time.Second) { // its own 16 s, and the removal's before it
				t.Errorf("%s took %s", name, took)
			}
		})
	}
	eventually(t, 10*time.Second, "operations that wait", func() bool {
		out, err := n.podwright("ops")
		return err == nil && strings.Contains(out, fmt.Sprint(pid))
	})
	other.exec("true")
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING {
		t.Errorf("while it is stopped: got %v, want it running", s.GetState())
	}
	wait.Wait()
	wantUnkillable(t, pid)
	if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after the stops: got %v, want it running", s.GetState())
	}
	eventually(t, 20*time.Second, "return to the goroutines and descriptors of before", func() bool {
		nowGoroutines, nowFiles := gauges(t, address)
		return nowGoroutines <= goroutines+3 && nowFiles <= files
	})
	other.stop(0)
	release()
	if s := c.wait(20 * time.Second); s.GetExitCode() != 137 && s.GetExitCode() != 1 {
		t.Errorf("once the file system is gone: got %v, want its end", s)
	}
	c.remove()
}

// The pod of such a container can't be stopped, and says so; it can once the process is gone.
func TestPodWithAProcessThatCannotBeKilledB25(t *testing.T) {
	n := onNode(t)
	p := n.pod(t)
	c, pid, release := stuckContainer(t, p)
	_, err := n.StopPodSandbox(ctx(t), &criv1.StopPodSandboxRequest{PodSandboxId: p.id})
	wantError(t, err, codes.DeadlineExceeded, p.id, c.id, fmt.Sprint(pid))
	wantUnkillable(t, pid)
	if state := n.sandboxState(t, p.id); state != sandboxNotReady {
		t.Errorf("sandbox: got %v, want not ready", state)
	}
	release()
	c.wait(20 * time.Second)
}

// A command that can't be killed ends its call at the deadline all the same.
func TestCommandThatCannotBeKilledEndsItsCallB25(t *testing.T) {
	const address = "127.0.0.1:9421"
	n := ownNode(t, options{config: "[metrics]\naddress = \"" + address + "\"\n"})
	n.watch(t)
	p := n.pod(t)
	dir := t.TempDir()
	_, release := stuckFileSystem(t, dir)
	defer release()
	c := p.sleeper(onFUSE(dir))
	goroutines, files := gauges(t, address)
	for range 3 {
		begin := time.Now()
		_, err := c.tryExec(1, "cat", "/fs/stuck")
		wantError(t, err, codes.DeadlineExceeded, "timed out")
		if took := time.Since(begin); took > patient(10*time.Second) {
			t.Errorf("the call took %s", took)
		}
	}
	eventually(t, 20*time.Second, "return to the goroutines and descriptors of before", func() bool {
		nowGoroutines, nowFiles := gauges(t, address)
		return nowGoroutines <= goroutines+3 && nowFiles <= files
	})
	if got := c.exec("echo", "lively"); got != "lively\n" {
		t.Errorf("another command: got %q", got)
	}
	release()
}

// A container that somebody froze is stopped all the same; on cgroup v1 a frozen process does not die of SIGKILL.
func TestFrozenContainerIsStopped(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.sleeper(nil)
	group := c.info().CgroupPath
	err := os.WriteFile("/sys/fs/cgroup/freezer"+group+"/freezer.state", []byte("FROZEN"), 0)
	if errors.Is(err, os.ErrNotExist) {
		err = os.WriteFile("/sys/fs/cgroup"+group+"/cgroup.freeze", []byte("1"), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	c.stop(1)
	if took := time.Since(begin); took > patient(10*time.Second) {
		t.Errorf("the stop took %s", took)
	}
	if s := c.status(); s.GetExitCode() != 137 && s.GetExitCode() != 143 { // the stop signal, too, came with the thaw
		t.Errorf("got %v, want its end by a signal", s)
	}
}
