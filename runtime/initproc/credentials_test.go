package initproc

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/podwright/podwright/runtime/launch"
	"golang.org/x/sys/unix"
)

// as is a container whose workload runs with the identity; before and after surround the change of user.
func as(identity, before, after []launch.Op, args ...string) *launch.Plan {
	ops := slices.Concat(opsRoot(), opsMounts()[:2], opsDevices(), []launch.Op{opPivot}, before, identity, after, []launch.Op{opExec})
	return &launch.Plan{Ops: ops, Args: args, Env: []string{"PATH=/bin"}}
}

var showIdentity = []string{"grep", "-E", "^(Uid|Gid|Groups|Cap)", "/proc/self/status"}

func identity(id string, groups string, inh, prm, eff, bnd, amb uint64) string {
	four := strings.Repeat("\t"+id, 4)
	return fmt.Sprintf("Uid:%s\nGid:%s\nGroups:\t%s \nCapInh:\t%016x\nCapPrm:\t%016x\nCapEff:\t%016x\nCapBnd:\t%016x\nCapAmb:\t%016x\nexit 0", four, four, groups, inh, prm, eff, bnd, amb)
}

func TestCapabilitySetsAreExact(t *testing.T) { // CVE-2022-24769: nothing inheritable
	const some = 1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_CHOWN
	unbounded := func(uid uint64, caps, ambient uint64) []launch.Op { return opsIdentity(uid, caps, ambient)[1:] }
	for _, c := range []struct {
		name string
		ops  []launch.Op
		want string
	}{
		{"root, default set", opsIdentity(0, defaultCaps, 0), identity("0", "10 20", 0, defaultCaps, defaultCaps, defaultCaps, 0)},
		{"root, no capability", opsIdentity(0, 0, 0), identity("0", "10 20", 0, 0, 0, 0, 0)},
		{"user, default bounding set", opsIdentity(1000, defaultCaps, 0), identity("1000", "10 20", 0, 0, 0, defaultCaps, 0)},
		{"user, ambient", opsIdentity(1000, defaultCaps, some), identity("1000", "10 20", some, some, some, defaultCaps, some)},
		{"user, bounding set left to caps", unbounded(1000, defaultCaps, some), identity("1000", "10 20", some, some, some, defaultCaps, some)},
		{"root, bounding set left to caps", unbounded(0, some, 0), identity("0", "10 20", 0, some, some, some, 0)},
	} {
		t.Run(c.name, func(t *testing.T) {
			newLab(t)
			_, table := oneRoot(t)
			must(t, as(c.ops, nil, nil, showIdentity...), table, c.want)
		})
	}
}

func TestIdentityFailures(t *testing.T) {
	var held uint64
	status, _ := os.ReadFile("/proc/self/status")
	fmt.Sscanf(string(status[strings.Index(string(status), "CapPrm:"):]), "CapPrm: %x", &held)
	missing := uint64(0)
	for c := range 41 {
		if held&(1<<c) == 0 {
			missing = 1 << c
		}
	}
	for _, c := range []struct {
		name  string
		op    launch.Op
		errno unix.Errno
	}{
		{"a capability init doesn't hold", launch.Op{Code: launch.OpCaps, Data: masks(held, missing, missing, 0, 0)}, unix.EPERM},
		{"effective beyond permitted", launch.Op{Code: launch.OpCaps, Data: masks(held, 3, 1, 0, 0)}, unix.EPERM},
		{"ambient beyond inheritable", launch.Op{Code: launch.OpCaps, Data: masks(held, 1, 1, 0, 1)}, unix.EPERM},
		{"too few sets", launch.Op{Code: launch.OpCaps, Data: masks(1, 2)}, unix.EINVAL},
		{"half a bounding set", launch.Op{Code: launch.OpBounding, Data: []byte{1}}, unix.EINVAL},
		{"a group that is no number", launch.Op{Code: launch.OpUser, Strings: []string{"wheel"}}, unix.EINVAL},
		{"the invalid uid", launch.Op{Code: launch.OpUser, Flags: 1<<32 - 1 - 0}, 0},
		{"an empty filter", launch.Op{Code: launch.OpSeccomp}, unix.EINVAL},
		{"a filter of half an instruction", launch.Op{Code: launch.OpSeccomp, Data: make([]byte, 12)}, unix.EINVAL},
		{"a filter without a return", launch.Op{Code: launch.OpSeccomp, Data: make([]byte, 8)}, unix.EINVAL},
		{"an unknown flag of seccomp", launch.Op{Code: launch.OpSeccomp, Flags: 1 << 30, Data: filter(0, 0)}, unix.EINVAL},
	} {
		t.Run(c.name, func(t *testing.T) {
			newLab(t)
			if c.errno == 0 {
				t.Skip("setresuid(-1) means unchanged")
			}
			if missing == 0 && strings.Contains(c.name, "doesn't hold") {
				t.Skip("this process holds every capability")
			}
			_, table := oneRoot(t)
			c.op.Step, c.op.Fd = "identity", -1
			mustFail(t, as(nil, []launch.Op{c.op}, nil, "true"), table, "identity", c.errno, "")
		})
	}
}

