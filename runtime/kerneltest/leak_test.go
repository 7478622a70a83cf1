package kerneltest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const ownNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID

// Each kind of thing that a runtime can forget is seen, named, and no longer seen once it is gone.
func TestOracleSeesWhatIsLeft(t *testing.T) {
	Root(t)
	Subprocess(t, ownNamespaces, func(t *testing.T) {
		dir := t.TempDir()
		scope := Scope{Dirs: []string{dir}, Programs: map[string]int{"test": os.Getpid()}, Ancestor: os.Getpid()}
		steps := []struct {
			name, want string
			leave      func() (undo func())
		}{
			{"file", "file " + dir + "/left", func() func() {
				path := filepath.Join(dir, "left")
				must(t, os.WriteFile(path, nil, 0o600))
				return func() { must(t, os.Remove(path)) }
			}},
			{"mount", "mount of tmpfs on /mnt", func() func() {
				must(t, unix.Mount("left", "/mnt", "tmpfs", 0, ""))
				return func() { must(t, unix.Unmount("/mnt", 0)) }
			}},
			{"interface", "interface left0", func() func() {
				link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "left0"}}
				must(t, netlink.LinkAdd(link))
				return func() { must(t, netlink.LinkDel(link)) }
			}},
			{"open file", "open file of test: pipe:", func() func() {
				r, w, err := os.Pipe()
				must(t, err)
				return func() { r.Close(); w.Close() }
			}},
			{"process", "process sleep 100", func() func() {
				cmd := exec.Command("sleep", "100")
				must(t, cmd.Start())
				return func() { cmd.Process.Kill(); cmd.Wait() }
			}},
			{"zombie", "zombie sleep", func() func() {
				cmd := exec.Command("sleep", "0")
				must(t, cmd.Start())
				waitFor(t, func() bool { p, err := ReadProcess(cmd.Process.Pid); return err == nil && p.State == 'Z' })
				return func() { cmd.Wait() }
			}},
		}
		before := scope.MustTake(t)
		for _, step := range steps {
			undo := step.leave()
			diff := strings.Join(before.Diff(scope.MustTake(t)), "\n")
			if !strings.Contains(diff, step.want) || !strings.Contains(diff, "left: ") {
				t.Errorf("%s left: got %q, want a line with %q", step.name, diff, step.want)
			}
			undo()
			scope.Settled(t, before, 5*time.Second)
		}
	})
}

func TestOracleSeesCgroupsOfEveryHierarchy(t *testing.T) {
	Root(t)
	lines, err := mountLines("self")
	if err != nil {
		t.Fatal(err)
	}
	name := "podwright-kerneltest-" + filepath.Base(t.TempDir())
	scope, made := Scope{Cgroup: name}, 0
	before := scope.MustTake(t)
	for _, m := range lines {
		if m.fsType != "cgroup" && m.fsType != "cgroup2" {
			continue
		}
		path := filepath.Join(m.point, name)
		if err := os.Mkdir(path, 0o755); err != nil {
			continue // one hierarchy may be mounted twice
		}
		defer os.Remove(path)
		made++
	}
	if made == 0 {
		t.Skip("a cgroup hierarchy that root may write is missing")
	}
	if got := len(before.Diff(scope.MustTake(t))); got < made {
		t.Errorf("left groups seen: got %d, want at least %d", got, made)
	}
}

func TestOracleSeesWhatIsGone(t *testing.T) {
	before := Snapshot{"mount of tmpfs on /mnt": 1, "process sleep": 2, "open file of daemon: pipe:": 1}
	got := strings.Join(before.Diff(Snapshot{"process sleep": 1}), "; ")
	if want := "gone: 1 × mount of tmpfs on /mnt; gone: 1 × process sleep"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSubprocessHasNamespacesOfItsOwn(t *testing.T) {
	Root(t)
	Subprocess(t, ownNamespaces, func(t *testing.T) {
		interfaces, err := net.Interfaces()
		must(t, err)
		if len(interfaces) > 1 || os.Getpid() != 1 {
			t.Errorf("got interfaces %v and pid %d, want lo and pid 1", interfaces, os.Getpid())
		}
		if p, err := ReadProcess(1); err != nil || p.PID != os.Getpid() {
			t.Errorf("/proc is not the subprocess's: %+v, %v", p, err)
		}
	})
}

func TestKernelVersionsAreComparedAsNumbers(t *testing.T) {
	for _, test := range []struct {
		release, version string
		want             bool
	}{{"6.1.0-18-amd64", "6.15", false}, {"6.18.2", "6.15", true}, {"10.0-rc1", "6.15", true}, {"5.15.0", "5.15", true}, {"odd", "5.15", false}} {
		if got := atLeast(test.release, test.version); got != test.want {
			t.Errorf("atLeast(%q, %q): got %v, want %v", test.release, test.version, got, test.want)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func waitFor(t *testing.T, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within 10 s")
		}
	}
}
