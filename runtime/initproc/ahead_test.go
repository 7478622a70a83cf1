package initproc

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/spawn"
	"golang.org/x/sys/unix"
)

func TestWhichPlansAreListedAhead(t *testing.T) {
	change := func(f func(*launch.Plan)) *launch.Plan {
		plan := execInto(1000, nil, "true")
		plan.Fds = []string{"container", "tasks"}
		f(plan)
		return plan
	}
	add := func(op launch.Op) *launch.Plan {
		return change(func(p *launch.Plan) { p.Ops = slices.Insert(p.Ops, 0, op) })
	}
	inside := func(op launch.Op) *launch.Plan {
		return change(func(p *launch.Plan) { p.Ops = slices.Insert(p.Ops, 1, op) })
	}
	for _, c := range []struct {
		name string
		plan *launch.Plan
		want bool
	}{
		{"an exec", change(func(*launch.Plan) {}), true},
		{"in cgroups of v1", add(launch.Op{Code: launch.OpJoinCgroupV1, Fd: 1}), true},
		{"with a score", add(launch.Op{Code: launch.OpOOMScore, Number: 5}), true},
		{"with a label", add(launch.Op{Code: launch.OpExecLabel, Path: "exec", Arg: "l"}), true},
		{"a label of another process", add(launch.Op{Code: launch.OpExecLabel, Path: "../../1/attr/exec", Arg: "l"}), false},
		{"on a terminal", add(launch.Op{Code: launch.OpConsole}), false},
		{"makes its working directory", inside(launch.Op{Code: launch.OpChdir, Path: "/a", Flags: 1}), false},
		{"two working directories", inside(launch.Op{Code: launch.OpChdir, Path: "/a"}), false},
		{"relative working directory", inside(launch.Op{Code: launch.OpChdir, Path: "a"}), false},
		{"an impossible group", add(launch.Op{Code: launch.OpUser, Strings: []string{"x"}}), false},
		{"bounding set by what init holds", change(func(p *launch.Plan) {
			p.Ops = slices.DeleteFunc(p.Ops, func(op launch.Op) bool { return op.Code == launch.OpBounding })
		}), false},
		{"a container", change(func(p *launch.Plan) { p.Ops = container("true").Ops }), false},
		{"no execution", change(func(p *launch.Plan) { p.Ops = p.Ops[:2] }), false},
		{"no arguments", change(func(p *launch.Plan) { p.Args = nil }), false},
		{"an operation without its descriptor", add(launch.Op{Code: launch.OpSetns, Fd: -1, Flags: unix.CLONE_NEWNET}), false},
		{"a score by the container's procfs", inside(launch.Op{Code: launch.OpOOMScore}), false},
		{"the keeper's working directory", add(launch.Op{Code: launch.OpChdir, Path: "/"}), false},
		{"one working directory twice", inside(launch.Op{Code: launch.OpChdir, Path: "/"}), true},
		{"the longest PATH that is searched ahead", change(func(p *launch.Plan) { p.Env[0] = "PATH=/a" + strings.Repeat(":", maxSearched-1) }), true},
		{"a longer one", change(func(p *launch.Plan) { p.Env[0] = "PATH=/a" + strings.Repeat(":", maxSearched) }), false},
		{"the same, for a path", change(func(p *launch.Plan) { p.Env[0], p.Args[0] = "PATH=/a"+strings.Repeat(":", maxSearched), "/bin/true" }), true},
		{"a name that is too long", change(func(p *launch.Plan) { p.Args[0] = strings.Repeat("n", pathMax) }), false},
	} {
		if got := image(c.plan) != nil; got != c.want {
			t.Errorf("%s: listed ahead %v, want %v", c.name, got, c.want)
		}
		if decoded, err := launch.Decode(spawn.AfterImage(PlanFile(c.plan))); err != nil || len(decoded.Ops) != len(c.plan.Ops) {
			t.Errorf("%s: the plan in its file: %v", c.name, err)
		}
	}
}

// TestWhatTheDecoderRefusesIsNotListed: a text with a zero byte, which calls would take to end there.
func TestWhatTheDecoderRefusesIsNotListed(t *testing.T) {
	first := func(p *launch.Plan, code launch.Code) *launch.Op {
		return &p.Ops[slices.IndexFunc(p.Ops, func(op launch.Op) bool { return op.Code == code })]
	}
	for name, f := range map[string]func(*launch.Plan){
		"name":        func(p *launch.Plan) { p.Args[0] = "true\x00" },
		"argument":    func(p *launch.Plan) { p.Args = append(p.Args, "a\x00b") },
		"environment": func(p *launch.Plan) { p.Env = append(p.Env, "A=\x00") },
		"directory":   func(p *launch.Plan) { first(p, launch.OpChdir).Path = "/\x00" },
		"keyring":     func(p *launch.Plan) { first(p, launch.OpKeyring).Arg = "\x00" },
		"descriptor":  func(p *launch.Plan) { first(p, launch.OpSetns).Fd = 1 },
	} {
		plan := execInto(1000, nil, "true")
		plan.Fds = []string{"container"}
		f(plan)
		if file := PlanFile(plan); !slices.Equal(file, plan.Encode()) {
			t.Errorf("%s: the file is more than the plan", name)
		}
	}
}

