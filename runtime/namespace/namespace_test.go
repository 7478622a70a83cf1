package namespace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

var testDirs = Config{NetnsDir: "/run/netns", RunDir: "/run/podwright/ns", Holder: []string{"cat"}}

// newPins also checks, when the test is over, that nothing is left of it.
func newPins(tb testing.TB) *Pins {
	tb.Helper()
	needRoot(tb)
	p, err := New(testDirs)
	if err != nil {
		tb.Fatal(err)
	}
	before := takeStock(tb)
	tb.Cleanup(func() {
		checkStock(tb, before)
		if err := p.Close(); err != nil {
			tb.Error(err)
		}
	})
	return p
}

// stock is what this package could leak.
type stock struct {
	mounts, files, fds string
	threadNamespaces   string // of threads that are in other namespaces than the process
}

func takeStock(tb testing.TB) stock {
	tb.Helper()
	var s stock
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		tb.Fatal(err)
	}
	s.mounts = string(mounts)
	for _, dir := range []string{testDirs.NetnsDir, testDirs.RunDir} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			s.files += path + "\n"
			return err
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
	s.fds = strings.Join(links(tb, "/proc/self/fd/*"), "\n")
	for _, kind := range kinds {
		own, err := os.Readlink("/proc/self/ns/" + kind.String())
		if err != nil {
			tb.Fatal(err)
		}
		for _, link := range links(tb, "/proc/self/task/*/ns/"+kind.String()) {
			if !strings.HasSuffix(link, own) {
				s.threadNamespaces += link + "\n"
			}
		}
	}
	return s
}

func links(tb testing.TB, pattern string) []string {
	tb.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		tb.Fatal(err)
	}
	var out []string
	for _, path := range paths {
		if target, err := os.Readlink(path); err == nil { // what is gone by now is no leak
			out = append(out, path+" -> "+target)
		}
	}
	return out
}

