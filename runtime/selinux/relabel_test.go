package selinux

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/kerneltest"
	"github.com/podwright/podwright/runtime/sys"
)

const (
	wanted = "system_u:object_r:container_file_t:s0:c1,c2"
	others = "system_u:object_r:container_file_t:s0:c3,c4"
	hosts  = "system_u:object_r:shadow_t:s0"
)

// The kernel keeps the attribute without SELinux too, on file systems with extended attributes, and then lets root alone
// write it.
func openTop(t *testing.T, path string) *os.File {
	t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { f.Close() })
	return f
}

func run(t *testing.T, path, label string) Progress {
	t.Helper()
	r := NewRelabel(openTop(t, path), label)
	if err := r.Run(t.Context()); err != nil {
		t.Fatalf("label %s: %v", path, err)
	}
	return r.Progress()
}

func fileLabel(t testing.TB, path string) string {
	t.Helper()
	var buf [256]byte
	n, err := unix.Lgetxattr(path, attribute, buf[:])
	if errors.Is(err, unix.ENODATA) {
		return ""
	}
	if err != nil {
		t.Fatalf("label of %q: %v", path, err)
	}
	return strings.TrimSuffix(string(buf[:n]), "\x00") // which a kernel with SELinux appends
}

func setLabel(t testing.TB, path, label string) {
	t.Helper()
	if err := unix.Lsetxattr(path, attribute, []byte(label), 0); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// keeps remembers labels, and what it returns says which of them have changed.
func keeps(t *testing.T, paths ...string) (check func()) {
	t.Helper()
	before := map[string]string{}
	for _, path := range paths {
		before[path] = fileLabel(t, path)
	}
	return func() {
		t.Helper()
		for path, label := range before {
			if now := fileLabel(t, path); now != label {
				t.Errorf("%s: label %q, want it left as %q", path, now, label)
			}
		}
	}
}

// each calls look with every path of a tree, and says how many there are.
func each(t testing.TB, top string, look func(path string)) int64 {
	t.Helper()
	var n int64
	err := filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
		n++
		look(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// ctimes gives when each inode was last written to.
func ctimes(t testing.TB, top string) map[string]unix.Timespec {
	all := map[string]unix.Timespec{}
	each(t, top, func(path string) {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		all[path] = st.Ctim
	})
	return all
}

func noLeftFiles(t *testing.T) {
	t.Helper()
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before := count()
	t.Cleanup(func() {
		if after := count(); after != before {
			t.Errorf("%d files are open, %d were before", after, before)
		}
	})
}

func TestRelabelGivesEveryKindOfFileTheLabelAndWritesNothingTwice(t *testing.T) {
	kerneltest.Root(t)
	noLeftFiles(t)
	outside, top := t.TempDir(), t.TempDir()
	write(t, outside+"/secret")
	write(t, top+"/a/b/c/file")
	write(t, top+"/odd\n\x1b[31m\xff name/f")
	write(t, top+"/a/other")
	setLabel(t, top+"/a/other", others)
	setLabel(t, top+"/a/b", wanted+"\x00") // as libselinux writes it
	err := errors.Join(os.Symlink(outside+"/secret", top+"/to-file"), os.Symlink(outside, top+"/to-dir"), os.Symlink("nowhere", top+"/a/dangling"),
		os.Symlink("..", top+"/a/up"), unix.Mkfifo(top+"/fifo", 0o600), unix.Mknod(top+"/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))),
		unix.Mknod(top+"/socket", unix.S_IFSOCK|0o600, 0))
	if err != nil {
		t.Fatal(err)
	}
	unchanged := keeps(t, outside, outside+"/secret")
	got := run(t, top, wanted)
	all := each(t, top, func(path string) {
		if label := fileLabel(t, path); label != wanted {
			t.Errorf("%q: label %q, want %q", path, label, wanted)
		}
	})
	if got.Seen != all || got.Changed != all-1 || got.Linked != 0 {
		t.Errorf("got %+v, want %d files seen and all but one changed", got, all)
	}
	unchanged()
	before := ctimes(t, top)
	if again := run(t, top, wanted); again.Seen != all || again.Changed != 0 {
		t.Errorf("a second time: got %+v, want %d files seen and none changed", again, all)
	}
	for path, at := range ctimes(t, top) {
		if at != before[path] {
			t.Errorf("%q was written to by the second run", path)
		}
	}
}

func TestRelabelOfASingleFile(t *testing.T) {
	kerneltest.Root(t)
	file := filepath.Join(t.TempDir(), "file")
	write(t, file)
	if got := run(t, file, wanted); got.Seen != 1 || got.Changed != 1 || fileLabel(t, file) != wanted {
		t.Errorf("got %+v and label %q, want one file labelled", got, fileLabel(t, file))
	}
}

// Several threads share the work: of one flat directory too, and of many small ones.
func TestRelabelOfManyFiles(t *testing.T) {
	kerneltest.Root(t)
	noLeftFiles(t)
	top := t.TempDir()
	for i := range 2500 {
		write(t, fmt.Sprintf("%s/flat/%d", top, i))
	}
	for i := range 600 {
		write(t, fmt.Sprintf("%s/nested/%d/%d/file", top, i%40, i))
	}
	got := run(t, top, wanted)
	all := each(t, top, func(path string) {
		if label := fileLabel(t, path); label != wanted {
			t.Errorf("%s: label %q", path, label)
		}
	})
	if got.Seen != all || got.Changed != all {
		t.Errorf("got %+v, want all %d seen and changed", got, all)
	}
}

// Who finds the label at the top may take it for complete, and a run that was ended is gone on with.
func TestRelabelThatIsCancelledLeavesTheTopAndGoesOnLater(t *testing.T) {
	kerneltest.Root(t)
	noLeftFiles(t)
	top := t.TempDir()
	for i := range 4000 {
		write(t, fmt.Sprintf("%s/%d/%d", top, i%7, i))
	}
	unchanged := keeps(t, top)
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	r := NewRelabel(openTop(t, top), wanted)
	go func() { // ends with the run
		for r.Progress().Changed < 1200 {
			time.Sleep(10 * time.Microsecond)
		}
		cancel(why)
	}()
	if err := r.Run(ctx); !errors.Is(err, why) {
		t.Fatalf("got %v, want %v", err, why)
	}
	first := r.Progress()
	if first.Changed >= 4000 {
		t.Errorf("got %+v, want it ended early", first)
	}
	unchanged()
	second := run(t, top, wanted)
	if want := int64(4000 + 7 + 1); second.Seen != want || first.Changed+second.Changed != want {
		t.Errorf("got %+v after %+v, want each of %d files changed once", second, first, want)
	}
}

// A container that renames things in its volume, and puts links in their place, reaches nothing outside (CVE-2021-30465 is
// of the kind). It may have files missed; once it holds still the next run finds them.
func TestRelabelSurvivesRenames(t *testing.T) {
	kerneltest.Root(t)
	outside, top := t.TempDir(), t.TempDir()
	for i := range 50 {
		write(t, fmt.Sprintf("%s/dir/sub/%d", outside, i))
		write(t, fmt.Sprintf("%s/dir/sub/%d", top, i))
		write(t, fmt.Sprintf("%s/spare/sub/%d", top, i))
	}
	// Relative, each right where it is put: what leads by another mount is refused for that alone.
	side := "../" + filepath.Base(outside) + "/dir"
	err := errors.Join(os.Symlink(side, top+"/link"), os.Symlink("../"+side, top+"/deep-link"), os.WriteFile(top+"/file", nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	each(t, outside, func(path string) { paths = append(paths, path) })
	unchanged := keeps(t, paths...)
	stop := make(chan struct{})
	var swaps sync.WaitGroup
	swap := func(a, b string) {
		defer swaps.Done()
		for n := 0; ; {
			select {
			case <-stop:
				if n < 100 {
					t.Errorf("only %d renames of %s", n, a)
				}
				return
			default: // it fails where another swap has put something else into the path
				if unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE) == nil {
					n++
				}
			}
		}
	}
	swaps.Add(3)
	go swap(top+"/dir", top+"/link")
	go swap(top+"/spare/sub", top+"/deep-link")
	go swap(top+"/spare/sub/7", top+"/file")
	var failed, done int
	for begin := time.Now(); time.Since(begin) < 2*time.Second; {
		label := wanted
		if done%2 == 1 {
			label = others
		}
		if err := NewRelabel(openTop(t, top), label).Run(t.Context()); err != nil {
			failed++ // "turns into something else all the time" is an honest answer
		}
		done++
	}
	close(stop)
	swaps.Wait()
	unchanged()
	t.Logf("%d runs, %d of them given up", done, failed)
	if failed == done {
		t.Error("no run came to its end")
	}
	run(t, top, wanted)
	each(t, top, func(path string) {
		if label := fileLabel(t, path); label != wanted {
			t.Errorf("%s: label %q once nobody renames", path, label)
		}
	})
}

func TestRelabelLeavesHardLinkedFilesOfTheHost(t *testing.T) {
	kerneltest.Root(t)
	dir := t.TempDir()
	host, top := dir+"/host", dir+"/volume"
	link := func(from, to string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.Link(from, to)); err != nil {
			t.Fatal(err)
		}
	}
	for name, label := range map[string]string{"shadow": hosts, "theirs": others, "fresh": "system_u:object_r:unlabeled_t:s0"} {
		write(t, host+"/"+name)
		setLabel(t, host+"/"+name, label)
		link(host+"/"+name, top+"/a/"+name)
	}
	link(host+"/shadow", top+"/b/shadow-again")
	write(t, top+"/a/own") // all of its names are here
	setLabel(t, top+"/a/own", hosts)
	link(top+"/a/own", top+"/b/own")
	link(top+"/a/own", top+"/c/own")
	got := run(t, top, wanted)
	for path, want := range map[string]string{
		host + "/shadow": hosts, top + "/a/theirs": wanted, top + "/a/fresh": wanted, top + "/a/own": wanted, top: wanted, top + "/a": wanted,
	} {
		if label := fileLabel(t, path); label != want {
			t.Errorf("%s: label %q, want %q", strings.TrimPrefix(path, dir), label, want)
		}
	}
	if got.Linked != 1 {
		t.Errorf("got %+v, want one file left out", got)
	}
}

func TestRelabelNamesFileSystemsThatTakeNoLabel(t *testing.T) {
	kerneltest.Root(t)
	noLeftFiles(t)
	if err := NewRelabel(openTop(t, "/proc/self/net"), wanted).Run(t.Context()); !errors.Is(err, ErrNoLabels) {
		t.Errorf("procfs: got %v, want ErrNoLabels", err)
	}
	top := t.TempDir()
	write(t, top+"/sub/file")
	tree, err := sys.OpenTree(nil, top, unix.OPEN_TREE_CLONE)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if err := sys.MountSetattr(tree, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		t.Fatal(err)
	}
	if err := NewRelabel(tree, wanted).Run(t.Context()); !errors.Is(err, ErrReadOnly) || !strings.Contains(err.Error(), `"sub"`) {
		t.Errorf("read-only: got %v, want ErrReadOnly with the file", err)
	}
	run(t, top, wanted)
	if err := NewRelabel(tree, wanted).Run(t.Context()); err != nil {
		t.Errorf("read-only with the right labels: got %v", err)
	}
}

func TestRelabelStaysOnItsMount(t *testing.T) {
	kerneltest.Root(t)
	kerneltest.Subprocess(t, unix.CLONE_NEWNS, func(t *testing.T) {
		top := t.TempDir()
		write(t, top+"/mine")
		elsewhere := t.TempDir()
		write(t, elsewhere+"/f")
		write(t, top+"/on/hidden")
		if err := unix.Mount(elsewhere, top+"/on", "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(top+"/on", unix.MNT_DETACH)
		unchanged := keeps(t, elsewhere, elsewhere+"/f")
		run(t, top, wanted)
		unchanged()
		if label := fileLabel(t, top+"/mine"); label != wanted {
			t.Errorf("a file of the volume: label %q, want %q", label, wanted)
		}
	})
}

func TestRelabelFollowsNoBottomlessTree(t *testing.T) {
	kerneltest.Root(t)
	noLeftFiles(t)
	top := t.TempDir()
	if err := os.MkdirAll(top+strings.Repeat("/d", maxDepth), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := run(t, top, wanted); got.Seen != maxDepth+1 {
		t.Errorf("got %+v, want %d directories", got, maxDepth+1)
	}
	if err := os.MkdirAll(top+strings.Repeat("/d", maxDepth+1), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := NewRelabel(openTop(t, top), wanted).Run(t.Context()); !errors.Is(err, ErrTooDeep) {
		t.Errorf("got %v, want ErrTooDeep", err)
	}
}

// Who makes files as fast as they are labelled doesn't have the walk go on for good. The files are there before it here, which
// is the same to a walk that takes the volume for smaller.
func TestRelabelFollowsNoEndlessVolume(t *testing.T) {
	kerneltest.Root(t)
	noLeftFiles(t)
	top := t.TempDir()
	const names = 3000
	for i := range names - 10 {
		write(t, fmt.Sprintf("%s/%d/%d", top, i%10, i))
	}
	r := NewRelabel(openTop(t, top), wanted)
	r.maxNames = names
	if err := r.Run(t.Context()); err != nil || r.Progress().Seen != names+1 { // and the top
		t.Errorf("as many names as are followed: got %v, %+v", err, r.Progress())
	}
	write(t, top+"/3/one-more")
	r = NewRelabel(openTop(t, top), others)
	r.maxNames = names
	if err := r.Run(t.Context()); !errors.Is(err, ErrTooMany) || !strings.Contains(err.Error(), "more than 3000 names") {
		t.Errorf("one more: got %v, want ErrTooMany with the bound", err)
	}
	if label := fileLabel(t, top); label != wanted {
		t.Errorf("the top has label %q: it says that everything has it", label)
	}
}

func TestNamesThatAreFollowed(t *testing.T) {
	for _, c := range []struct {
		files, free uint64
		want        int64
	}{
		{1000, 900, 1_001_600}, {0, 0, uncountedNames}, {10, 20, uncountedNames}, {math.MaxUint64, 0, uncountedNames}, {math.MaxInt64, 1, uncountedNames},
	} {
		if got := namesOf(c.files, c.free); got != c.want {
			t.Errorf("%d files, %d free: got %d, want %d", c.files, c.free, got, c.want)
		}
	}
	if got := namesIn(openTop(t, t.TempDir())); got < moreNames {
		t.Errorf("a directory here: got %d", got)
	}
}

func TestRelabelableRefusesWhatTheNodeNeeds(t *testing.T) {
	dir := t.TempDir()
	alias := filepath.Join(dir, "alias")
	state := filepath.Join(dir, "state")
	into, below := filepath.Join(dir, "into"), filepath.Join(dir, "below")
	for _, err := range []error{
		os.Symlink("/usr", alias), os.MkdirAll(state+"/containers", 0o755), os.Symlink("/sys/kernel", into), os.Symlink(state+"/containers", below),
		os.Mkdir(state+"-of-another", 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{state, state + "/containers", below, into, "/", "/etc", "/etc/", "/usr", "/usr/../etc", "/proc/self", "/sys/kernel", "/dev/shm", "/var/lib", alias, "/etc/passwd", "/proc/self/root"} {
		if err := Relabelable(path, openTop(t, path), state); !errors.Is(err, ErrProtected) || !strings.Contains(err.Error(), "not allowed") {
			t.Errorf("%s: got %v, want ErrProtected", path, err)
		}
	}
	for _, path := range []string{dir, state + "-of-another"} {
		if err := Relabelable(path, openTop(t, path), state); err != nil {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

// BenchmarkRelabel measures a volume of 100,000 files, labelled for the first time and found right, beside the library's
// walk, which other runtimes have. The processors' time is what counts on a machine that has other work.
func BenchmarkRelabel(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root to write labels")
	}
	top := b.TempDir()
	const files = 100_000
	for i := range files {
		write(b, fmt.Sprintf("%s/%d/%d/%d", top, i%10, i/10%100, i))
	}
	file, err := os.Open(top)
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	ours := func(label string) error { return NewRelabel(file, label).Run(b.Context()) }
	library := func(label string) error { return selinux.Chcon(top, label, true) }
	for _, c := range []struct {
		name  string
		label func() string
		walk  func(label string) error
	}{
		{"change", fresh, ours}, {"right", func() string { return wanted }, ours},
		{"change-library", fresh, library}, {"right-library", func() string { return wanted }, library},
	} {
		b.Run(c.name, func(b *testing.B) {
			if err := ours(wanted); err != nil {
				b.Fatal(err)
			}
			before := processorTime(b)
			b.ResetTimer()
			for range b.N {
				if err := c.walk(c.label()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(b.N)/files, "cpu-µs/file")
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/files, "µs/file")
		})
	}
}

// fresh is a label that no file has.
func fresh() string { return fmt.Sprintf("u:r:t:s%d", time.Now().UnixNano()) }

func processorTime(b *testing.B) time.Duration {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
