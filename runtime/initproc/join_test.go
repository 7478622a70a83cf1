package initproc

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/podwright/podwright/runtime/launch"
	"golang.org/x/sys/unix"
)

// running is a container that sleeps, its pidfd as a file for a plan's table.
type running struct {
	*launched
	file *os.File
}

func sleeping(t testing.TB, plan *launch.Plan, table []*os.File) *running {
	t.Helper()
	l := start(t, plan, table, plan.Ops[0].Code != launch.OpSetns)
	if l.failed != nil {
		t.Fatal(l.failed)
	}
	fd, err := unix.Dup(l.pidfd)
	if err != nil {
		t.Fatal(err)
	}
	unix.CloseOnExec(fd)
	r := &running{l, os.NewFile(uintptr(fd), "pidfd")}
	t.Cleanup(func() {
		unix.PidfdSendSignal(l.pidfd, unix.SIGKILL, nil, 0)
		l.finish(t)
		r.file.Close()
	})
	return r
}

const joinAll = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// execInto is the plan of an exec in a running container (table entry 0 is its pidfd).
func execInto(uid uint64, late []launch.Op, args ...string) *launch.Plan {
	ops := slices.Concat([]launch.Op{{Code: launch.OpSetns, Step: "join container", Fd: 0, Flags: joinAll}}, opsSession(), opsIdentity(uid, defaultCaps, 0), late, []launch.Op{opExec})
	return &launch.Plan{Ops: ops, Args: args, Env: []string{"PATH=/bin"}}
}

func TestExecIntoAContainer(t *testing.T) { eachWay(t, execIntoAContainer) } // B28

func execIntoAContainer(t *testing.T) {
	newLab(t)
	_, table := oneRoot(t)
	c := sleeping(t, container("echo marker > /tmp/marker; echo ready; sleep 1000"), table)
	bufio.NewReader(c.output).ReadString('\n')

	l := start(t, execInto(1000, nil, "sh", "-c", "cat /tmp/marker; readlink /proc/1/exe /proc/$$/ns/mnt; tail -n1 /proc/1/cmdline >/dev/null; echo $$; ls /proc/self/fd; grep -E '^(Uid|PPid|CapEff|CapBnd|SigBlk)' /proc/self/status"), []*os.File{c.file}, false)
	got := l.finish(t)
	want := "marker\n"
	if !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "exit 0") {
		t.Errorf("got %q, want it to begin with %q", got, want)
	}
	for _, part := range []string{"\n0\n1\n2\n3\n", "Uid:\t1000\t1000\t1000\t1000\n", "CapEff:\t0000000000000000\n", fmt.Sprintf("CapBnd:\t%016x\n", uint64(defaultCaps)), "SigBlk:\t0000000000000000\n"} {
		if !strings.Contains(got, part) {
			t.Errorf("got %q, without %q", got, part)
		}
	}
	kinds := fmt.Sprint(kindsOf(l))
	if kinds != fmt.Sprint([]launch.StatusKind{launch.StatusChild, launch.StatusExecNext}) && kinds != fmt.Sprint([]launch.StatusKind{launch.StatusExecNext, launch.StatusChild}) {
		t.Errorf("statuses %v", l.statuses)
	}
}

func kindsOf(l *launched) (kinds []launch.StatusKind) {
	for _, s := range l.statuses {
		kinds = append(kinds, s.Kind)
	}
	return kinds
}

func TestExecJoinsEveryNamespaceAndItsParentIsTheKeeper(t *testing.T) {
	eachWay(t, execJoinsEveryNamespaceAndItsParentIsTheKeeper)
}

