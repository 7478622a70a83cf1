package spawn

import (
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"github.com/podwright/podwright/runtime/launch"
	"golang.org/x/sys/unix"
)

const busybox = "/bin/busybox"

// openBusybox gives the static program that the tests execute.
func openBusybox(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Open(busybox)
	if err != nil {
		t.Skipf("%s is missing (Debian package busybox-static)", busybox)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// run starts argv with the given descriptors and gives its exit status; the descriptors stay the caller's.
func run(t testing.TB, argv []string, fds ...int) syscall.WaitStatus {
	t.Helper()
	pid, pidfd, err := Start(&Command{Exe: int(openBusybox(t).Fd()), Argv: argv, Fds: fds, Cgroup: -1})
	if err != nil {
		t.Fatal(err)
	}
	return wait(t, pid, pidfd)
}

func wait(t testing.TB, pid, pidfd int) syscall.WaitStatus {
	t.Helper()
	defer syscall.Close(pidfd)
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		t.Fatal(err)
	}
	return status
}

// output is what the script prints, its exit status checked.
func output(t testing.TB, script string, extra ...int) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	status := run(t, []string{"sh", "-c", script}, append([]int{int(null.Fd()), int(w.Fd()), int(w.Fd())}, extra...)...)
	w.Close()
	text, err := io.ReadAll(r)
	if err != nil || status.ExitStatus() != 0 {
		t.Fatalf("%s: %v, status %#x, output %q", script, err, status, text)
	}
	return string(text)
}

func TestLayoutIsWhatTheAssemblyReads(t *testing.T) {
	var c rawCall
	var f rawFailure
	var p rawProgram
	for _, at := range []struct {
		name      string
		got, want uintptr
	}{
		{"call", unsafe.Sizeof(c), 96}, {"nr", unsafe.Offsetof(c.nr), 0}, {"args", unsafe.Offsetof(c.args), 8},
		{"store", unsafe.Offsetof(c.store), 56}, {"tolerate", unsafe.Offsetof(c.tolerate), 64},
		{"failure", unsafe.Offsetof(c.failure), 72}, {"skip", unsafe.Offsetof(c.skip), 80}, {"miss", unsafe.Offsetof(c.miss), 88}, {"message", unsafe.Offsetof(f.message), 0},
		{"length", unsafe.Offsetof(f.length), 8}, {"errno slot", unsafe.Offsetof(f.errno), 16},
		{"calls", unsafe.Offsetof(p.calls), 0}, {"count", unsafe.Offsetof(p.count), 8},
		{"status", unsafe.Offsetof(p.status), 16}, {"index", unsafe.Offsetof(p.index), 24},
		{"errno", unsafe.Offsetof(p.errno), 32}, {"image header", imageHeaderSize, 56}, {"program", unsafe.Offsetof(imageHeader{}.program), 16}, {"clone args", unsafe.Sizeof(cloneArgs{}), 88},
	} {
		if at.got != at.want {
			t.Errorf("%s: got %d, want %d", at.name, at.got, at.want)
		}
	}
}

func TestNumbersAreTheKernels(t *testing.T) {
	if sysWaitid != unix.SYS_WAITID || sysExecveat != unix.SYS_EXECVEAT || sysCloseRange != unix.SYS_CLOSE_RANGE {
		t.Errorf("waitid %d, execveat %d, close_range %d", sysWaitid, sysExecveat, sysCloseRange)
	}
	if clonePidfd != unix.CLONE_PIDFD || cloneClearHand != unix.CLONE_CLEAR_SIGHAND || cloneIntoCgroup != unix.CLONE_INTO_CGROUP {
		t.Error("clone flags differ from x/sys")
	}
}

func TestStartGivesExactlyTheListedDescriptors(t *testing.T) {
	got := output(t, "cd /proc/self/fd; echo *")
	// The shell itself opens the directory it lists as 3.
	if want := "0 1 2 3\n"; got != want && got != "0 1 2\n" {
		t.Errorf("got descriptors %q, want 0 1 2 and the listing's own", got)
	}
}

func TestStartShufflesEveryOverlapOfSourcesAndTargets(t *testing.T) {
	// Ten descriptors at low numbers, each a pipe that holds its own name, passed in random order.
	random := rand.New(rand.NewSource(1))
	exe := openBusybox(t)
	base := 3
	var files []*os.File
	for len(files) < 12 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		fmt.Fprintf(w, "pipe %d\n", r.Fd())
		w.Close()
		files = append(files, r)
	}
	for range 30 {
		order := random.Perm(len(files))
		c := &Command{Exe: int(exe.Fd()), Cgroup: -1}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		c.Fds = []int{int(w.Fd()), int(w.Fd()), int(w.Fd())}
		script := ""
		for i, k := range order {
			c.Fds = append(c.Fds, int(files[k].Fd()))
			script += fmt.Sprintf("readlink /proc/self/fd/%d;", base+i)
		}
		c.Argv = []string{"sh", "-c", script}
		pid, pidfd, err := Start(c)
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		got, _ := io.ReadAll(r)
		r.Close()
		wait(t, pid, pidfd)
		want := ""
		for _, k := range order {
			link, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", files[k].Fd()))
			want += link + "\n"
		}
		if string(got) != want {
			t.Fatalf("order %v: got %q, want %q", order, got, want)
		}
	}
}