// filter is a seccomp filter that fails system call nr with errno and allows all others.
func filter(nr, errno uint32) []byte {
	var b []byte
	for _, i := range []struct {
		code   uint16
		jt, jf uint8
		k      uint32
	}{{0x20, 0, 0, 0}, {0x15, 0, 1, nr}, {0x06, 0, 0, 0x50000 | errno}, {0x06, 0, 0, 0x7fff0000}} {
		b = append(b, byte(i.code), byte(i.code>>8), i.jt, i.jf, byte(i.k), byte(i.k>>8), byte(i.k>>16), byte(i.k>>24))
	}
	return b
}

func TestSeccompWithAndWithoutNoNewPrivs(t *testing.T) {
	load := launch.Op{Code: launch.OpSeccomp, Step: "seccomp", Fd: -1, Data: filter(unix.SYS_MKDIRAT, uint32(unix.EXDEV))}
	if runtime.GOARCH == "amd64" {
		load.Data = filter(83, uint32(unix.EXDEV)) // mkdir, which arm64 lacks
	}
	nnp := launch.Op{Code: launch.OpNoNewPrivs, Step: "no new privileges", Fd: -1}
	const script = "grep -E '^(NoNewPrivs|Seccomp|Uid):' /proc/self/status; mkdir /tmp/x"
	const refused = "mkdir: can't create directory '/tmp/x': Invalid cross-device link\nexit 1"
	user := opsIdentity(1000, defaultCaps, 0)
	for _, c := range []struct {
		name          string
		before, after []launch.Op
		want          string
	}{
		{"without, filter before the user", []launch.Op{load}, nil, "Uid:\t1000\t1000\t1000\t1000\nNoNewPrivs:\t0\nSeccomp:\t2\n" + refused},
		{"with, filter last", nil, []launch.Op{nnp, load}, "Uid:\t1000\t1000\t1000\t1000\nNoNewPrivs:\t1\nSeccomp:\t2\n" + refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			newLab(t)
			dir, table := oneRoot(t)
			os.Chmod(dir+"/tmp", 0o1777)
			must(t, as(user, c.before, c.after, "sh", "-c", script), table, c.want)
		})
	}
	t.Run("neither no_new_privs nor CAP_SYS_ADMIN", func(t *testing.T) {
		newLab(t)
		_, table := oneRoot(t)
		mustFail(t, as(user, nil, []launch.Op{load}, "true"), table, "seccomp", unix.EACCES, "")
	})
	t.Run("a filter that forbids a later step", func(t *testing.T) {
		newLab(t)
		_, table := oneRoot(t)
		load.Data = filter(unix.SYS_SETRESUID, uint32(unix.ENOTTY))
		mustFail(t, as(user, []launch.Op{load}, nil, "true"), table, "set user", unix.ENOTTY, "")
	})
	t.Run("a filter that kills what only Go's runtime needs", func(t *testing.T) {
		newLab(t)
		_, table := oneRoot(t)
		strict := filter(unix.SYS_RT_SIGPROCMASK, 0)
		copy(strict[20:], []byte{0, 0, 0, 0x80}) // SECCOMP_RET_KILL_PROCESS
		load.Data = strict
		must(t, as(user, []launch.Op{load}, nil, "true"), table, "exit 0")
	})
}

