package initproc

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/podwright/podwright/runtime/launch"
	"golang.org/x/sys/unix"
)

func TestContainerStartsWithItsOwnMounts(t *testing.T) {
	newLab(t)
	_, table := oneRoot(t)
	want := "/\n/proc\n/dev\n/dev/pts\n/dev/mqueue\n/dev/shm\n/sys\n"
	for _, op := range opsHide() {
		if _, err := os.Stat(op.Path); err == nil {
			want += op.Path + "\n"
		}
	}
	must(t, container("cat /proc/self/mountinfo | while read a b c d e f; do echo $e; done; echo $A $$"), table, want+"b 1\nexit 0")
}

// direct is a container whose workload is the program itself, without a shell that changes what it inherits.
func direct(args ...string) *launch.Plan {
	plan := container("")
	plan.Args = args
	return plan
}

func TestWorkloadInheritsNothing(t *testing.T) { // DESIGN: no fd but 0-2, mask, dispositions, umask, environment
	newLab(t)
	secret, err := os.Open("/etc/hostname")
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	score, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"ls", "/proc/self/fd"}, "0\n1\n2\n3\nexit 0"}, // 3 is ls's own
		{[]string{"cat", "/proc/self/environ"}, "PATH=/bin\x00A=b\x00exit 0"},
		{[]string{"cat", "/proc/self/cmdline"}, "cat\x00/proc/self/cmdline\x00exit 0"},
		{[]string{"cat", "/proc/self/oom_score_adj"}, string(score) + "exit 0"},
		{[]string{"grep", "-E", "^(Umask|Threads|SigPnd|ShdPnd|SigBlk|SigIgn|SigCgt|NoNewPrivs|Seccomp):", "/proc/self/status"},
			"Umask:\t0022\nThreads:\t1\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\nSigBlk:\t0000000000000000\n" +
				"SigIgn:\t0000000000000000\nSigCgt:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t0\nexit 0"},
		{[]string{"readlink", "/proc/self/cwd"}, "/\nexit 0"},
		{[]string{"readlink", "/proc/self/root"}, "/\nexit 0"},
	} {
		t.Run(c.args[len(c.args)-1], func(t *testing.T) {
			_, table := oneRoot(t)
			// Extra table entries stand for mounts and namespaces that init leaves open itself.
			must(t, direct(c.args...), append(table, secret, secret, secret), c.want)
		})
	}
}

func TestIgnoredSignalsOfTheKeeperAreNotInherited(t *testing.T) {
	newLab(t)
	_, table := oneRoot(t)
	// SIGPIPE and a real-time signal ignored in the parent, as a daemon's choice could be.
	for _, s := range []uintptr{uintptr(unix.SIGPIPE), 40} {
		old := ignoreSignal(t, s)
		defer restoreSignal(s, old)
	}
	must(t, direct("grep", "SigIgn", "/proc/self/status"), table, "SigIgn:\t0000000000000000\nexit 0")
}

func TestNamespacesDiffer(t *testing.T) {
	newLab(t)
	_, table := oneRoot(t)
	plan := container("for n in mnt pid cgroup net ipc uts; do readlink /proc/self/ns/$n; done")
	plan.Ops[0].Flags |= unix.CLONE_NEWCGROUP
	l := start(t, plan, table, true)
	lines := strings.Split(l.finish(t), "\n")
	for i, name := range []string{"mnt", "pid", "cgroup", "net", "ipc", "uts"} {
		host, _ := os.Readlink("/proc/self/ns/" + name)
		if own := i < 3; (lines[i] != host) != own {
			t.Errorf("%s: got %s, host %s, want own %v", name, lines[i], host, own)
		}
	}
}

func TestProcSelfExeIsNotInit(t *testing.T) { // CVE-2019-5736
	newLab(t)
	_, table := oneRoot(t)
	must(t, container("readlink /proc/1/exe"), table, "/bin/sh\nexit 0")
	// The memfd itself is sealed: a descriptor of it can't be turned into a writable one.
	path := fmt.Sprintf("/proc/self/fd/%d", lab.init)
	if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
		if _, err := f.Write([]byte("x")); err == nil {
			t.Error("init's memfd can be written")
		}
		f.Close()
	}
}

func TestPlanMistakesAreReported(t *testing.T) {
	newLab(t)
	_, table := oneRoot(t)
	noEnd := container("")
	noEnd.Ops = noEnd.Ops[:3]
	mustFail(t, noEnd, table, "read plan", unix.ENOEXEC, "")
	_, table = oneRoot(t)
	noArgs := container("")
	noArgs.Args = nil
	mustFail(t, noArgs, table, "exec", unix.ENOENT, "")
	early := &launch.Plan{Ops: []launch.Op{{Code: launch.OpMkdir, Step: "mkdir", Fd: -1, Path: "/x"}, opExec}, Args: []string{"x"}}
	mustFail(t, early, table, "mkdir", unix.EBADF, "/x")
}
