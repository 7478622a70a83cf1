package namespace

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a crash leaves: a claim, a bare file, a pin without its claim.
func TestRemoveFinishesWhatACrashLeft(t *testing.T) {
	p := newPins(t)
	ctx := context.Background()
	if err := os.Mkdir(p.claim("claimed"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := p.Create(ctx, "unmounted", all("")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(p.Path("unmounted", Net), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if p.Alive("unmounted", Net) {
		t.Error("a bare file counts as a namespace")
	}
	if err := p.Create(ctx, "wrong", all("")); err != nil {
		t.Fatal(err)
	}
	// A namespace of another kind on top of the pin, as no sane tool would do.
	if err := unix.Mount(p.Path("unmounted", UTS), p.Path("wrong", Net), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if p.Alive("wrong", Net) {
		t.Error("a UTS namespace counts as a net namespace")
	}
	checkList(t, p, "claimed", "unmounted", "wrong")
	for _, id := range []string{"claimed", "unmounted", "wrong", "never"} {
		if err := p.Remove(ctx, id); err != nil {
			t.Errorf("remove %s: %v", id, err)
		}
	}
	checkList(t, p)
}

// A service that copied the mount table while the sandbox lived (PrivateTmp, a
// hostPath of /run) must not keep the namespaces alive after their removal.
func TestRemoveReachesCopiesInOtherMountNamespaces(t *testing.T) {
	p := newPins(t)
	ctx := context.Background()
	if err := p.Create(ctx, "sb1", all("")); err != nil {
		t.Fatal(err)
	}
	holder := exec.Command("unshare", "--mount", "--propagation", "private", "sleep", "60")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Process.Kill(); _ = holder.Wait() }()
	mountinfo := fmt.Sprintf("/proc/%d/mountinfo", holder.Process.Pid)
	pins := func() int {
		data, err := os.ReadFile(mountinfo)
		if err != nil {
			t.Fatal(err)
		}
		own, _ := os.Readlink("/proc/self/ns/mnt")
		theirs, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", holder.Process.Pid))
		if own == theirs {
			return -1 // not yet unshared
		}
		return strings.Count(string(data), " nsfs ")
	}
	waitFor(t, "the copy", func() bool { return pins() == len(all("").kinds()) })
	// In this mount namespace: a recursive bind carries no pin of the private directory.
	if err := os.Mkdir("/run/copy", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/run", "/run/copy", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(ctx, "sb1"); err != nil {
		t.Errorf("remove: %v", err)
	}
	waitFor(t, "the pins to leave the copy", func() bool { return pins() == 0 })
	if err := unix.Unmount("/run/copy", unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove("/run/copy"); err != nil {
		t.Fatal(err)
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 500 {
		if done() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("waited in vain for %s", what)
}

func TestNewIsIdempotentAndSetsPropagation(t *testing.T) {
	p := newPins(t)
	first := map[string]int{} // with the node's, where podwright runs on it
	for _, dir := range []string{p.netnsDir, p.runDir} {
		first[dir] = len(mountsAt(t, dir))
	}
	again, err := New(testDirs)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{p.netnsDir: " shared:", p.runDir: " unbindable "} {
		lines := mountsAt(t, dir)
		if len(lines) == 0 || len(lines) != first[dir] || !strings.Contains(lines[len(lines)-1], want) {
			t.Errorf("mounts at %s: got %q, want %d as before, of which the last has %q", dir, lines, first[dir], want)
		}
	}
	if _, err := New(Config{NetnsDir: "netns", RunDir: "/run/x"}); err == nil {
		t.Error("a relative directory is accepted")
	}
}

// mountsAt gives mountinfo's lines of what is mounted at dir, the uppermost last.
func mountsAt(t *testing.T, dir string) (lines []string) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if strings.Contains(line, " "+dir+" ") {
			lines = append(lines, line)
		}
	}
	return lines
}
