package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/systemd"
)

// fakeUnits does with groups what systemd does: makes a scope's around its process, and removes it once it is empty. What
// systemd itself does is for the guest to show (test/e2e/vm/guesttest).
type fakeUnits struct {
	t      *testing.T
	parent string // directory of the slice
	fail   error  // of the next start
	lose   bool   // the answer of the next start
	busy   int    // so many starts find the unit of before
	stay   bool   // empty scopes stay until they are stopped

	mu      sync.Mutex
	started []systemd.Scope
	stopped []string
}

func (f *fakeUnits) StartScope(_ context.Context, s systemd.Scope) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started = append(f.started, s)
	if f.busy > 0 {
		f.busy--
		return systemd.ErrExists
	}
	if err := f.fail; err != nil {
		f.fail = nil
		return err
	}
	dir := filepath.Join(f.parent, s.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(s.PID)), 0); err != nil {
		return err
	}
	go f.collect(dir) // ends with the scope, which the test's clean-up ends
	if f.lose {
		f.lose = false
		return errors.New("connection lost")
	}
	return nil
}

func (f *fakeUnits) collect(dir string) {
	for ; ; time.Sleep(time.Millisecond) {
		events, err := readFlatKeyed(filepath.Join(dir, "cgroup.events"))
		f.mu.Lock()
		stay := f.stay
		f.mu.Unlock()
		if err != nil {
			return
		}
		if events["populated"] == 0 && !stay {
			_, _ = removeTree(dir)
		}
	}
}

func (f *fakeUnits) StopUnit(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped, f.stay = append(f.stopped, name), false
	return nil
}

// initProgram is podwright-init as make build links it.
var initProgram = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("PODWRIGHT_BIN"); dir != "" {
		return filepath.Join(dir, "podwright-init"), nil
	}
	program := filepath.Join(os.TempDir(), fmt.Sprintf("podwright-init-%d", os.Getpid()))
	args := []string{"build", "-o", program}
	if runtime.GOARCH == "amd64" {
		args = append(args, "-ldflags", "-E github.com/podwright/podwright/runtime/spawn.entry")
	}
	cmd := exec.Command("go", append(args, "github.com/podwright/podwright/cmd/podwright-init")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return program, err
})

// scopeManager is a manager with the systemd driver on a v2 tree, and a pod in a slice of the test's own.
func scopeManager(t *testing.T) (*Manager, *fakeUnits, string) {
	t.Helper()
	m := unifiedManager(t)
	program, err := initProgram()
	if err != nil {
		t.Fatal(err)
	}
	slice := groupName(t, m) + "/pods.slice"
	units := &fakeUnits{t: t, parent: filepath.Join(m.root, slice)}
	m.driver = DriverSystemd
	m.scopes.units, m.scopes.program = units, program
	return m, units, path.Join(slice, "podwright-0123.scope")
}

// holders are the processes that this test's manager has started and not waited for.
func holders(t *testing.T) []string {
	t.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, entry := range entries {
		text, err := os.ReadFile(entry)
		if err != nil {
			continue
		}
		after := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		comm := string(text[strings.IndexByte(string(text), '('):])
		if len(after) > 1 && after[1] == strconv.Itoa(os.Getpid()) && (strings.HasPrefix(comm, "(podwright-hold") || strings.HasPrefix(comm, "(podwright-init")) {
			list = append(list, path.Base(path.Dir(entry))+" "+after[0])
		}
	}
	return list
}