func execJoinsEveryNamespaceAndItsParentIsTheKeeper(t *testing.T) {
	newLab(t)
	_, table := oneRoot(t)
	plan := container("sleep 1000")
	plan.Ops[0].Flags |= unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	c := sleeping(t, plan, table)
	e := sleeping(t, execInto(0, nil, "sleep", "1000"), []*os.File{c.file})
	for _, name := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		first, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", c.pid, name))
		second, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", e.pid, name))
		if first == "" || first != second {
			t.Errorf("%s: container %q, exec %q", name, first, second)
		}
	}
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", e.pid))
	if fields := strings.Fields(string(stat)); fields[3] != strconv.Itoa(os.Getpid()) || fields[5] != fields[0] {
		t.Errorf("parent %s, session %s of %s", fields[3], fields[5], fields[0])
	}
}

func TestExecFailures(t *testing.T) { eachWay(t, execFailures) }

func execFailures(t *testing.T) {
	newLab(t)
	_, table := oneRoot(t)
	c := sleeping(t, container("sleep 1000"), table)
	fails := func(name string, plan *launch.Plan, table []*os.File, want launch.StepError) {
		t.Run(name, func(t *testing.T) {
			l := start(t, plan, table, false)
			l.finish(t)
			if l.failed == nil || *l.failed != want {
				t.Errorf("got %+v, want %+v", l.failed, want)
			}
		})
	}
	fails("missing program", execInto(0, nil, "nothing"), []*os.File{c.file}, launch.StepError{Step: "exec", Errno: unix.ENOENT, Path: "nothing"})
	refuse := launch.Op{Code: launch.OpSeccomp, Step: "seccomp", Fd: -1, Data: filter(unix.SYS_EXECVE, uint32(unix.EPERM))}
	plan := execInto(0, nil, "true")
	plan.Ops = slices.Insert(plan.Ops, len(plan.Ops)-3, refuse)
	fails("filter forbids execve", plan, []*os.File{c.file}, launch.StepError{Step: "exec", Errno: unix.EPERM, Path: "/bin/true"})

	null, _ := os.Open("/dev/null")
	defer null.Close()
	fails("no namespace", execInto(0, nil, "true"), []*os.File{null}, launch.StepError{Step: "join container", Errno: unix.EINVAL, Path: "null"})

	_, table = oneRoot(t)
	dead := start(t, container("exit 0"), table, true)
	fd, _ := unix.Dup(dead.pidfd)
	gone := os.NewFile(uintptr(fd), "pidfd")
	defer gone.Close()
	dead.finish(t)
	fails("container is gone", execInto(0, nil, "true"), []*os.File{gone}, launch.StepError{Step: "join container", Errno: unix.ESRCH, Path: "pidfd"})
}