func TestPlaceFdsForSourcesBelowTheirTargets(t *testing.T) {
	// Sources 2, 1, 0 and the executable at 1's target: every one of them is overwritten by another's copy.
	p := NewProgram(-1)
	c := &Command{Exe: 1, Fds: []int{2, 1, 0}}
	c.placeFds(p)
	table := map[uintptr]string{0: "a", 1: "exe", 2: "c"}
	next := uintptr(4)
	for i := range p.calls {
		k := &p.calls[i]
		switch k.nr {
		case syscall.SYS_FCNTL:
			table[next] = table[k.args[0]]
			p.calls[k.into].args[k.intoArg] = next
			next++
		case syscall.SYS_DUP3:
			if k.args[0] == k.args[1] {
				t.Fatalf("call %d: dup3 onto itself is EINVAL", i)
			}
			table[k.args[1]] = table[k.args[0]]
		}
	}
	if got, want := table[0]+table[1]+table[2]+table[3], "cexeaexe"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestStartedProcessHasEmptyMaskAndDefaultDispositions(t *testing.T) {
	got := output(t, "grep -E '^Sig(Blk|Cgt)|^NoNewPrivs' /proc/self/status")
	if want := "SigBlk:\t0000000000000000\nSigCgt:\t0000000000000000\nNoNewPrivs:\t0\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	var mask unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, nil, &mask); err != nil || mask.Val[0]&(1<<22) != 0 {
		t.Errorf("the caller's own mask after Start: %#x, %v", mask.Val[0], err)
	}
}

// What the workload has instead is initproc's (TestWorkloadHasTheUsualTimerSlack).
func TestOnlyInitIsWokenLate(t *testing.T) {
	if got := output(t, "cat /proc/self/timerslack_ns"); got != "10000000\n" {
		t.Errorf("got %q, want initSlack", got)
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	script := "test $(cat /proc/self/timerslack_ns) = 50000"
	pid, pidfd, err := Start(&Command{Exe: int(openBusybox(t).Fd()), Argv: []string{"sh", "-c", script}, Env: []string{}, Fds: []int{int(null.Fd())}, Cgroup: -1})
	if err != nil {
		t.Fatal(err)
	}
	if status := wait(t, pid, pidfd); status.ExitStatus() != 0 {
		t.Errorf("%s: status %#x", script, status)
	}
}

func TestStartNamesTheFailureAndLeavesNoChild(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, c := range []struct {
		name    string
		command Command
		step    string
		errno   syscall.Errno
	}{
		{"a directory as program", Command{Exe: int(dir.Fd()), Argv: []string{"x"}, Cgroup: -1}, "spawn", syscall.EACCES},
		{"a closed descriptor", Command{Exe: int(openBusybox(t).Fd()), Argv: []string{"x"}, Fds: []int{987}, Cgroup: -1}, "spawn", syscall.EBADF},
		{"a cgroup that is none", Command{Exe: int(openBusybox(t).Fd()), Argv: []string{"x"}, Cgroup: int(dir.Fd())}, "clone", syscall.EBADF},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := Start(&c.command)
			var step *launch.StepError
			if !errors.As(err, &step) || step.Step != c.step || step.Errno != c.errno {
				t.Errorf("got %v, want step %q with %v", err, c.step, c.errno)
			}
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.ECHILD {
				t.Errorf("a child is left: %d, %v", pid, err)
			}
		})
	}
}

func TestStartInNewPIDNamespaceIsItsInit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: CLONE_NEWPID")
	}
	r, w, _ := os.Pipe()
	defer r.Close()
	pid, pidfd, err := Start(&Command{Exe: int(openBusybox(t).Fd()), Argv: []string{"sh", "-c", "echo $$"},
		Fds: []int{int(w.Fd()), int(w.Fd()), int(w.Fd())}, Flags: syscall.CLONE_NEWPID, Cgroup: -1})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	got, _ := io.ReadAll(r)
	wait(t, pid, pidfd)
	if string(got) != "1\n" {
		t.Errorf("got pid %q, want 1", got)
	}
}

func TestStartIsBornInItsCgroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: cgroup v2")
	}
	group := ""
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(mount + "/cgroup.procs"); err == nil {
			group = fmt.Sprintf("%s/podwright-test-spawn-%d", mount, os.Getpid())
		}
	}
	if group == "" {
		t.Skip("needs a cgroup2 mount at /sys/fs/cgroup or /sys/fs/cgroup/unified")
	}
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(group)
	dir, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pid, pidfd, err := Start(&Command{Exe: int(openBusybox(t).Fd()), Argv: []string{"grep", "^0:", "/proc/self/cgroup"},
		Fds: []int{int(w.Fd()), int(w.Fd()), int(w.Fd())}, Cgroup: int(dir.Fd())})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	got, _ := io.ReadAll(r)
	wait(t, pid, pidfd)
	if want := fmt.Sprintf("/podwright-test-spawn-%d\n", os.Getpid()); !strings.HasSuffix(string(got), want) {
		t.Errorf("got %q, want it to end in %q", got, want)
	}
}

func TestStartFromManyThreadsUnderGarbageCollection(t *testing.T) {
	exe := openBusybox(t)
	stop := make(chan struct{})
	var collector, workers sync.WaitGroup
	collector.Go(func() { // ends with stop, the test waits for it
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	})
	for range 8 {
		workers.Go(func() {
			for i := range 25 {
				pid, pidfd, err := Start(&Command{Exe: int(exe.Fd()), Argv: []string{"sh", "-c", fmt.Sprintf("exit %d", i)}, Cgroup: -1})
				if err != nil {
					t.Error(err)
					return
				}
				if status := wait(t, pid, pidfd); status.ExitStatus() != i {
					t.Errorf("got status %#x, want exit %d", status, i)
				}
			}
		})
	}
	workers.Wait()
	close(stop)
	collector.Wait()
}

// cloned walks p in a clone and gives its exit code and what it wrote to the status socket.
func cloned(t *testing.T, build func(p *Program)) (int, []launch.Status) {
	t.Helper()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(pair[0])
	p := NewProgram(pair[1])
	build(p)
	pid, err := p.Clone(0, syscall.SIGCHLD)
	syscall.Close(pair[1])
	if err != nil {
		t.Fatal(err)
	}
	var statuses []launch.Status
	for {
		buffer := make([]byte, 8192)
		n, err := syscall.Read(pair[0], buffer)
		if n <= 0 || err != nil {
			break
		}
		s, err := launch.DecodeStatus(buffer[:n])
		if err != nil {
			t.Fatal(err)
		}
		statuses = append(statuses, s)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		t.Fatal(err)
	}
	return status.ExitStatus(), statuses
}

func TestCloneReportsTheFailingStep(t *testing.T) {
	code, statuses := cloned(t, func(p *Program) {
		p.Step("fine", "")
		p.Call(syscall.SYS_GETPID)
		p.Step("enter", "/nowhere at all")
		p.Call(syscall.SYS_CHDIR, p.Text("/nowhere at all"))
		p.Step("never", "")
		p.Call(syscall.SYS_EXIT_GROUP, 77)
	})
	want := launch.Status{Kind: launch.StatusError, Step: "enter", Path: "/nowhere at all", Errno: syscall.ENOENT}
	if code != 1 || len(statuses) != 1 || statuses[0] != want {
		t.Errorf("got exit %d and %+v, want 1 and %+v", code, statuses, want)
	}
}

func TestCloneEndsQuietlyAfterTheLastCall(t *testing.T) {
	code, statuses := cloned(t, func(p *Program) { p.Call(syscall.SYS_GETPID) })
	if code != 0 || len(statuses) != 0 {
		t.Errorf("got exit %d and %+v, want 0 and nothing", code, statuses)
	}
}

func TestCloneFeedsAResultIntoALaterCall(t *testing.T) {
	code, statuses := cloned(t, func(p *Program) {
		dup := p.Call(syscall.SYS_FCNTL, 0, syscall.F_DUPFD_CLOEXEC, 57)
		end := p.Call(syscall.SYS_EXIT_GROUP, 0)
		p.Feed(dup, end, 0)
	})
	if code != 57 || len(statuses) != 0 {
		t.Errorf("got exit %d and %+v, want the descriptor's number 57", code, statuses)
	}
}

func TestForkPartsParentFromChild(t *testing.T) {
	code, statuses := cloned(t, func(p *Program) {
		// The fork of the fork's child: as with CLONE_PARENT, both report, and the parent knows the child's id.
		report := (&launch.Status{Kind: launch.StatusChild}).Encode()
		fork := p.Fork(0)
		p.StoreResult(fork, p.Bytes(report)+launch.StatusPidOffset)
		p.Step("child", "")
		p.Call(syscall.SYS_CHDIR, p.Text("/nowhere"))
		p.EndChild(fork)
		p.Call(syscall.SYS_WRITE, uintptr(p.status), p.Bytes(report), uintptr(len(report)))
		p.Call(syscall.SYS_EXIT_GROUP, 9)
	})
	if code != 9 || len(statuses) != 2 {
		t.Fatalf("got exit %d and %+v, want 9 and two messages", code, statuses)
	}
	for _, s := range statuses {
		if s.Kind == launch.StatusChild && s.Pid <= 1 || s.Kind == launch.StatusError && (s.Step != "child" || s.Errno != syscall.ENOENT) {
			t.Errorf("got %+v", s)
		}
	}
}