func TestScopeHoldsUntilItsPodIsRemoved(t *testing.T) {
	m, units, scope := scopeManager(t)
	ctx := testContext(t)
	first, second := scope+"/c1", scope+"/c2"
	for _, container := range []string{first, second, first} {
		if err := m.Create(ctx, container, nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(units.started) != 1 {
		t.Fatalf("systemd was asked %d times, want once for all containers of a pod", len(units.started))
	}
	got := units.started[0]
	if got.Name != "podwright-0123.scope" || got.Slice != "pods.slice" || got.PID == 0 || got.StopTimeout != DefaultStopTimeout ||
		fmt.Sprint(got.Before) != "["+systemd.PodsTarget+"]" || fmt.Sprint(got.After) != "["+systemd.KeeperUnit+"]" {
		t.Errorf("asked for %+v", got)
	}
	if pids, err := m.Pids(scope); err != nil || len(pids) != 1 || pids[0] != got.PID {
		t.Errorf("processes of the scope: %v, %v, want the holder %d", pids, err, got.PID)
	}
	if own := readFile(t, m, "cgroup", scope, "cgroup.procs"); own != "" {
		t.Errorf("the scope itself has process %s: its containers could have no controllers", own)
	}
	cmd, out := join(t, m, first, "echo in; exec sleep 60")
	needLine(t, out, "in")
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	waitFor(t, "the container is empty", func() bool { populated, err := m.Populated(first); return err == nil && !populated })
	// Its counters can be read for as long as the pod is there.
	if _, err := os.Stat(filepath.Join(m.root, first, "cgroup.events")); err != nil {
		t.Errorf("the group went with its last process: %v", err)
	}
	if err := m.Remove(ctx, first); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := m.RemovePod(ctx, scope); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(m.root, scope)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the scope is still there: %v", err)
	}
	if left := holders(t); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if len(units.stopped) > 0 {
		t.Errorf("systemd was asked to stop %v, which it does by itself", units.stopped)
	}
}

func TestContainersOfAPodShareOneStartOfItsScope(t *testing.T) {
	m, units, scope := scopeManager(t)
	ctx := testContext(t)
	var wait sync.WaitGroup
	for i := range 10 {
		wait.Go(func() {
			if err := m.Create(ctx, fmt.Sprintf("%s/c%d", scope, i), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if len(units.started) != 1 {
		t.Errorf("systemd was asked %d times, want once", len(units.started))
	}
	if err := m.RemovePod(ctx, scope); err != nil {
		t.Error(err)
	}
}

func TestScopeThatDoesNotStartLeavesNothing(t *testing.T) {
	m, units, scope := scopeManager(t)
	ctx := testContext(t)
	units.fail = errors.New("refused")
	if err := m.Create(ctx, scope+"/c1", nil); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v, want systemd's answer", err)
	}
	if left := holders(t); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if _, err := os.Stat(filepath.Join(m.root, scope)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a group is left: %v", err)
	}
	// The answer was lost, or the unit of before is still on its way out: the same call comes to its end.
	units.lose, units.busy = true, 3
	if err := m.Create(ctx, scope+"/c1", nil); err != nil {
		t.Error(err)
	}
	if err := m.RemovePod(ctx, scope); err != nil {
		t.Error(err)
	}
	m.scopes.units = nil
	if err := m.Create(ctx, scope+"/c1", nil); !errors.Is(err, ErrNotSupported) {
		t.Errorf("without systemd: got %v, want ErrNotSupported", err)
	}
	if err := m.RemovePod(ctx, scope); err != nil {
		t.Errorf("a scope that is not there: %v", err)
	}
}

func TestHolderIsReplacedAndItsContainersStay(t *testing.T) {
	m, units, scope := scopeManager(t)
	ctx := testContext(t)
	if err := m.Create(ctx, scope+"/c1", nil); err != nil {
		t.Fatal(err)
	}
	cmd, out := join(t, m, scope+"/c1", "echo in; exec sleep 60")
	needLine(t, out, "in")
	kill := func() {
		t.Helper()
		if err := m.Kill(ctx, scope+"/"+holdGroup); err != nil {
			t.Fatal(err)
		}
	}
	kill()
	if err := m.Create(ctx, scope+"/c2", nil); err != nil || !m.scopes.held(scope) {
		t.Fatalf("a container after its holder was ended: %v, held %v", err, m.scopes.held(scope))
	}
	if len(units.started) != 1 {
		t.Errorf("systemd was asked %d times, want once: the scope is there", len(units.started))
	}
	if pids, err := m.Pids(scope + "/c1"); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("the container that ran has %v, %v", pids, err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	kill() // now the scope goes
	waitFor(t, "the scope goes", func() bool { _, err := os.Stat(filepath.Join(m.root, scope)); return err != nil })
	if err := m.Create(ctx, scope+"/c3", nil); err != nil {
		t.Fatal(err)
	}
	if len(units.started) != 2 {
		t.Errorf("systemd was asked %d times, want twice", len(units.started))
	}
	if err := m.RemovePod(ctx, scope); err != nil {
		t.Error(err)
	}
	if left := holders(t); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}

// A daemon that dies before the scope is held takes the holder with it.
func TestHolderEndsWithADaemonThatDies(t *testing.T) {
	needRoot(t)
	program, err := initProgram()
	if err != nil {
		t.Fatal(err)
	}
	h, err := startHolder(program)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	if left := holders(t); len(left) != 1 || strings.HasSuffix(left[0], "Z") {
		t.Fatalf("holders: %v, want one that waits", left)
	}
	h.word.Close() // as the kernel does for who dies
	state, err := h.process.Wait()
	if err != nil || state.ExitCode() != 1 {
		t.Errorf("it ended as %v, %v, want exit code 1", state, err)
	}

	h, err = startHolder(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.stay(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "it closes what it does not need", func() bool {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.process.Pid))
		return err == nil && len(fds) == 2
	})
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", h.process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var pss int
	for line := range strings.Lines(string(rollup)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			pss, _ = strconv.Atoi(f[1])
		}
	}
	t.Logf("a holder has %d kB", pss)
	if pss == 0 || pss > 100 && runtime.GOARCH == "amd64" {
		t.Errorf("a holder has %d kB, want no more than a few pages", pss)
	}
	if err := unix.Kill(h.process.Pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := h.process.Wait(); err != nil {
		t.Error(err)
	}
}

func TestSystemdIsAskedToStopWhatItForgets(t *testing.T) {
	m, units, scope := scopeManager(t)
	ctx := testContext(t)
	if err := m.Create(ctx, scope+"/c1", nil); err != nil {
		t.Fatal(err)
	}
	units.mu.Lock()
	units.stay = true
	units.mu.Unlock()
	if err := m.RemovePod(ctx, scope); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(units.stopped) != "[podwright-0123.scope]" {
		t.Errorf("stopped %v, want the scope", units.stopped)
	}
	if err := m.RemovePod(ctx, path.Dir(scope)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a slice: got %v, want it refused", err)
	}
}

func TestFindLooksIntoScopes(t *testing.T) {
	m, _, scope := scopeManager(t)
	ctx := testContext(t)
	if err := m.Create(ctx, scope+"/c1", nil); err != nil {
		t.Fatal(err)
	}
	slice := path.Dir(scope)
	for id, want := range map[string]string{"c1": scope + "/c1", "c2": slice + "/c2"} {
		if got := m.Find(slice, id); got != want {
			t.Errorf("Find(%q): got %q, want %q", id, got, want)
		}
	}
	if err := m.RemovePod(ctx, scope); err != nil {
		t.Error(err)
	}
}
