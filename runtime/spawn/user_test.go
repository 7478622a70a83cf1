package spawn

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/podwright/podwright/runtime/launch"
)

// userNamespace makes one of 65536 ids from 100000 on.
func userNamespace(t testing.TB) *os.File {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to map ids")
	}
	holder := exec.Command("sleep", "1000")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true}
	if err := holder.Start(); err != nil {
		t.Skipf("no user namespaces: %v", err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid))
	holder.Process.Kill()
	holder.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// inside runs a script of the shell in the user namespace and gives what it prints.
func inside(t *testing.T, user *UserNamespace, flags uint64, script string) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	pid, pidfd, err := Start(&Command{
		Exe: int(openBusybox(t).Fd()), Argv: []string{"sh", "-c", script}, Fds: []int{int(null.Fd()), int(w.Fd()), int(w.Fd())},
		Flags: flags, Cgroup: -1, User: user,
	})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if status := wait(t, pid, pidfd); err != nil || status.ExitStatus() != 0 {
		t.Fatalf("%s: %v, status %#x, output %q", script, err, status, text)
	}
	return strings.TrimSpace(string(text))
}

func TestStartEntersAUserNamespace(t *testing.T) {
	ns := userNamespace(t)
	for _, flags := range []uint64{0, syscall.CLONE_NEWPID} {
		const script = `grep -E '^(Uid|Gid|Groups|CapEff|PPid):' /proc/self/status | tr -s '\t ' ' '; echo $$; cat /proc/self/uid_map; cat /proc/self/oom_score_adj; ls /proc/self/fd | wc -l`
		got := strings.Split(inside(t, &UserNamespace{Fd: int(ns.Fd()), OOMScore: 321}, flags, script), "\n")
		// procfs is the host's, and shows ids as its reader's namespace has them.
		for _, want := range []string{"Uid: 0 0 0 0", "Gid: 0 0 0 0"} {
			if !strings.Contains(strings.Join(got, "\n"), want) {
				t.Errorf("flags %#x: got %q, want %q in it", flags, got, want)
			}
		}
		if strings.Contains(strings.Join(got, "\n"), "CapEff: 0000000000000000") {
			t.Errorf("flags %#x: got %q, want capabilities", flags, got)
		}
		n := len(got)
		if uid := strings.Join(strings.Fields(got[n-3]), " "); uid != "0 100000 65536" {
			t.Errorf("flags %#x: uid_map %q", flags, uid)
		}
		if got[n-2] != "321" || got[n-1] != "4" { // 0 to 2 and the directory itself
			t.Errorf("flags %#x: oom_score_adj %q, %s descriptors; want 321, 4", flags, got[n-2], got[n-1])
		}
		if isInit := got[n-4] == "1"; isInit != (flags != 0) {
			t.Errorf("flags %#x: the process is %s in its PID namespace", flags, got[n-4])
		}
	}
}

// The process is the caller's own child, whoever cloned it, and its PID namespace belongs to the user namespace: only
// then may a procfs be mounted in there.
func TestPIDNamespaceBelongsToTheUserNamespace(t *testing.T) {
	ns := userNamespace(t)
	got := inside(t, &UserNamespace{Fd: int(ns.Fd())}, syscall.CLONE_NEWPID|syscall.CLONE_NEWNS,
		"mount -t proc proc /proc 2>&1; echo $?; grep PPid /proc/1/status | tr -s '\\t ' ' '")
	// The mount namespace is not the user namespace's, so this mount is refused; init unshares its own first.
	if !strings.Contains(got, "denied") && !strings.Contains(got, "permitted") {
		t.Errorf("mount in the caller's mount namespace: got %q, want a refusal", got)
	}
	if _, err := exec.LookPath("unshare"); err != nil {
		t.Skip("unshare(1) is missing")
	}
	got = inside(t, &UserNamespace{Fd: int(ns.Fd())}, syscall.CLONE_NEWPID, "unshare -m sh -c 'mount -t proc proc /proc && readlink /proc/self' 2>&1")
	if len(got) != 1 {
		t.Errorf("procfs mounted in the namespace: got %q, want a small process id", got)
	}
}

func TestStartNamesTheStepIntoAUserNamespace(t *testing.T) {
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, flags := range []uint64{0, syscall.CLONE_NEWPID} {
		command := &Command{Exe: int(openBusybox(t).Fd()), Argv: []string{"true"}, Flags: flags, Cgroup: -1, User: &UserNamespace{Fd: int(null.Fd())}}
		var step *launch.StepError
		if _, _, err := Start(command); !errors.As(err, &step) || step.Step != "enter user namespace" || step.Errno != syscall.EINVAL {
			t.Errorf("a file that is no namespace: got %v, want step \"enter user namespace\": EINVAL", err)
		}
		command.User, command.Exe = &UserNamespace{Fd: int(userNamespace(t).Fd())}, int(null.Fd())
		if _, _, err := Start(command); !errors.As(err, &step) || step.Step != "spawn" || step.Errno != syscall.EACCES {
			t.Errorf("a file that is no program: got %v, want step \"spawn\": EACCES", err)
		}
	}
	var status syscall.WaitStatus
	if pid, err := syscall.Wait4(-1, &status, 0x40000000|syscall.WNOHANG, nil); err != syscall.ECHILD {
		t.Errorf("a child is left: %d, %v", pid, err)
	}
}