// TestPlanFileOfAHostilePathIsSmall: PATH is the image's, the command whoever's may exec; the file is made by the daemon.
func TestPlanFileOfAHostilePathIsSmall(t *testing.T) {
	plan := execInto(1000, nil, strings.Repeat("n", pathMax-1))
	plan.Fds, plan.Env = []string{"container"}, []string{"PATH=" + strings.Repeat(":", 20000)}
	if got, most := len(PlanFile(plan)), 2<<20; got > most {
		t.Errorf("a plan of %d bytes has a file of %d, want at most %d", len(plan.Encode()), got, most)
	}
}

// TestListedCallsNeedNoGo breaks the plan that follows the calls: whoever reads it fails.
func TestListedCallsNeedNoGo(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("init begins with Go's runtime on " + runtime.GOARCH)
	}
	newLab(t)
	_, table := oneRoot(t)
	c := sleeping(t, container("sleep 1000"), table)
	planFile = func(p *launch.Plan) []byte { return append(image(p), "no plan"...) }
	defer func() { planFile = PlanFile }()
	if got := start(t, execInto(1000, nil, "sh", "-c", "id -u"), []*os.File{c.file}, false).finish(t); got != "1000\nexit 0" {
		t.Errorf("got %q", got)
	}
	l := start(t, container("true"), table, true) // can't be listed, so its plan is read
	l.finish(t)
	if want := (launch.StepError{Step: "read plan", Errno: unix.EINVAL}); l.failed == nil || *l.failed != want {
		t.Errorf("got %v, want %v", l.failed, &want)
	}
}

// TestExecInheritsNothing is TestWorkloadInheritsNothing for an exec.
func TestExecInheritsNothing(t *testing.T) { eachWay(t, execInheritsNothing) }

