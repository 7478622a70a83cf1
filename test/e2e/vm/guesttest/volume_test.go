package guesttest

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A tmpfs that is mounted in a volume belongs to it. One that is mounted elsewhere as well, and a disk, keep their labels.
func TestTmpfsInAVolumeIsLabelledWithIt(t *testing.T) {
	needs(t, "selinux")
	volume := labelled(t, "system_u:object_r:container_var_lib_t:s0")
	others := labelled(t, "system_u:object_r:var_t:s0")
	at := func(target, source, kind string, flags uintptr) {
		t.Helper()
		if err := os.MkdirAll(target, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(source, target, kind, flags, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	}
	at(filepath.Join(volume, "own"), "none", "tmpfs", 0)
	at(filepath.Join(others, "shared"), "none", "tmpfs", 0)
	at(filepath.Join(volume, "shared"), filepath.Join(others, "shared"), "", unix.MS_BIND)
	at(filepath.Join(volume, "bound"), others, "", unix.MS_BIND)
	kept := map[string]string{}
	for _, name := range []string{"shared", "bound"} {
		kept[name] = run(t, "stat", "-c", "%C", filepath.Join(volume, name))
	}
	p := connect(t).pod()
	c := p.sleeper(func(config *criv1.ContainerConfig) {
		config.Mounts = []*criv1.Mount{{HostPath: volume, ContainerPath: "/volume", SelinuxRelabel: true}}
	})
	c.shell("echo x >/volume/x && echo y >/volume/own/y")
	c.refused("echo z >/volume/shared/z")
	c.refused("echo z >/volume/bound/z")
	if got := run(t, "stat", "-c", "%C", filepath.Join(volume, "own")); !strings.Contains(got, ":container_file_t:s0:c") {
		t.Errorf("the tmpfs has label %s, want the container's", got)
	}
	for name, want := range kept {
		if got := run(t, "stat", "-c", "%C", filepath.Join(volume, name)); got != want {
			t.Errorf("%s: got label %s, want it left as %s", name, got, want)
		}
	}
}

// Whatever the kubelet mounts can be mounted, be it of a type that nobody thought of. What a container does with it, the policy
// says.
func TestWhateverTheNodeHasCanBeMounted(t *testing.T) {
	needs(t, "selinux")
	paths := map[string]string{"/dev/fuse": "/mounted/fuse", "/dev/vda": "/mounted/disk", "/sys/kernel/debug": "/mounted/debug"}
	for _, kind := range []string{"user_home_t", "shadow_t", "sshd_key_t", "var_spool_t", "container_file_t"} {
		dir := labelled(t, "system_u:object_r:"+kind+":s0", "/etc/hostname")
		paths[dir], paths[dir+"/hostname"] = "/mounted/"+kind, "/mounted/"+kind+".file"
		socket := filepath.Join(dir, "socket")
		listener, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close() })
		run(t, "chcon", "system_u:object_r:"+kind+":s0", socket)
		paths[socket] = "/mounted/" + kind + ".socket"
	}
	p := connect(t).pod()
	c := p.sleeper(withPaths(p, paths))
	if got := c.shell("cat /mounted/container_file_t.file"); got == "" {
		t.Error("a file for containers is empty")
	}
	for kind := range map[string]bool{"shadow_t": true, "sshd_key_t": true} {
		c.denied("cat /mounted/"+kind+".file", kind)
	}
}

// A large volume is labelled once, by a job that outlives the create which asked for it and that the next one joins. Other
// pods start meanwhile.
func TestLargeVolumeIsLabelledOnceAndHoldsNobodyUp(t *testing.T) {
	needs(t, "selinux")
	const dirs, files = 100, 1000
	volume := labelled(t, "system_u:object_r:container_var_lib_t:s0")
	fill(t, volume, dirs, files)
	d := connect(t)
	p := d.pod()
	mounted := func(config *criv1.ContainerConfig) {
		config.Mounts = []*criv1.Mount{{HostPath: volume, ContainerPath: "/volume", SelinuxRelabel: true}}
	}
	config := p.containerConfig(mounted, "sleep", "1000")
	begin := time.Now()
	impatient, cancel := context.WithTimeout(ctx(t), time.Second)
	defer cancel()
	if _, err := p.createFrom(impatient, config); status.Code(err) != codes.DeadlineExceeded {
		t.Fatalf("create with a deadline of 1 s: got %v, want DeadlineExceeded: the volume is too small to tell anything", err)
	}
	retried := make(chan error, 1)
	var c *container
	go func() {
		var err error
		c, err = p.createFrom(ctx(t), config)
		retried <- err
	}()
	started, seen := 0, []int{}
	for done := false; !done; {
		found := labelJobs(t, volume)
		if len(found) > 1 {
			t.Errorf("ops shows %d jobs for one volume, which have seen %v files", len(found), found)
		}
		seen = append(seen, found...)
		other := d.pod()
		other.sleeper(nil)
		select {
		case err := <-retried:
			if done = true; err != nil {
				t.Fatal(err)
			}
		default:
			started++
		}
		other.remove()
	}
	first := time.Since(begin)
	if grown := slices.Compact(slices.Clone(seen)); started < 3 || len(grown) < 3 || !slices.IsSorted(grown) {
		t.Errorf("%d pods started meanwhile, and ops showed a job that had seen %v files; want 3 pods and a number that grows", started, seen)
	}
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	_, level, _ := strings.Cut(label(t, c.pid()), ":container_t:")
	before := time.Now()
	second := p.sleeper(mounted)
	took := time.Since(before)
	second.shell("echo x >/volume/d7/f7")
	if got, want := run(t, "stat", "-c", "%C", volume, volume+"/d0", volume+"/d99/f999"), "system_u:object_r:container_file_t:"+level; got != want+"\n"+want+"\n"+want {
		t.Errorf("got labels %q, want %s", got, want)
	}
	changed := 0
	filepath.WalkDir(volume, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if err == nil && time.Unix(st.Ctim.Unix()).After(before) {
			changed++
		}
		return err
	})
	if changed != 1 {
		t.Errorf("%d files were changed by the second container, want the one that it wrote to", changed)
	}
	t.Logf("%d files: first create %s, with %d pods started meanwhile, its job seen at %v files; second create and start %s", dirs*files, first, started, seen, took)
}

// fill makes dirs directories of so many files each.
func fill(t *testing.T, volume string, dirs, files int) {
	t.Helper()
	for i := range dirs {
		dir := filepath.Join(volume, fmt.Sprintf("d%d", i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for j := range files {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", j)), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// labelJobs are what ops shows of jobs that label a volume: how many files each has seen.
func labelJobs(t *testing.T, volume string) []int {
	t.Helper()
	var list struct {
		Operations []struct {
			Kind, Name string
			WaitsFor   []struct{ Detail string }
		}
	}
	if err := json.Unmarshal([]byte(run(t, "podwright", "ops", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, op := range list.Operations {
		if op.Kind == "label volume" && op.Name == volume {
			var files int
			if len(op.WaitsFor) != 1 {
				continue // it has begun just now
			}
			if _, err := fmt.Sscanf(op.WaitsFor[0].Detail, "%d files seen", &files); err != nil {
				t.Fatalf("%q: %v", op.WaitsFor[0].Detail, err)
			}
			found = append(found, files)
		}
	}
	return found
}