// checkStock waits a little: a thread dies shortly after its goroutine.
func checkStock(tb testing.TB, want stock) {
	tb.Helper()
	var got stock
	for range 100 {
		if got = takeStock(tb); got == want {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	tb.Errorf("left behind:\ngot  %+v\nwant %+v", got, want)
}

func all(hostname string) Spec { return Spec{Net: true, IPC: true, UTS: true, Hostname: hostname} }

func inNamespace(tb testing.TB, p *Pins, id string, args ...string) string {
	tb.Helper()
	nsenter := []string{"--net=" + p.Path(id, Net), "--ipc=" + p.Path(id, IPC), "--uts=" + p.Path(id, UTS), "--"}
	out, err := exec.Command("nsenter", append(nsenter, args...)...).CombinedOutput()
	if err != nil {
		tb.Fatalf("nsenter %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// B51 (lo), and the whole life of a sandbox's namespaces.
func TestCreateMakesNamedConfiguredPinnedNamespaces(t *testing.T) {
	p := newPins(t)
	ctx := context.Background()
	spec := all("web-0")
	spec.Domainname = "example"
	forward := "1" // what the node's is not
	if own, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err == nil && strings.TrimSpace(string(own)) == forward {
		forward = "0"
	}
	spec.Sysctls = map[string]string{
		"net.ipv4.ip_local_port_range": "1024 65000",
		"net/ipv4/ip_forward":          forward,
		"kernel.shm_rmid_forced":       "1",
		"kernel.msgmax":                "16384",
		"fs.mqueue.msg_max":            "17",
	}
	if err := p.Create(ctx, "sb1", spec); err != nil {
		t.Fatal(err)
	}
	for _, kind := range spec.kinds() {
		if !p.Alive("sb1", kind) {
			t.Errorf("%s namespace isn't pinned", kind)
		}
		f, err := p.Open("sb1", kind)
		if err != nil {
			t.Fatal(err)
		}
		var pinned, own unix.Stat_t
		if err := errors.Join(unix.Fstat(int(f.Fd()), &pinned), unix.Stat("/proc/self/ns/"+kind.String(), &own)); err != nil {
			t.Fatal(err)
		}
		if pinned.Ino == own.Ino {
			t.Errorf("%s namespace is the test's own", kind)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, c := range []struct{ want, name, arg string }{
		{"web-0", "hostname", ""},
		{"example", "cat", "/proc/sys/kernel/domainname"},
		{forward, "cat", "/proc/sys/net/ipv4/ip_forward"},
		{"1024\t65000", "cat", "/proc/sys/net/ipv4/ip_local_port_range"},
		{"1", "cat", "/proc/sys/kernel/shm_rmid_forced"},
		{"16384", "cat", "/proc/sys/kernel/msgmax"},
		{"17", "cat", "/proc/sys/fs/mqueue/msg_max"},
	} {
		args := []string{c.name}
		if c.arg != "" {
			args = append(args, c.arg)
		}
		if got := inNamespace(t, p, "sb1", args...); got != c.want {
			t.Errorf("%v: got %q, want %q", args, got, c.want)
		}
	}
	for path, foreign := range map[string]string{"/proc/sys/kernel/msgmax": "16384", "/proc/sys/fs/mqueue/msg_max": "17", "/proc/sys/net/ipv4/ip_forward": forward} {
		if own, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(own)) == foreign {
			t.Errorf("the test's own %s: got %q, %v: want anything but the sandbox's", path, own, err)
		}
	}
	if out, err := exec.Command("ip", "netns", "exec", "sb1", "true").CombinedOutput(); err != nil {
		t.Errorf("ip netns exec: %v: %s", err, out)
	}
	checkList(t, p, "sb1")
	if err := p.Remove(ctx, "sb1"); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(ctx, "sb1"); err != nil {
		t.Errorf("second removal: %v", err)
	}
	checkList(t, p)
	if _, err := p.Open("sb1", Net); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open after removal: got %v, want fs.ErrNotExist", err)
	}
}

func checkList(tb testing.TB, p *Pins, want ...string) {
	tb.Helper()
	got, err := p.List()
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		tb.Errorf("list: got %v, %v; want %v", got, err, want)
	}
}

// B51: both families, without a plugin.
func TestRunReachesTheLoopbackOfTheSandbox(t *testing.T) {
	p := newPins(t)
	ctx := context.Background()
	if err := p.Create(ctx, "sb1", all("")); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Remove(ctx, "sb1"); err != nil {
			t.Error(err)
		}
	}()
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		var listener net.Listener
		err := p.Run(ctx, "sb1", func() (err error) {
			listener, err = net.Listen("tcp", address)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		err = p.Run(ctx, "sb1", func() error {
			conn, err := net.DialTimeout("tcp", listener.Addr().String(), 5*time.Second)
			if err != nil {
				return err
			}
			return conn.Close()
		})
		if err != nil {
			t.Errorf("%s inside: %v", address, err)
		}
		if conn, err := net.DialTimeout("tcp", listener.Addr().String(), time.Second); err == nil {
			_ = conn.Close()
			t.Errorf("%s outside: the sandbox's port answers", address)
		}
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
	}
	want := errors.New("from inside")
	if got := p.Run(ctx, "sb1", func() error { return want }); got != want {
		t.Errorf("error of fn: got %v, want %v", got, want)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := p.Run(cancelled, "sb1", func() error { t.Error("fn ran"); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

func TestSpecWithFewerNamespacesMakesOnlyThose(t *testing.T) {
	p := newPins(t)
	ctx := context.Background()
	if err := p.Create(ctx, "host", Spec{}); err != nil {
		t.Fatal(err)
	}
	checkList(t, p)
	if err := p.Create(ctx, "ipc", Spec{IPC: true}); err != nil {
		t.Fatal(err)
	}
	if p.Alive("ipc", Net) || !p.Alive("ipc", IPC) || p.Alive("ipc", UTS) {
		t.Errorf("want the IPC namespace and no other")
	}
	if err := p.Run(ctx, "ipc", func() error { return nil }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("run without a net namespace: got %v, want fs.ErrNotExist", err)
	}
	checkList(t, p, "ipc")
	if err := p.Remove(ctx, "ipc"); err != nil {
		t.Fatal(err)
	}
}

// One failure per step: afterwards everything is as before (newPins checks).
func TestFailedCreateLeavesNothing(t *testing.T) {
	p := newPins(t)
	ctx := context.Background()
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	withSysctl := func(key, value string) Spec {
		s := all("")
		s.Sysctls = map[string]string{key: value}
		return s
	}
	cases := []struct {
		name    string
		ctx     context.Context
		id      string
		spec    Spec
		want    string
		refused bool // by the kernel: a *SysctlError
	}{
		{"a bad id", ctx, "../x", all(""), "file name", false},
		{"a long hostname", ctx, "sb1", all(strings.Repeat("a", 65)), "64 bytes", false},
		{"a hostname on the host's UTS namespace", ctx, "sb1", Spec{Net: true, Hostname: "x"}, "UTS namespace is the host's", false},
		{"a sysctl of the host's IPC namespace", ctx, "sb1", Spec{Net: true, Sysctls: map[string]string{"kernel.sem": "1"}}, "ipc namespace is the host's", false},
		{"a sysctl of the node", ctx, "sb1", withSysctl("vm.swappiness", "1"), "not a setting of a sandbox", false},
		{"a sysctl this kernel lacks", ctx, "sb1", withSysctl("net.ipv4.no_such_thing", "1"), "no such setting", true},
		{"a sysctl that is a directory", ctx, "sb1", withSysctl("net.ipv4", "1"), "is a directory", true},
		{"a value the kernel refuses", ctx, "sb1", withSysctl("net.ipv4.ip_local_port_range", "70000 1"), "invalid argument", true},
		{"a sysctl twice", ctx, "sb1", Spec{Net: true, Sysctls: map[string]string{"net.ipv4.ip_forward": "1", "net/ipv4/ip_forward": "0"}}, "twice", false},
		{"a cancelled caller", cancelled, "sb1", all(""), "canceled", false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := p.Create(c.ctx, c.id, c.spec)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			var refused *SysctlError
			if got := errors.As(err, &refused); got != c.refused {
				t.Errorf("a SysctlError: got %t, want %t", got, c.refused)
			}
			checkList(t, p)
		})
	}
}

// The last step fails: the pins that were made go again.
func TestFailedPinTakesTheEarlierPinsAway(t *testing.T) {
	p := newPins(t)
	broken := &Pins{netnsDir: p.netnsDir, runDir: p.runDir, procFile: p.procFile}
	err := sys.OnThread(func() error {
		if err := os.Mkdir(broken.claim("sb1"), 0o700); err != nil {
			return err
		}
		return os.WriteFile(broken.Path("sb1", UTS), nil, 0o600) // where the third pin would go
	})
	if err != nil {
		t.Fatal(err)
	}
	err = sys.OnThread(func() error { return broken.populate(context.Background(), "sb1", all(""), nil) })
	if !errors.Is(err, fs.ErrExist) {
		t.Fatalf("got %v, want fs.ErrExist", err)
	}
	if !broken.Alive("sb1", Net) || !broken.Alive("sb1", IPC) {
		t.Error("the first two pins should have been made")
	}
	checkList(t, p, "sb1")
	if err := broken.Remove(context.Background(), "sb1"); err != nil {
		t.Fatal(err)
	}
}

func TestSecondCreateChangesNothing(t *testing.T) {
	p := newPins(t)
	ctx := context.Background()
	if err := p.Create(ctx, "sb1", all("first")); err != nil {
		t.Fatal(err)
	}
	if err := p.Create(ctx, "sb1", all("second")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second: got %v, want fs.ErrExist", err)
	}
	if got := inNamespace(t, p, "sb1", "hostname"); got != "first" {
		t.Errorf("hostname: got %q, want the first", got)
	}
	if err := p.Remove(ctx, "sb1"); err != nil {
		t.Fatal(err)
	}
}

func TestForeignNetnsOfTheSameNameIsNotTouched(t *testing.T) {
	p := newPins(t)
	if out, err := exec.Command("ip", "netns", "add", "foreign").CombinedOutput(); err != nil {
		t.Fatalf("ip netns add: %v: %s", err, out)
	}
	if err := p.Create(context.Background(), "foreign", all("")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want fs.ErrExist", err)
	}
	if !p.Alive("foreign", Net) {
		t.Error("the foreign namespace is gone")
	}
	checkList(t, p)
	if out, err := exec.Command("ip", "netns", "del", "foreign").CombinedOutput(); err != nil {
		t.Fatalf("ip netns del: %v: %s", err, out)
	}
}

func TestPathOfImpossibleNamesIsEmpty(t *testing.T) {
	p := &Pins{netnsDir: "/run/netns", runDir: "/run/podwright/ns"}
	for _, id := range []string{"", ".", "..", "a/b", "-x", "a\x00b", "_a", ".a", "a b", "aé", "é", "-", strings.Repeat("a", 129)} {
		if got := p.Path(id, Net); got != "" {
			t.Errorf("Path(%q): got %q", id, got)
		}
	}
	for _, id := range []string{"a", "Z", "0", "a_.-", strings.Repeat("a", 128)} {
		if got := p.Path(id, IPC); got != "/run/podwright/ns/"+id+"/ipc" {
			t.Errorf("Path(%q): got %q", id, got)
		}
	}
	if got := p.Path("a", Kind(9)); got != "" {
		t.Errorf("kind 9: got %q", got)
	}
}
