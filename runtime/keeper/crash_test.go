package keeper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podwright/podwright/runtime/wire"
	"golang.org/x/sys/unix"
)

// counter writes numbered lines until it is told to stop, as fast as the pipe takes them, a few per millisecond.
const counter = `i=0; trap 'stop=1' TERM; while test -z "$stop"; do echo "line $i"; i=$((i+1)); test $((i%64)) = 0 && usleep 1000; done; echo "total $i"`

// verify checks the lines of a counter: in order, none twice, and at most lost of them missing.
func (w *workload) verify(t *testing.T, lost int) (missing int) {
	t.Helper()
	next, total := 0, -1
	for line := range strings.Lines(w.text(t, "stdout")) {
		var i int
		if _, err := fmt.Sscanf(line, "total %d", &total); err == nil {
			continue
		}
		// A line cut by the death of its keeper counts as missing; it is ended, so it harms no other.
		if _, err := fmt.Sscanf(line, "line %d", &i); err != nil || line != fmt.Sprintf("line %d\n", i) || i < next {
			if missing++; i < next && strings.HasPrefix(line, "line ") && len(line) == len(fmt.Sprintf("line %d\n", next)) {
				t.Fatalf("%s: got %q after line %d: doubled or out of order", w.ID, line, next-1)
			}
			continue
		}
		missing += i - next
		next = i + 1
	}
	if total < 0 {
		t.Fatalf("%s: the last line is missing", w.ID)
	}
	if missing += total - next; missing > lost {
		t.Errorf("%s: %d of %d lines are missing, at most %d may", w.ID, missing, total, lost)
	}
	return missing
}

func (n *node) counters(count int) []*workload {
	n.t.Helper()
	var all []*workload
	for i := range count {
		w := n.sh(fmt.Sprintf("c%d", i), counter)
		n.start(w)
		all = append(all, w)
	}
	return all
}

// stop ends the counters and waits for their exits, which are as known as said.
func (n *node) stop(all []*workload, known bool) {
	n.t.Helper()
	want := wire.Exit{Code: 255, Lost: true}
	if known {
		want = wire.Exit{}
	}
	for _, w := range all {
		if err := n.Signal(n.ctx(), w.ID, unix.SIGTERM, false); err != nil {
			n.t.Fatal(err)
		}
	}
	for _, w := range all {
		if e := n.exit(w.ID); e.Code != want.Code || e.Lost != want.Lost {
			n.t.Errorf("%s: got %+v, want code %d, lost: %v", w.ID, e, want.Code, want.Lost)
		}
	}
}

