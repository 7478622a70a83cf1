package mounts

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// newIDMap makes a mapping of 65536 ids from 70000 (users) and 170000 (groups) on.
func newIDMap(t *testing.T) IDMap {
	t.Helper()
	holder := exec.Command("sleep", "1000")
	holder.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 70000, Size: 65536}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 170000, Size: 65536}}}
	if err := holder.Start(); err != nil {
		t.Skipf("no user namespaces: %v", err)
	}
	userNS, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid))
	holder.Process.Kill()
	holder.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { userNS.Close() })
	return IDMap{UserNS: userNS, RootUID: 70000, RootGID: 170000}
}

func owner(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// eachMappedWay runs a test with detached layers and with staged ones.
func eachMappedWay(t *testing.T, test func(t *testing.T, o *Opener, m IDMap)) {
	o := newOpener(t)
	m := newIDMap(t)
	if err := o.ProbeIDMap(testContext(t), t.TempDir(), m); err != nil {
		t.Skipf("this kernel has no overlays on mapped layers (5.19): %v", err)
	}
	t.Logf("features: %+v", o.features)
	found := o.features
	for _, detached := range []bool{true, false} {
		t.Run(fmt.Sprintf("detached %v", detached), func(t *testing.T) {
			if detached && !found.IDMapDetached {
				t.Skip("this kernel takes no detached layers (6.15)")
			}
			o := newOpener(t)
			o.features.IDMap, o.features.IDMapDetached = true, detached
			test(t, o, m)
		})
	}
}

func TestOverlayOfMappedLayersKeepsIDsOnDisk(t *testing.T) {
	eachMappedWay(t, func(t *testing.T, o *Opener, m IDMap) {
		dir := t.TempDir()
		writeFile(t, dir+"/top/roots", "x")
		writeFile(t, dir+"/bottom/users", "x")
		writeFile(t, dir+"/bottom/gone", "x")
		if err := os.Chown(dir+"/bottom/users", 1000, 2000); err != nil {
			t.Fatal(err)
		}
		mkdirs(t, dir+"/c/upper", dir+"/c/work")
		unchangedTable(t)
		root, err := o.Overlay(testContext(t), OverlaySource{
			Lower: []string{dir + "/top", dir + "/bottom"}, Upper: dir + "/c/upper", Work: dir + "/c/work", Volatile: true, IDMap: &m,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		for path, want := range map[string]string{"": "70000:170000", "roots": "70000:170000", "users": "71000:172000"} {
			if got := owner(t, inside(root, path)); path != "" && got != want {
				t.Errorf("owner of %q: got %s, want %s", path, got, want)
			}
		}
		onOwnThread(func() {
			err = errors.Join(m.become(), os.WriteFile(inside(root, "made"), []byte("x"), 0o600),
				os.WriteFile(inside(root, "users"), []byte("y"), 0), os.Remove(inside(root, "gone")),
				os.Chown(inside(root, "made"), 70005, 170006))
		})
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]string{"made": "5:6", "users": "1000:2000"} {
			if got := owner(t, dir+"/c/upper/"+path); got != want {
				t.Errorf("owner of %s on disk: got %s, want %s", path, got, want)
			}
		}
		var st unix.Stat_t
		if err := unix.Lstat(dir+"/c/upper/gone", &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("a removed file's whiteout: got mode %#o device %d, %v", st.Mode, st.Rdev, err)
		}
		// The daemon's own root has no id in the mapping.
		if err := os.WriteFile(inside(root, "hosts"), []byte("x"), 0o600); !errors.Is(err, unix.EOVERFLOW) {
			t.Errorf("create as an id that the mapping lacks: got %v, want %v", err, unix.EOVERFLOW)
		}
	})
}

func TestOverlayOfOneMappedLayerIsAMappedBind(t *testing.T) {
	eachMappedWay(t, func(t *testing.T, o *Opener, m IDMap) {
		dir := t.TempDir()
		writeFile(t, dir+"/file", "x")
		unchangedTable(t)
		root, err := o.Overlay(testContext(t), OverlaySource{Lower: []string{dir}, IDMap: &m})
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if got, want := owner(t, inside(root, "file")), "70000:170000"; got != want {
			t.Errorf("owner: got %s, want %s", got, want)
		}
	})
}

func TestProbeIDMapLeavesNothing(t *testing.T) {
	o := newOpener(t)
	m := newIDMap(t)
	dir := t.TempDir()
	mkdirs(t, dir+"/idmap-probe/lower") // of a daemon that was killed here
	unchangedTable(t)
	if err := o.ProbeIDMap(testContext(t), dir, m); err != nil {
		t.Logf("not supported here: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
	o.features.IDMap = false
	if err := o.ProbeIDMap(testContext(t), dir, IDMap{UserNS: m.UserNS, RootUID: 1, RootGID: 1}); err == nil || o.features.IDMap {
		t.Error("a mapping whose root is another one counts as working")
	}
}

// Only the mount that is asked for is mapped; a file system that cannot is named with its path.
func TestOpenBindSaysWhichFileSystemCannotMap(t *testing.T) {
	o := newOpener(t)
	m := newIDMap(t)
	unchangedTable(t)
	_, err := o.OpenBind(testContext(t), BindSource{Path: "/proc/sys", UserNS: m.UserNS})
	if !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "/proc/sys is on the file system proc at /proc") {
		t.Errorf("got %v, want ErrNotSupported that names /proc/sys and proc", err)
	}
}