func TestExpectComparesWhatIsMasked(t *testing.T) {
	for _, c := range []struct {
		mask, want uintptr
		code       int
	}{{0xff, 0x34, 7}, {^uintptr(0), 0x1234, 7}, {0xff, 0x1234, 1}, {0xff00, 0x34, 1}} {
		code, statuses := cloned(t, func(p *Program) {
			p.Step("compare", "it")
			p.Expect(p.Words(0x1234), c.mask, c.want, syscall.EXDEV)
			p.Call(syscall.SYS_EXIT_GROUP, 7)
		})
		if code != c.code || (code == 1) != (len(statuses) == 1 && statuses[0].Errno == syscall.EXDEV) {
			t.Errorf("%+v: got exit %d and %+v", c, code, statuses)
		}
	}
}

// TestUnlessIsForWhatFailedOrWasPassedOver enters a directory, at the first or the second try.
func TestUnlessIsForWhatFailedOrWasPassedOver(t *testing.T) {
	for _, c := range []struct {
		path string
		code int
	}{{"/", 5}, {"/nowhere", 6}} {
		code, statuses := cloned(t, func(p *Program) {
			enter := p.Call(syscall.SYS_CHDIR, p.Text(c.path))
			where := p.Call(syscall.SYS_GETCWD, p.Bytes(make([]byte, 64)), 64)
			p.Tolerate(enter, syscall.ENOENT)
			p.EndMiss(enter)
			unless := p.Unless(where)
			p.Call(syscall.SYS_EXIT_GROUP, 6)
			p.EndUnless(unless)
			p.Call(syscall.SYS_EXIT_GROUP, 5)
		})
		if code != c.code || len(statuses) != 0 {
			t.Errorf("%s: got exit %d and %+v, want %d", c.path, code, statuses, c.code)
		}
	}
}

func TestExecuteSearchesAsExecvpDoes(t *testing.T) {
	dir := t.TempDir()
	noExec, broken := dir+"/noexec", dir+"/broken"
	os.WriteFile(noExec, []byte("#!/bin/sh\n"), 0o644)
	os.WriteFile(broken, []byte("neither"), 0o755)
	for _, c := range []struct {
		name       string
		candidates []string
		code       int
		want       []launch.Status
	}{
		{"the second exists", []string{dir + "/absent", busybox}, 5, nil},
		{"one may not be executed, the next may", []string{noExec, busybox}, 5, nil},
		{"none exists", []string{dir + "/absent", noExec + "/below"}, 1, []launch.Status{{Kind: launch.StatusError, Step: "exec", Path: "name", Errno: syscall.ENOTDIR}}},
		{"EACCES outweighs ENOENT", []string{noExec, dir + "/absent"}, 1, []launch.Status{{Kind: launch.StatusError, Step: "exec", Path: "name", Errno: syscall.EACCES}}},
		{"a file that is no program ends the search", []string{broken, busybox}, 1, []launch.Status{{Kind: launch.StatusError, Step: "exec", Path: broken, Errno: syscall.ENOEXEC}}},
		{"no candidates", nil, 1, []launch.Status{{Kind: launch.StatusError, Step: "exec", Path: "name", Errno: syscall.ENOENT}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, statuses := cloned(t, func(p *Program) {
				p.Execute("exec", "name", c.candidates, []string{"sh", "-c", "exit $N"}, []string{"N=5"})
			})
			if code != c.code || fmt.Sprint(statuses) != fmt.Sprint(c.want) {
				t.Errorf("got exit %d and %+v, want %d and %+v", code, statuses, c.code, c.want)
			}
		})
	}
}

func TestStartKeepsArgumentsWhole(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	if status := run(t, []string{"sh", "-c", `test ${#0} = 100000 && test "$1" = "" && test "$2" = "a b"`, long, "", "a b"}); status.ExitStatus() != 0 {
		t.Errorf("arguments were changed: status %#x", status)
	}
}

func BenchmarkStart(b *testing.B) {
	exe := openBusybox(b)
	for b.Loop() {
		pid, pidfd, err := Start(&Command{Exe: int(exe.Fd()), Argv: []string{"true"}, Cgroup: -1})
		if err != nil {
			b.Fatal(err)
		}
		wait(b, pid, pidfd)
	}
}