// Promises 2 and 3, B39.
func TestKeeperIsKilledWhileContainersWrite(t *testing.T) {
	n := newNode(t)
	all := n.counters(20)
	exiting := n.sh("dying", "echo alive; while ! test -e "+n.dir+"/die; do usleep 1000; done; exit 7")
	n.start(exiting)
	before, err := n.List(n.ctx())
	if err != nil {
		t.Fatal(err)
	}
	const kills = 3
	for i := range kills {
		time.Sleep(200 * time.Millisecond)
		if i == 1 { // one container exits while there is no keeper: anchor and all stand still meanwhile
			now := n.hello()
			unix.Kill(now.AnchorPID, unix.SIGSTOP)
			unix.Kill(now.KeeperPID, unix.SIGKILL)
			os.WriteFile(n.dir+"/die", nil, 0o600)
			time.Sleep(100 * time.Millisecond)
			unix.Kill(now.AnchorPID, unix.SIGCONT)
			n.waitOther(now)
			continue
		}
		n.killKeeper()
	}
	if e := n.exit("dying"); e.Code != 7 {
		t.Errorf("exit while the keeper was dead: got %+v, want code 7", e)
	}
	after, err := n.List(n.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := identities(after), identities(before); got != want {
		t.Errorf("got children %s, want %s", got, want)
	}
	n.stop(all, true)
	missing := 0
	for _, w := range all {
		// What one read takes is at risk, each time: 64 KiB of lines of at least 7 bytes.
		w.mayTear = kills
		missing += w.verify(t, kills*(64<<10)/7)
	}
	t.Logf("%d lines missing in %d logs after %d kills", missing, len(all), kills)
	n.noOrphans()
}

func identities(children []wire.Child) string {
	list := map[string]wire.Process{}
	for _, c := range children {
		list[c.ID] = c.Process
	}
	return fmt.Sprint(list)
}

// A launch in flight when the keeper dies leaves nothing behind.
func TestKeeperIsKilledDuringLaunches(t *testing.T) {
	n := newNode(t)
	for round := range 5 {
		var launches sync.WaitGroup
		for i := range 8 {
			w := n.workload(fmt.Sprintf("c%d-%d", round, i), []string{"exec", "clone", "hang"}[i%3], "sleep", "1000")
			launches.Go(func() { n.Launch(n.ctx(), w.Launch); closeFiles(w.files) })
		}
		time.Sleep(time.Duration(round) * 2 * time.Millisecond)
		n.killKeeper()
		launches.Wait()
	}
	left := ""
	defer func() { t.Logf("processes and children at the end: %s", left) }()
	n.eventually("end of what was not answered", func() bool {
		list, err := n.List(n.ctx())
		h := n.hello()
		left = fmt.Sprintf("of anchor: %s; of keeper: %s; known: %s", children(h.AnchorPID), children(h.KeeperPID), identities(list))
		return err == nil && len(strings.Fields(children(h.AnchorPID)))+len(strings.Fields(children(h.KeeperPID))) == len(list)+1
	})
}

// The one that has been cloned and has not executed its program yet, which a frozen group holds there.
func TestKeeperIsKilledBeforeAnInitExecutes(t *testing.T) {
	group, err := os.MkdirTemp(unifiedRoot(t), "podwright-test-")
	if err != nil {
		t.Fatal(err)
	}
	processes := func() string {
		text, err := os.ReadFile(group + "/cgroup.procs")
		if err != nil {
			t.Error(err)
		}
		return strings.TrimSpace(string(text))
	}
	t.Cleanup(func() {
		if err := os.WriteFile(group+"/cgroup.kill", []byte("1"), 0); err != nil {
			t.Error(err)
		}
		for processes() != "" {
			time.Sleep(time.Millisecond)
		}
		if err := os.Remove(group); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(group+"/cgroup.freeze", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	n := newNode(t)
	before := n.hello()
	w := n.workload("c1", "hang", "sleep", "1000")
	w.Cgroup = n.open(w, group, unix.O_PATH|unix.O_DIRECTORY)
	var launch sync.WaitGroup
	launch.Go(func() { n.Launch(n.ctx(), w.Launch); closeFiles(w.files) })
	n.eventually("a clone in the group", func() bool { return processes() != "" })
	unix.Kill(before.KeeperPID, unix.SIGKILL)
	n.waitOther(before)
	launch.Wait()
	n.eventually("end of the clone", func() bool { return processes() == "" })
	n.noOrphans()
}

// unifiedRoot is where cgroup2 is mounted.
func unifiedRoot(t *testing.T) string {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(root, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return root
		}
	}
	t.Skip("cgroup2 is not mounted")
	return ""
}

// An anchor that dies alone is replaced by the keeper, and then the keeper may die again.
func TestAnchorIsKilled(t *testing.T) {
	n := newNode(t)
	all := n.counters(5)
	for range 2 {
		before := n.hello()
		unix.Kill(before.AnchorPID, unix.SIGKILL)
		n.eventually("a new anchor", func() bool {
			h, err := n.Hello(n.ctx())
			return err == nil && h.AnchorPID == before.KeeperPID && h.KeeperPID != before.KeeperPID && n.Connected()
		})
		n.anchorFate()
	}
	for _, w := range all {
		if err := n.Signal(n.ctx(), w.ID, 0, false); err != nil {
			t.Error(err)
		}
	}
	n.start(n.sh("later", "exit 9"))
	if e := n.exit("later"); e.Code != 9 {
		t.Errorf("got %+v, want code 9", e)
	}
	n.stop(all, kernelTellsExits()) // the second anchor was their parent
	for _, w := range all {
		if missing := w.verify(t, 0); missing > 0 {
			t.Errorf("%s: %d lines missing, but nothing was in flight", w.ID, missing)
		}
	}
	n.killKeeper()
}

func TestKeeperAndAnchorAreKilledAtOnce(t *testing.T) {
	fresh := make(chan struct{}, 1)
	n := newNode(t)
	n.Client.config.OnFresh = func() { fresh <- struct{}{} }
	w := n.sh("c1", `trap '' PIPE; echo begin; while ! test -e `+n.dir+`/die; do usleep 10000; done; echo end; exit 6`)
	p := n.start(w)
	quick := n.start(n.sh("gone", "sleep 1000"))
	h := n.hello()
	n.eventually("first line", func() bool { return w.text(t, "stdout") == "begin\n" })
	unix.Kill(h.AnchorPID, unix.SIGSTOP)
	unix.Kill(h.KeeperPID, unix.SIGKILL)
	unix.Kill(h.AnchorPID, unix.SIGKILL)
	<-fresh
	n.waitConnected()
	if list, err := n.List(n.ctx()); err != nil || len(list) != 0 {
		t.Errorf("got %v, %v, want a keeper that knows nothing", list, err)
	}
	adopt := func(w *workload, p Process) error {
		a := Adoption{Child: wire.Child{ID: w.ID, Kind: wire.KindContainer, Process: wire.Process{PID: p.PID, StartTime: p.StartTime}}}
		if w.log != "" {
			a.StdoutRead = n.open(w, w.fifos[0], os.O_RDONLY|unix.O_NONBLOCK)
			a.StderrRead = n.open(w, w.fifos[1], os.O_RDONLY|unix.O_NONBLOCK)
			a.Log = n.open(w, w.log, os.O_WRONLY|os.O_APPEND)
		}
		return n.Adopt(n.ctx(), a)
	}
	for range 2 { // again is no error
		if err := adopt(w, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := adopt(&workload{Launch: Launch{ID: "gone"}}, Process{PID: quick.PID, StartTime: quick.StartTime + 1}); !errors.Is(err, ErrUnknown) {
		t.Errorf("another start time: got %v, want ErrUnknown", err)
	}
	unix.Kill(quick.PID, unix.SIGKILL)
	if err := adopt(&workload{Launch: Launch{ID: "gone"}}, quick); err != nil && !errors.Is(err, ErrUnknown) {
		t.Errorf("ended process: got %v, want ErrUnknown", err)
	}
	os.WriteFile(n.dir+"/die", nil, 0o600)
	e := n.exit("c1")
	if kernelTellsExits() {
		if e.Code != 6 || e.Lost {
			t.Errorf("got %+v, want code 6", e)
		}
	} else if e.Code != 255 || !e.Lost {
		t.Errorf("got %+v, want 255, lost", e)
	}
	if got := w.text(t, "stdout"); got != "begin\nend\n" {
		t.Errorf("got %q, want both lines", got)
	}
	// And the new pair does all that the old did.
	n.start(n.sh("c2", "exit 1"))
	if e := n.exit("c2"); e.Code != 1 {
		t.Errorf("got %+v, want code 1", e)
	}
}

// kernelTellsExits: PIDFD_INFO_EXIT came with Linux 6.15.
func kernelTellsExits() bool {
	var u unix.Utsname
	unix.Uname(&u)
	m := regexp.MustCompile(`^(\d+)\.(\d+)`).FindStringSubmatch(unix.ByteSliceToString(u.Release[:]))
	if m == nil {
		return false
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return major > 6 || major == 6 && minor >= 15
}

// Promise 4.
func TestUpgradeKeepsPidChildrenAndConnections(t *testing.T) {
	n := newNode(t)
	all := n.counters(10)
	partial := n.sh("partial", "printf begin; sleep 2; echo end; exit 3")
	n.start(partial)
	before := n.hello()
	session := n.Client.session
	for range 3 {
		h, err := n.Upgrade(n.ctx())
		if err != nil {
			t.Fatal(err)
		}
		if h.KeeperPID != before.KeeperPID || h.AnchorPID != before.AnchorPID {
			t.Errorf("got %+v, want the pids of %+v", h, before)
		}
	}
	if n.Client.session != session || !n.Connected() {
		t.Error("the connection did not outlive the upgrade")
	}
	if e := n.exit("partial"); e.Code != 3 {
		t.Errorf("got %+v, want code 3", e)
	}
	if got := partial.text(t, "stdout"); got != "beginend\n" {
		t.Errorf("a line in progress: got %q, want it whole", got)
	}
	n.stop(all, true)
	for _, w := range all {
		w.verify(t, 0)
	}
	n.start(n.sh("later", "exit 2"))
	if e := n.exit("later"); e.Code != 2 {
		t.Errorf("got %+v, want code 2", e)
	}
	n.noOrphans()
}

func TestUpgradeToABadProgramIsRefused(t *testing.T) {
	n := newNode(t)
	all := n.counters(3)
	before := n.hello()
	bad := filepath.Join(n.dir, "bad")
	if err := os.WriteFile(bad, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for want, program := range map[string]string{"exec format error": bad, "status 127": "/bin/busybox"} {
		n.Client.config.KeeperBinary = program
		if _, err := n.Upgrade(n.ctx()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", program, err, want)
		}
	}
	n.Client.config.KeeperBinary = keeperBinary
	if after := n.hello(); after != before {
		t.Errorf("got %+v afterwards, want %+v", after, before)
	}
	n.stop(all, true)
	for _, w := range all {
		w.verify(t, 0)
	}
}

// Promise 3: as long as the exit can't be written down, the child stays a zombie.
func TestExitWaitsForItsFile(t *testing.T) {
	n := newNode(t)
	exits := filepath.Join(n.config.RunDir, wire.ExitsDir)
	for _, dead := range []bool{false, true} {
		blocker := filepath.Join(exits, fmt.Sprintf("c-%v.tmp", dead))
		if err := os.Mkdir(blocker, 0o700); err != nil { // in the way of the temporary file: EISDIR
			t.Fatal(err)
		}
		id := fmt.Sprintf("c-%v", dead)
		p := n.start(n.sh(id, "sleep 0.2; exit 8"))
		if dead {
			n.killKeeper()
		}
		time.Sleep(time.Second)
		if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID)); err != nil || !strings.Contains(string(text), ") Z ") {
			t.Errorf("dead keeper %v: got %q, %v, want a zombie", dead, text, err)
		}
		if _, ok, err := n.Exit(n.ctx(), id); ok || err != nil {
			t.Errorf("dead keeper %v: got an exit, %v, want none yet", dead, err)
		}
		// Others are reaped and answered meanwhile.
		other := n.sh("other-"+id, "exit 1")
		n.start(other)
		if e := n.exit(other.ID); e.Code != 1 {
			t.Errorf("got %+v, want code 1", e)
		}
		os.Remove(blocker)
		if e := n.exit(id); e.Code != 8 {
			t.Errorf("dead keeper %v: got %+v, want code 8", dead, e)
		}
	}
}