func TestExecOnATerminal(t *testing.T) {
	newLab(t)
	_, table := oneRoot(t)
	c := sleeping(t, container("sleep 1000"), table)
	plan := execInto(1000, nil, "sh", "-c", "tty; stat -c %u /dev/pts/0; echo >/dev/tty && echo controlling; ls /proc/self/fd")
	console := launch.Op{Code: launch.OpConsole, Step: "open terminal", Fd: -1, Flags: 1000}
	plan.Ops = slices.Insert(plan.Ops, 3, console) // after setsid
	l := start(t, plan, []*os.File{c.file}, false)
	if got, want := dialogue(t, l, ""), "/dev/pts/0\n1000\n\ncontrolling\n0  1  2  3\nexit 0"; got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// namespaceFile gives a namespace of the process as a file.
func namespaceFile(t testing.TB, pid int, kind string) *os.File {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestContainerInASharedPIDNamespace(t *testing.T) {
	newLab(t)
	_, table := oneRoot(t)
	pod := sleeping(t, container("sleep 1000"), table)
	for _, entry := range []string{"namespace file", "pidfd"} { // a pidfd has no place in fsconfig: the fallback of older kernels
		t.Run(entry, func(t *testing.T) {
			_, table := oneRoot(t)
			pid := pod.file
			if entry == "namespace file" {
				pid = namespaceFile(t, pod.pid, "pid")
			}
			plan := container("readlink /proc/1/exe; grep -c . /proc/1/status >/dev/null && echo $$; cat /proc/self/mountinfo | grep -c ' /proc '; ls /proc/self/fd; kill -0 1 && echo signalled")
			plan.Ops = append([]launch.Op{{Code: launch.OpSetns, Step: "join pid", Fd: 1, Flags: unix.CLONE_NEWPID}}, plan.Ops...)
			plan.Fds = []string{"root", "pod"}
			l := start(t, plan, append(table, pid), false)
			got := l.finish(t)
			if l.failed != nil {
				t.Fatal(l.failed)
			}
			lines := strings.Split(got, "\n")
			if own, err := strconv.Atoi(lines[1]); err != nil || own < 2 || own > 1000 {
				t.Errorf("process id %q in the pod's namespace, of %q", lines[1], got)
			}
			lines[1] = "pid"
			if got, want := strings.Join(lines, "\n"), "/bin/sh\npid\n1\n0\n1\n2\n3\nsignalled\nexit 0"; got != want {
				t.Errorf("got %q\nwant %q", got, want)
			}
		})
	}
}

func TestCgroupV1IsJoinedByTheWorkload(t *testing.T) { eachWay(t, cgroupV1IsJoinedByTheWorkload) }

func cgroupV1IsJoinedByTheWorkload(t *testing.T) {
	newLab(t)
	const hierarchy = "/sys/fs/cgroup/pids"
	if _, err := os.Stat(hierarchy + "/tasks"); err != nil {
		t.Skip("needs the pids hierarchy of cgroup v1 at " + hierarchy)
	}
	group := fmt.Sprintf("%s/podwright-test-%d", hierarchy, os.Getpid())
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(group)
	tasks, err := os.OpenFile(group+"/tasks", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tasks.Close()
	join := launch.Op{Code: launch.OpJoinCgroupV1, Step: "join cgroup", Fd: 1}
	_, table := oneRoot(t)
	plan := container("grep :pids: /proc/self/cgroup; cat /proc/self/mountinfo | grep -c cgroup")
	plan.Ops = append([]launch.Op{join}, plan.Ops...)
	plan.Ops[1].Flags |= unix.CLONE_NEWCGROUP
	plan.Fds = []string{"root", "tasks of pids"}
	l := start(t, plan, append(table, tasks), true)
	if got := l.finish(t); !strings.HasSuffix(strings.Split(got, "\n")[0], ":pids:/") {
		t.Errorf("got %q, want the root of its own cgroup namespace", got)
	}

	_, table = oneRoot(t)
	c := sleeping(t, container("sleep 1000"), table)
	plan = execInto(0, nil, "true")
	plan.Ops = append([]launch.Op{join}, plan.Ops...)
	plan.Fds = []string{"container", "tasks of pids"}
	os.WriteFile(group+"/pids.max", []byte("4"), 0o644) // room for init's threads, and full when it clones
	plan.Ops = slices.DeleteFunc(plan.Ops, func(op launch.Op) bool { return op.Code == launch.OpSetsid })
	full := start(t, plan, []*os.File{c.file, tasks}, false)
	if got := full.finish(t); full.failed != nil || got != "exit 0" {
		t.Errorf("with room: got %q, %v", got, full.failed)
	}
	os.WriteFile(group+"/pids.max", []byte("0"), 0o644)
	full = start(t, plan, []*os.File{c.file, tasks}, false)
	full.finish(t)
	if want := (launch.StepError{Step: "exec", Errno: unix.EAGAIN}); full.failed == nil || *full.failed != want {
		t.Errorf("at pids.max: got %v, want %v", full.failed, &want)
	}

	null, _ := os.Open("/dev/null")
	defer null.Close()
	_, table = oneRoot(t)
	plan = container("")
	plan.Ops = append([]launch.Op{join}, plan.Ops...)
	plan.Fds = []string{"root", "tasks of pids"}
	mustFail(t, plan, append(table, null), "join cgroup", unix.EBADF, "tasks of pids")
	for i := 0; i < 50; i++ { // the group empties when the last task's exit is complete
		if os.Remove(group) == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the cgroup is not empty")
}

func TestUnshareAndTableMistakes(t *testing.T) {
	newLab(t)
	plan := &launch.Plan{Ops: []launch.Op{{Code: launch.OpUnshare, Step: "unshare", Fd: -1, Flags: 1}, opExec}, Args: []string{"x"}}
	mustFail(t, plan, nil, "unshare", unix.EINVAL, "")
}

// TestCloneIsBornWithTheWorkloadsCredentials stops the clone at its last call before execve and looks at it as a
// container with CAP_SYS_PTRACE could: there must be nothing to gain (DESIGN, decision 15).
func TestCloneIsBornWithTheWorkloadsCredentials(t *testing.T) {
	eachWay(t, cloneIsBornWithTheWorkloadsCredentials)
}

func cloneIsBornWithTheWorkloadsCredentials(t *testing.T) {
	newLab(t)
	_, table := oneRoot(t)
	c := sleeping(t, container("sleep 1000"), table)
	load := launch.Op{Code: launch.OpSeccomp, Step: "seccomp", Fd: -1, Data: filter(unix.SYS_PERSONALITY, 1)}
	plan := execInto(1000, nil, "true")
	plan.Ops = slices.Insert(plan.Ops, len(plan.Ops)-3, load) // without no_new_privs: before the user

	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	filler := (&launch.Status{Kind: launch.StatusExecNext}).Encode()
	for err == nil { // a full socket makes init and clone wait for the reader
		_, err = unix.Write(pair[1], filler)
	}
	unix.SetNonblock(pair[0], false)
	unix.SetNonblock(pair[1], false)
	before := childrenOf(t)
	l := spawnInit(t, plan, []*os.File{c.file}, false, pair[1])
	var clone int
	for i := 0; clone == 0; i++ {
		for _, pid := range childrenOf(t) {
			if pid != l.pid && !slices.Contains(before, pid) {
				clone = pid
			}
		}
		if i == 2000 {
			t.Fatal("no clone within two seconds")
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond) // to its last call
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", clone))
	for _, want := range []string{"Name:\tmemfd:podwright", "Uid:\t1000\t1000\t1000\t1000\n", "CapPrm:\t0000000000000000\n",
		fmt.Sprintf("CapBnd:\t%016x\n", uint64(defaultCaps)), "Seccomp:\t2\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("the clone's status lacks %q:\n%s", want, status)
		}
	}
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", clone))
	if len(fds) != 4 { // stdio and the status socket
		t.Errorf("the clone has descriptors %v", fds)
	}
	l.follow(t, pair[0])
	if got := l.finish(t); got != "exit 0" {
		t.Errorf("got %q", got)
	}
}

// childrenOf lists the children of the test process.
func childrenOf(t *testing.T) (pids []int) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		list, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		for _, field := range strings.Fields(string(list)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func TestExecUnderAFilterThatForbidsClone(t *testing.T) { eachWay(t, execUnderAFilterThatForbidsClone) }

func execUnderAFilterThatForbidsClone(t *testing.T) {
	newLab(t)
	_, table := oneRoot(t)
	c := sleeping(t, container("sleep 1000"), table)
	for name, nr := range map[string]uint32{"clone": unix.SYS_CLONE, "exit_group": unix.SYS_EXIT_GROUP, "setsid": unix.SYS_SETSID} {
		t.Run(name, func(t *testing.T) {
			load := launch.Op{Code: launch.OpSeccomp, Step: "seccomp", Fd: -1, Data: filter(nr, uint32(unix.EPERM))}
			plan := execInto(0, nil, "sleep", "0")
			plan.Ops = slices.Insert(plan.Ops, len(plan.Ops)-3, load)
			l := start(t, plan, []*os.File{c.file}, false)
			got := l.finish(t)
			if l.failed != nil || name != "exit_group" && got != "exit 0" {
				t.Errorf("got %q, %v", got, l.failed)
			}
		})
	}
}
