package podfiles

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
}

// newFiles makes Files in a directory of the test's own, and checks at the end that no mount of it is left.
func newFiles(t *testing.T) *Files {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	resolv := filepath.Join(dir, "host-resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 192.0.2.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "sandboxes")
	f, err := New(Config{Root: root, HostResolvConf: resolv, HostHosts: filepath.Join(dir, "absent")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for mountsBelow(t, root) > 0 {
			if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", root, err)
				return
			}
		}
	})
	return f
}

// mountsBelow counts the mounts at and below dir in this mount namespace (proc_pid_mountinfo(5)).
func mountsBelow(t *testing.T, dir string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, line := range strings.Split(string(b), "\n") {
		if fields := strings.Fields(line); len(fields) > 4 && (fields[4] == dir || strings.HasPrefix(fields[4], dir+"/")) {
			n++
		}
	}
	return n
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestCreateMakesTheFilesAndRemoveLeavesNothing(t *testing.T) {
	f := newFiles(t)
	ctx := context.Background()
	before := mountsBelow(t, f.config.Root)
	p, err := f.Create(ctx, "s1", Spec{Hostname: "web", DNS: &DNS{
		Servers: []string{"10.96.0.10", "fd00::a"}, Searches: []string{"default.svc.cluster.local", "."}, Options: []string{"ndots:5"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if p != f.Paths("s1", false) {
		t.Errorf("got %+v, want what Paths says", p)
	}
	if got, want := read(t, p.ResolvConf), "search default.svc.cluster.local .\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\n"; got != want {
		t.Errorf("resolv.conf: got %q, want %q", got, want)
	}
	if got := read(t, p.Hostname); got != "web\n" {
		t.Errorf("hostname: got %q", got)
	}
	if got := read(t, p.Hosts); !strings.Contains(got, "127.0.0.1\tlocalhost\n") {
		t.Errorf("hosts: got %q", got)
	}
	for path, want := range map[string]fs.FileMode{p.Shm: fs.ModeDir | fs.ModeSticky | 0o777, p.Hosts: 0o644, p.ResolvConf: 0o644} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: got %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	if ids, err := f.List(); err != nil || len(ids) != 1 || ids[0] != "s1" {
		t.Errorf("list: got %v, %v", ids, err)
	}
	for range 2 { // removing again is no error
		if err := f.Remove(ctx, "s1"); err != nil {
			t.Fatal(err)
		}
	}
	if got := mountsBelow(t, f.config.Root); got != before {
		t.Errorf("got %d mounts, had %d", got, before)
	}
	if left, err := os.ReadDir(f.config.Root); err != nil || len(left) != 0 {
		t.Errorf("got %v, %v, want nothing left", left, err)
	}
}

func TestShmHasItsSizeAndFlags(t *testing.T) {
	f := newFiles(t)
	p, err := f.Create(context.Background(), "s1", Spec{Hostname: "web", ShmBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Remove(context.Background(), "s1")
	var st unix.Statfs_t
	if err := unix.Statfs(p.Shm, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type != unix.TMPFS_MAGIC {
		t.Errorf("got file system %#x, want tmpfs", st.Type)
	}
	const flags = unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
	if st.Flags&flags != flags {
		t.Errorf("got flags %#x, want nosuid, nodev, noexec", st.Flags)
	}
	if err := os.WriteFile(filepath.Join(p.Shm, "fits"), make([]byte, 1<<20), 0o600); err != nil {
		t.Errorf("1 MiB: %v", err)
	}
	if err := os.WriteFile(filepath.Join(p.Shm, "more"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("another MiB: got %v, want ENOSPC", err)
	}
}

// A container gets clones: of the files and of the directory, while a bind of what lies above carries nothing along.
func TestFilesCanBeClonedAndARecursiveBindCarriesNoneAlong(t *testing.T) {
	f := newFiles(t)
	p, err := f.Create(context.Background(), "s1", Spec{Hostname: "web"})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Remove(context.Background(), "s1")
	for _, path := range []string{p.Hosts, p.Shm} {
		fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			t.Errorf("clone %s: %v", path, err)
			continue
		}
		unix.Close(fd)
	}
	above := filepath.Dir(f.config.Root)
	copied := t.TempDir()
	if err := unix.Mount(above, copied, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(copied, unix.MNT_DETACH)
	if n := mountsBelow(t, copied); n != 1 {
		t.Errorf("got %d mounts in a recursive bind, want 1", n)
	}
}

func TestCreateReplacesWhatAnEarlierAttemptLeft(t *testing.T) {
	f := newFiles(t)
	ctx := context.Background()
	for _, name := range []string{"first", "second"} {
		p, err := f.Create(ctx, "s1", Spec{Hostname: name})
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, p.Hostname); got != name+"\n" {
			t.Errorf("got %q, want %q", got, name)
		}
	}
	if n := mountsBelow(t, filepath.Join(f.config.Root, "s1")); n != 1 {
		t.Errorf("got %d mounts, want 1", n)
	}
	if err := f.Remove(ctx, "s1"); err != nil {
		t.Error(err)
	}
}

// The host's files are taken where the sandbox is on its network, and without a DNS configuration; an empty one
// counts as none, as with the other runtimes.
func TestHostFilesAreCopied(t *testing.T) {
	f := newFiles(t)
	ctx := context.Background()
	if err := os.WriteFile(f.config.HostHosts, []byte("192.0.2.7 node\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, dns := range map[string]*DNS{"absent": nil, "empty": {}} {
		p, err := f.Create(ctx, "s1", Spec{Hostname: "node", HostNetwork: true, HostIPC: true, DNS: dns})
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, p.ResolvConf); got != "nameserver 192.0.2.1\n" {
			t.Errorf("%s: resolv.conf: got %q", name, got)
		}
		if got := read(t, p.Hosts); got != "192.0.2.7 node\n" {
			t.Errorf("%s: hosts: got %q", name, got)
		}
		if p.Shm != "/dev/shm" {
			t.Errorf("%s: shm: got %s, want the host's", name, p.Shm)
		}
	}
	if err := f.Remove(ctx, "s1"); err != nil {
		t.Error(err)
	}
}

func TestValuesThatWouldBecomeLinesAreRefusedAndLeaveNothing(t *testing.T) {
	f := newFiles(t)
	ctx := context.Background()
	for name, spec := range map[string]Spec{
		"newline in search":   {Hostname: "web", DNS: &DNS{Searches: []string{"a\nnameserver 6.6.6.6"}}},
		"space in server":     {Hostname: "web", DNS: &DNS{Servers: []string{"1.1.1.1 2.2.2.2"}}},
		"NUL in option":       {Hostname: "web", DNS: &DNS{Options: []string{"a\x00"}}},
		"empty search":        {Hostname: "web", DNS: &DNS{Searches: []string{""}}},
		"newline in hostname": {Hostname: "web\n127.0.0.1 bank"},
		"no hostname":         {},
		"long hostname":       {Hostname: strings.Repeat("a", 65)},
		"negative size":       {Hostname: "web", ShmBytes: -1},
	} {
		if _, err := f.Create(ctx, "s1", spec); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	for _, id := range []string{"", "..", "a/b", "a\x00"} {
		if _, err := f.Create(ctx, id, Spec{Hostname: "web"}); !errors.Is(err, ErrInvalid) {
			t.Errorf("id %q: got %v, want ErrInvalid", id, err)
		}
		if err := f.Remove(ctx, id); !errors.Is(err, ErrInvalid) {
			t.Errorf("remove id %q: got %v, want ErrInvalid", id, err)
		}
	}
	if ids, err := f.List(); err != nil || len(ids) != 0 {
		t.Errorf("got %v, %v, want nothing left", ids, err)
	}
}

// A failure after the mount leaves neither mount nor directory.
func TestAFailedCreateLeavesNothing(t *testing.T) {
	f := newFiles(t)
	before := mountsBelow(t, f.config.Root)
	err := f.fill("s1", Spec{Hostname: "web"}, map[string]string{"no/such/directory": "x"})
	if err == nil {
		t.Fatal("a file in a missing directory was made")
	}
	if err := f.remove("s1"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := f.Create(ctx, "s2", Spec{Hostname: "web"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if got := mountsBelow(t, f.config.Root); got != before {
		t.Errorf("got %d mounts, had %d", got, before)
	}
}

func TestNewTwiceMakesOneMount(t *testing.T) {
	f := newFiles(t)
	if _, err := New(f.config); err != nil {
		t.Fatal(err)
	}
	if n := mountsBelow(t, f.config.Root); n != 1 {
		t.Errorf("got %d mounts, want 1", n)
	}
}

func BenchmarkCreateRemove(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("mounting a tmpfs needs root")
	}
	root := filepath.Join(b.TempDir(), "sandboxes")
	f, err := New(Config{Root: root})
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Unmount(root, unix.MNT_DETACH)
	ctx := context.Background()
	for b.Loop() {
		if _, err := f.Create(ctx, "s1", Spec{Hostname: "web"}); err != nil {
			b.Fatal(err)
		}
		if err := f.Remove(ctx, "s1"); err != nil {
			b.Fatal(err)
		}
	}
}
