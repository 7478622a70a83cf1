package namespace

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

func mapped(outside, length uint32) *UserMap {
	return &UserMap{UIDs: []IDMap{{0, outside, length}}, GIDs: []IDMap{{0, outside + 1000, length}}}
}

// NS_GET_USERNS gives the namespace that owns another.
func ownerOf(t *testing.T, f *os.File) uint64 {
	t.Helper()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	return inode(t, fd)
}

func inode(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestCreateMakesNamespacesThatBelongToAUserNamespace(t *testing.T) {
	p := newPins(t)
	ctx := context.Background()
	spec := all("web-0")
	spec.User = mapped(200000, 65536)
	spec.Sysctls = map[string]string{
		"net.ipv4.ip_forward": "1", "kernel.msgmax": "16384", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "17",
	}
	if err := p.Create(ctx, "sb1", spec); err != nil {
		t.Fatal(err)
	}
	defer p.Remove(ctx, "sb1")
	user, err := p.Open("sb1", User)
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	for _, kind := range []Kind{Net, IPC, UTS} {
		f, err := p.Open("sb1", kind)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := ownerOf(t, f), inode(t, int(user.Fd())); got != want {
			t.Errorf("owner of the %s namespace: got user namespace %d, want %d", kind, got, want)
		}
		f.Close()
	}
	for file, want := range map[string]string{
		"/proc/sys/net/ipv4/ip_forward": "1", "/proc/sys/kernel/msgmax": "16384", "/proc/sys/kernel/shm_rmid_forced": "1",
		"/proc/sys/fs/mqueue/msg_max": "17", "/proc/sys/kernel/hostname": "web-0",
	} {
		if got := inNamespace(t, p, "sb1", "cat", file); got != want {
			t.Errorf("%s: got %q, want %q", file, got, want)
		}
	}
	if st := queuesOf(t, p, "sb1"); st.Uid != 200000 || st.Gid != 201000 || st.Mode != unix.S_IFDIR|0o1777 {
		t.Errorf("root of mqueue: got owner %d:%d, mode %o, want the namespace's root to own it", st.Uid, st.Gid, st.Mode)
	}
	if got := inNamespace(t, p, "sb1", "ip", "-br", "addr", "show", "lo"); !strings.Contains(got, "127.0.0.1/8") {
		t.Errorf("lo: got %q, want it up", got)
	}
	for what, want := range map[string]string{"uid_map": "0 200000 65536", "gid_map": "0 201000 65536", "setgroups": "allow"} {
		got := inNamespace(t, p, "sb1", "nsenter", "--user="+p.Path("sb1", User), "cat", "/proc/self/"+what)
		if strings.Join(strings.Fields(got), " ") != want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	if err := p.Remove(ctx, "sb1"); err != nil {
		t.Fatal(err)
	}
	if p.Alive("sb1", User) {
		t.Error("the user namespace is still pinned")
	}
}

// queuesOf looks at the root of the mqueue file system of an IPC namespace.
func queuesOf(t *testing.T, p *Pins, id string) (st unix.Stat_t) {
	t.Helper()
	ipc, err := p.Open(id, IPC)
	if err != nil {
		t.Fatal(err)
	}
	defer ipc.Close()
	err = sys.OnThread(func() error {
		if err := unix.Setns(int(ipc.Fd()), unix.CLONE_NEWIPC); err != nil {
			return err
		}
		fs, err := sys.OpenFS("mqueue")
		if err != nil {
			return err
		}
		defer fs.Close()
		if err := fs.Create(); err != nil {
			return err
		}
		root, err := fs.Mount(0)
		if err != nil {
			return err
		}
		defer root.Close()
		return unix.Fstat(int(root.Fd()), &st)
	})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestCreateRefusesAMappingAndLeavesNothing(t *testing.T) {
	p := newPins(t)
	tests := []struct {
		name       string
		uids, gids []IDMap
	}{
		{"no mapping", nil, nil},
		{"uids alone", []IDMap{{0, 100000, 10}}, nil},
		{"no length", []IDMap{{0, 100000, 0}}, []IDMap{{0, 100000, 10}}},
		{"beyond the last id", []IDMap{{0, 1<<32 - 10, 10}}, []IDMap{{0, 100000, 10}}},
		{"overlap inside", []IDMap{{0, 100000, 10}, {9, 200000, 10}}, []IDMap{{0, 100000, 10}}},
		{"overlap outside", []IDMap{{0, 100000, 10}, {20, 100009, 10}}, []IDMap{{0, 100000, 10}}},
	}
	for _, test := range tests {
		spec := all("")
		spec.User = &UserMap{UIDs: test.uids, GIDs: test.gids}
		if err := p.Create(context.Background(), "sb1", spec); !errors.Is(err, ErrMapping) {
			t.Errorf("%s: got %v, want %v", test.name, err, ErrMapping)
		}
		checkList(t, p)
	}
}

// What only the kernel can refuse: here a program that can't be started in the namespace.
func TestCreateLeavesNothingWhenTheHolderFails(t *testing.T) {
	p := newPins(t)
	for _, holder := range [][]string{nil, {"/no/such/program"}} {
		p.holder = holder
		spec := all("")
		spec.User = mapped(100000, 65536)
		if err := p.Create(context.Background(), "sb1", spec); err == nil || errors.Is(err, ErrMapping) {
			t.Errorf("holder %q: got %v, want an error that blames no mapping", holder, err)
		}
		checkList(t, p)
	}
}

func TestUserNamespaceLivesWithItsFileOnly(t *testing.T) {
	p := newPins(t)
	f, err := p.UserNamespace(context.Background(), *mapped(300000, 10))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := checkNamespace(int(f.Fd()), User); err != nil {
		t.Error(err)
	}
	checkList(t, p)
}