func execInheritsNothing(t *testing.T) {
	newLab(t)
	_, table := oneRoot(t)
	c := sleeping(t, container("sleep 1000"), table)
	defer restoreSignal(uintptr(unix.SIGPIPE), ignoreSignal(t, uintptr(unix.SIGPIPE)))
	score := launch.Op{Code: launch.OpOOMScore, Step: "score", Fd: -1, Number: 77}
	limit := launch.Op{Code: launch.OpRlimit, Step: "limit", Fd: -1, Number: unix.RLIMIT_NOFILE, Flags: 123, Strings: []string{"456"}}
	plan := execInto(1000, nil, "sh", "-c", "umask; ulimit -n; ulimit -Hn; pwd; cat /proc/self/oom_score_adj; grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd; echo $PATH; ps -o pid,sid | grep \" $$ *$$\" >/dev/null && echo leader")
	plan.Ops = slices.Concat([]launch.Op{score}, plan.Ops[:3], []launch.Op{limit}, plan.Ops[3:])
	got := start(t, plan, []*os.File{c.file}, false).finish(t)
	want := "0022\n123\n456\n/\n77\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n0  1  2  3\n/bin\nleader\nexit 0"
	if got = strings.ReplaceAll(got, "0\n1\n2\n3\n", "0  1  2  3\n"); got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestExecLooksItsProgramUp(t *testing.T) { eachWay(t, execLooksItsProgramUp) }

func execLooksItsProgramUp(t *testing.T) {
	newLab(t)
	dir, table := oneRoot(t)
	for _, d := range []string{"/a", "/b/echo", "/in"} {
		if err := os.MkdirAll(dir+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(dir+"/a/echo", []byte("#!/bin/sh\necho wrong"), 0o644) // not executable
	os.WriteFile(dir+"/in/here", []byte("#!/bin/sh\necho here $PWD"), 0o755)
	c := sleeping(t, container("sleep 1000"), table)
	for _, k := range []struct{ path, cwd, name, want string }{
		{"PATH=/none:/a:/b:/bin/", "/", "echo", "\nexit 0"},
		{"PATH=:/bin", "/in", "here", "here /in\nexit 0"},
		{"PATH=/bin", "/in", "./here", "here /in\nexit 0"},
		{"PATH=/bin", "/missing", "true", "exit 1"},
	} {
		plan := execInto(1000, []launch.Op{{Code: launch.OpChdir, Step: "again", Fd: -1, Path: k.cwd}}, k.name)
		plan.Env[0] = k.path
		for i := range plan.Ops {
			if plan.Ops[i].Code == launch.OpChdir {
				plan.Ops[i].Path = k.cwd
			}
		}
		if got := start(t, plan, []*os.File{c.file}, false).finish(t); got != k.want {
			t.Errorf("%+v: got %q", k, got)
		}
	}
}

// TestExecEntersItsDirectoryAsWhoMay lets an init without the capabilities that open any directory do it, as on a network
// file system or in a user namespace.
func TestExecEntersItsDirectoryAsWhoMay(t *testing.T) { eachWay(t, execEntersItsDirectoryAsWhoMay) }

func execEntersItsDirectoryAsWhoMay(t *testing.T) {
	newLab(t)
	dir, table := oneRoot(t)
	for _, d := range []string{"/roots", "/users", "/users/below"} {
		if err := os.Mkdir(dir+d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"/users", "/users/below"} {
		if err := os.Chown(dir+d, 1000, 1000); err != nil {
			t.Fatal(err)
		}
	}
	c := sleeping(t, container("sleep 1000"), table)
	withoutDAC(t)
	noClone := launch.Op{Code: launch.OpSeccomp, Step: "seccomp", Fd: -1, Data: filter(unix.SYS_CLONE, uint32(unix.EPERM))}
	for _, k := range []struct {
		cwd    string
		uid    uint64
		failed *launch.StepError
	}{
		{"/", 1000, nil}, {"/roots", 1000, nil}, {"/users", 1000, nil}, {"/users/below", 1000, nil},
		{"/users", 1001, &launch.StepError{Step: "as the user", Errno: unix.EACCES, Path: "/users"}},
		{"/users/below", 1001, &launch.StepError{Step: "as the user", Errno: unix.EACCES, Path: "/users/below"}},
		{"/none", 1000, &launch.StepError{Step: "chdir", Errno: unix.ENOENT, Path: "/none"}},
		{"/users/none", 1000, &launch.StepError{Step: "as the user", Errno: unix.ENOENT, Path: "/users/none"}},
		{"/bin/sh", 1000, &launch.StepError{Step: "chdir", Errno: unix.ENOTDIR, Path: "/bin/sh"}},
	} {
		for _, inClone := range []bool{false, true} {
			plan := execInto(k.uid, []launch.Op{{Code: launch.OpChdir, Step: "as the user", Fd: -1, Path: k.cwd}}, "readlink", "/proc/self/cwd")
			at := slices.IndexFunc(plan.Ops, func(op launch.Op) bool { return op.Code == launch.OpChdir })
			plan.Ops[at].Path = k.cwd
			if inClone { // with all that follows the filter
				plan.Ops = slices.Insert(plan.Ops, at+1, noClone)
			}
			l := start(t, plan, []*os.File{c.file}, false)
			got := l.finish(t)
			switch {
			case k.failed == nil && (l.failed != nil || got != k.cwd+"\nexit 0"):
				t.Errorf("%s of %d, in the clone %v: got %q, %v", k.cwd, k.uid, inClone, got, l.failed)
			case k.failed != nil && (l.failed == nil || *l.failed != *k.failed):
				t.Errorf("%s of %d, in the clone %v: got %q, %v, want %v", k.cwd, k.uid, inClone, got, l.failed, k.failed)
			}
		}
	}
}

// withoutDAC lets the keeper start what has all capabilities but CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: an execve of
// root gives them all, unless that is switched off (SECBIT_NOROOT, capabilities(7)); then the ambient ones count.
func withoutDAC(t *testing.T) {
	t.Helper()
	keeper := func(bits uintptr, without uint64) error {
		result := make(chan error)
		lab.keeper <- func() { result <- keepOnly(bits, without) }
		return <-result
	}
	t.Cleanup(func() {
		if err := keeper(0, ^uint64(0)); err != nil {
			t.Error(err)
		}
	})
	const noRoot = 1 // SECBIT_NOROOT
	if err := keeper(noRoot, 1<<unix.CAP_DAC_OVERRIDE|1<<unix.CAP_DAC_READ_SEARCH); err != nil {
		t.Fatal(err)
	}
}

// keepOnly makes the permitted capabilities of this thread but some inheritable and ambient.
func keepOnly(securebits uintptr, without uint64) error {
	header, sets := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, new([2]unix.CapUserData)
	if err := unix.Capget(header, &sets[0]); err != nil {
		return err
	}
	for i := range sets {
		sets[i].Inheritable = sets[i].Permitted &^ uint32(without>>(32*i))
	}
	if err := errors.Join(unix.Prctl(unix.PR_SET_SECUREBITS, securebits, 0, 0, 0), unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), unix.Capset(header, &sets[0])); err != nil {
		return err
	}
	for c := range uintptr(64) {
		if sets[c/32].Inheritable&(1<<(c%32)) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil {
			return err
		}
	}
	return nil
}