func TestLimitsUmaskAndOOMScore(t *testing.T) {
	newLab(t)
	_, table := oneRoot(t)
	score, _ := os.ReadFile("/proc/self/oom_score_adj")
	now, _ := strconv.Atoi(strings.TrimSpace(string(score)))
	late := []launch.Op{
		{Code: launch.OpRlimit, Step: "limit", Fd: -1, Number: unix.RLIMIT_NOFILE, Flags: 77, Strings: []string{"88"}},
		{Code: launch.OpRlimit, Step: "limit", Fd: -1, Number: unix.RLIMIT_CORE, Flags: 0, Strings: []string{"0"}},
		{Code: launch.OpUmask, Step: "umask", Fd: -1, Number: 0o27},
	}
	plan := small("ulimit -Sn; ulimit -Hn; ulimit -c; umask; cat /proc/self/oom_score_adj", nil, late...)
	plan.Ops = append([]launch.Op{{Code: launch.OpOOMScore, Step: "oom score", Fd: -1, Number: int64(now + 1)}}, plan.Ops...)
	must(t, plan, table, fmt.Sprintf("77\n88\n0\n0027\n%d\nexit 0", now+1))

	for name, c := range map[string]struct {
		op    launch.Op
		errno unix.Errno
		path  string
	}{
		"an unknown resource":  {launch.Op{Code: launch.OpRlimit, Number: 99, Strings: []string{"1"}}, unix.EINVAL, ""},
		"soft above hard":      {launch.Op{Code: launch.OpRlimit, Number: unix.RLIMIT_NOFILE, Flags: 9, Strings: []string{"8"}}, unix.EINVAL, ""},
		"no hard limit":        {launch.Op{Code: launch.OpRlimit, Number: unix.RLIMIT_NOFILE}, unix.EINVAL, ""},
		"words as hard limit":  {launch.Op{Code: launch.OpRlimit, Number: unix.RLIMIT_NOFILE, Strings: []string{"infinity"}}, unix.EINVAL, ""},
		"a score out of range": {launch.Op{Code: launch.OpOOMScore, Number: 1001}, unix.EINVAL, "/proc/self/oom_score_adj"},
	} {
		t.Run(name, func(t *testing.T) {
			c.op.Step, c.op.Fd = "limit", -1
			_, table := oneRoot(t)
			mustFail(t, small("", []launch.Op{c.op}), table, "limit", c.errno, c.path)
		})
	}
}

func TestExecLabelGoesToTheKeepersProcfs(t *testing.T) { // CVE-2019-16884, CVE-2019-19921
	newLab(t)
	_, table := oneRoot(t)
	// No LSM is asked for: an attribute that is none shows the path taken, and that the image's /proc isn't it.
	label := launch.Op{Code: launch.OpExecLabel, Step: "exec label", Fd: -1, Path: "no-such", Arg: "x"}
	mustFail(t, small("", nil, label), table, "exec label", unix.ENOENT, "/proc/thread-self/attr/no-such")
	label.Path = "../../../../1/attr/exec"
	_, table = oneRoot(t)
	mustFail(t, small("", nil, label), table, "exec label", unix.EINVAL, "../../../../1/attr/exec")
}

func TestSessionKeyringIsItsOwn(t *testing.T) {
	newLab(t)
	keepers := make(chan int)
	lab.keeper <- func() {
		id, _ := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
		keepers <- id
	}
	inherited := <-keepers
	ring := launch.Op{Code: launch.OpKeyring, Step: "join session keyring", Fd: -1, Arg: "podwright-one"}
	plan := small("", nil, ring)
	plan.Args = []string{"/bin/probe", "keyring"}
	dir, table := oneRoot(t)
	os.Link(lab.probe, dir+"/bin/probe")
	got := start(t, plan, table, true).finish(t)
	if !strings.Contains(got, ";podwright-one <nil>") || strings.HasPrefix(got, fmt.Sprint(inherited, " ")) {
		t.Errorf("got %q, want podwright-one and not keyring %d", got, inherited)
	}
}

func TestWorkloadLeadsItsSessionAndIsDumpable(t *testing.T) {
	newLab(t)
	dir, table := oneRoot(t)
	os.Link(lab.probe, dir+"/bin/probe")
	setsid := launch.Op{Code: launch.OpSetsid, Step: "setsid", Fd: -1}
	must(t, as(opsIdentity(1000, defaultCaps, 0), []launch.Op{setsid}, nil, "probe", "session"), table, "true 1 0\nexit 0")
}

// Init has a slack of its own for Go's runtime (runtime/spawn), and the workload the keeper's, to sleep in and to hand on.
func TestWorkloadHasTheUsualTimerSlack(t *testing.T) {
	newLab(t)
	dir, table := oneRoot(t)
	os.Link(lab.probe, dir+"/bin/probe")
	plan := container("")
	plan.Args = []string{"/bin/probe", "slack"}
	must(t, plan, table, "50000 50000\nexit 0")
}

func TestExecHasTheUsualTimerSlack(t *testing.T) {
	eachWay(t, func(t *testing.T) {
		newLab(t)
		dir, table := oneRoot(t)
		os.Link(lab.probe, dir+"/bin/probe")
		c := sleeping(t, container("echo ready; sleep 1000"), table)
		bufio.NewReader(c.output).ReadString('\n')
		if got := start(t, execInto(1000, nil, "probe", "slack"), []*os.File{c.file}, false).finish(t); got != "50000 50000\nexit 0" {
			t.Errorf("got %q", got)
		}
	})
}
