package image

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/test/e2e/registry"
)

func TestPullUnpacksGzipZstdAndPlainLayers(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	root := t.TempDir()
	s := openStore(t, Config{Root: root})
	img := build(t, "amd64", v1.Config{
		Env: []string{"PATH=/bin"}, Entrypoint: []string{"/bin/app"}, User: "nobody", StopSignal: "SIGINT",
		Labels: map[string]string{"a": "b"}, Volumes: map[string]struct{}{"/data": {}},
	},
		layer(t, registry.Gzip, registry.Dir("etc", 0o755), registry.Regular("etc/a", 0o600, "lower"), registry.Regular("etc/gone", 0o644, "x")),
		layer(t, registry.Zstd, registry.Dir("etc", 0o755), registry.Regular("etc/a", 0o644, "upper"), registry.Regular("etc/.wh.gone", 0, "")),
		layer(t, registry.Plain, registry.Regular("etc/b", 0o4755, "setuid"), registry.Link("abs", "/etc/passwd")))
	digest := push(t, r, "team/app:v1", img)

	got := pull(t, s, host+"/team/app:v1")
	if got.ID != imageID(t, img) {
		t.Errorf("id: got %s, want the config digest %s", got.ID, imageID(t, img))
	}
	if want := []string{host + "/team/app:v1"}; !slices.Equal(got.RepoTags, want) {
		t.Errorf("tags: got %v, want %v", got.RepoTags, want)
	}
	if want := []string{host + "/team/app@" + digest}; !slices.Equal(got.RepoDigests, want) {
		t.Errorf("digests: got %v, want %v", got.RepoDigests, want)
	}
	if got.Digest != digest || got.SizeBytes == 0 || got.CreatedAt.Unix() != 1_700_000_000 {
		t.Errorf("got %+v", got)
	}
	if got.Config.User != "nobody" || got.Config.StopSignal != "SIGINT" || got.Config.Entrypoint[0] != "/bin/app" {
		t.Errorf("config: got %+v", got.Config)
	}
	dirs, err := s.Layers(t.Context(), got.ID)
	if err != nil || len(dirs) != 3 {
		t.Fatalf("layers: got %v, %v; want 3", dirs, err)
	}
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) || len(dir) > 255-len("lowerdir+=") {
			t.Errorf("layer directory %q", dir)
		}
	}
	if text := readLayer(t, s, got.ID, "etc/a"); text != "upper" {
		t.Errorf("topmost layer first: got %q, want %q", text, "upper")
	}
	var st syscall.Stat_t
	if err := syscall.Lstat(filepath.Join(dirs[1], "etc/gone"), &st); err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFCHR || st.Rdev != 0 {
		t.Errorf("whiteout: got mode %o rdev %d, %v", st.Mode, st.Rdev, err)
	}
	if err := syscall.Lstat(filepath.Join(dirs[0], "etc/b"), &st); err != nil || st.Mode&0o7777 != 0o4755 {
		t.Errorf("mode: got %o, %v", st.Mode, err)
	}
	if mounts := mountsBelow(t, root); len(mounts) != 0 {
		t.Errorf("mounts left: %v", mounts)
	}
	if info, err := os.Stat(root); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("root: %v, %v", info.Mode(), err)
	}
	fs, err := s.FsInfo(t.Context())
	eventually(t, func() string {
		if fs, err = s.FsInfo(t.Context()); err != nil || fs.UsedBytes == 0 || fs.InodesUsed == 0 || fs.Mountpoint != root {
			return "no usage"
		}
		return ""
	})
}

// B41, B46.
func TestImagesAreFoundByEveryName(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	s := openStore(t, Config{Root: t.TempDir(), Pinned: []string{host + "/a:1"}})
	digest := push(t, r, "a:1", simple(t, "one"))
	push(t, r, "a:2", simple(t, "two"))
	one := pull(t, s, host+"/a:1@"+digest)
	if len(one.RepoTags) != 0 || !slices.Equal(one.RepoDigests, []string{host + "/a@" + digest}) || one.Pinned {
		t.Errorf("tag and digest are kept by digest: got %+v", one)
	}
	one = pull(t, s, host+"/a:1")
	two := pull(t, s, host+"/a:2")
	if !one.Pinned || two.Pinned {
		t.Errorf("pinned: got %v and %v", one.Pinned, two.Pinned)
	}
	hex := strings.TrimPrefix(one.ID, "sha256:")
	for _, name := range []string{
		host + "/a:1", host + "/a@" + digest, host + "/a:nonsense@" + digest, one.ID, hex, hex[:13], "sha256:" + hex[:10],
	} {
		if got, err := s.Get(name); err != nil || got.ID != one.ID {
			t.Errorf("%s: got %s, %v", name, got.ID, err)
		}
	}
	if _, err := s.Get("sha256:"); !errors.Is(err, ErrInvalidReference) {
		t.Errorf("empty id: got %v", err)
	}
	for _, name := range []string{host + "/a:3", "busybox", someDigest} {
		if _, err := s.Get(name); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: got %v, want ErrNotFound", name, err)
		}
	}
	if got := s.List(); len(got) != 2 || got[0].ID >= got[1].ID {
		t.Errorf("list: got %d", len(got))
	}
	// What a caller does to an image is its own business (CVE-2021-21334).
	one.Config.Cmd[0] = "changed"
	if got, _ := s.Get(one.ID); got.Config.Cmd[0] != "/hello" {
		t.Error("callers share an image's config")
	}
}

func TestAmbiguousPrefixIsAnError(t *testing.T) {
	s := openStore(t, Config{Root: t.TempDir()})
	for _, tail := range []string{"0", "1"} {
		id := "sha256:abcdef" + strings.Repeat("0", 57) + tail
		s.table.publish(&entry{id: id}, []record{{name: id, id: id}})
	}
	if _, err := s.Get("abcdef"); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("get: got %v, want ErrAmbiguous", err)
	}
	if err := s.Remove(t.Context(), "sha256:abcdef"); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("remove: got %v, want ErrAmbiguous", err)
	}
	if len(s.List()) != 2 {
		t.Error("something was removed")
	}
}

func TestPullChoosesThePlatform(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	amd64 := build(t, "amd64", v1.Config{}, layer(t, registry.Gzip, registry.Regular("arch", 0o644, "amd64")))
	arm64 := build(t, "arm64", v1.Config{}, layer(t, registry.Gzip, registry.Regular("arch", 0o644, "arm64")))
	indexDigest, err := r.PushIndex("multi:1", registry.Index(map[string]v1.Image{"amd64": amd64, "arm64": arm64}))
	if err != nil {
		t.Fatal(err)
	}
	push(t, r, "arm:1", arm64)
	for arch, want := range map[string]v1.Image{"linux/amd64": amd64, "linux/arm64": arm64} {
		s := openStore(t, Config{Root: t.TempDir(), Platform: arch})
		got := pull(t, s, host+"/multi:1")
		if got.ID != imageID(t, want) {
			t.Errorf("%s: got %s, want %s", arch, got.ID, imageID(t, want))
		}
		if want := []string{host + "/multi@" + indexDigest.String()}; !slices.Equal(got.RepoDigests, want) {
			t.Errorf("%s: got %v, want the index's digest %v", arch, got.RepoDigests, want)
		}
		byDigest := pull(t, s, host+"/multi@"+indexDigest.String())
		if byDigest.ID != got.ID {
			t.Errorf("%s by digest: got %s", arch, byDigest.ID)
		}
	}
	s := openStore(t, Config{Root: t.TempDir(), Platform: "linux/s390x"})
	for _, ref := range []string{"/multi:1", "/arm:1"} {
		if _, err := s.Pull(t.Context(), host+ref, PullOptions{}); !errors.Is(err, ErrNoPlatform) || !strings.Contains(err.Error(), "s390x") {
			t.Errorf("%s: got %v, want ErrNoPlatform that names the platform", ref, err)
		}
	}
	if len(s.List()) != 0 {
		t.Error("half an image is visible")
	}
}

// B42, and what a moved tag leaves.
func TestTagsOfOneContentShareAnID(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	s := openStore(t, Config{Root: t.TempDir()})
	push(t, r, "a:1", simple(t, "one"))
	push(t, r, "a:2", simple(t, "one"))
	first, second := pull(t, s, host+"/a:1"), pull(t, s, host+"/a:2")
	if first.ID != second.ID || len(s.List()) != 1 || len(second.RepoTags) != 2 || len(second.RepoDigests) != 1 {
		t.Errorf("got %+v", second)
	}
	push(t, r, "a:1", simple(t, "moved"))
	moved := pull(t, s, host+"/a:1")
	if moved.ID == first.ID {
		t.Fatal("the tag didn't move")
	}
	old, err := s.Get(first.ID)
	if err != nil || !slices.Equal(old.RepoTags, []string{host + "/a:2"}) {
		t.Errorf("the old image: got %+v, %v", old, err)
	}
	push(t, r, "a:2", simple(t, "moved"))
	pull(t, s, host+"/a:2")
	if old, err = s.Get(first.ID); err != nil || len(old.RepoTags) != 0 || len(old.RepoDigests) != 1 {
		t.Errorf("without tags the old image is known by digest and id: got %+v, %v", old, err)
	}
	if text := readLayer(t, s, first.ID, "etc/text"); text != "one" {
		t.Errorf("got %q", text)
	}
}

// A layer whose tar omits parent directories must not take their mode away,
// though layers are unpacked in parallel.
func TestUnlistedDirectoriesInheritFromLowerLayers(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	s := openStore(t, Config{Root: t.TempDir()})
	owned := registry.Dir("srv/owned", 0o2750)
	owned.Uid, owned.Gid = 1234, 4321
	owned.PAXRecords = map[string]string{"SCHILY.xattr.user.mark": "here"}
	push(t, r, "a:1", build(t, "amd64", v1.Config{},
		layer(t, registry.Gzip, registry.Dir("tmp", 0o1777), registry.Dir("srv", 0o711), owned, registry.Dir("opq", 0o700), registry.Dir("opq/in", 0o700), registry.Link("link", "/tmp")),
		layer(t, registry.Gzip, registry.Dir("opq", 0o755), registry.Regular("opq/.wh..wh..opq", 0, "")),
		layer(t, registry.Gzip, registry.Regular("tmp/x", 0o644, "x"), registry.Regular("srv/owned/y", 0o644, "y"),
			registry.Regular("new/z", 0o644, "z"), registry.Regular("opq/in/w", 0o644, "w"), registry.Regular("link/v", 0o644, "v"))))
	img := pull(t, s, host+"/a:1")
	dirs, err := s.Layers(t.Context(), img.ID)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		mode     uint32
		uid, gid uint32
	}{
		"tmp": {0o1777, 0, 0}, "srv": {0o711, 0, 0}, "srv/owned": {0o2750, 1234, 4321}, "new": {0o755, 0, 0},
		"opq": {0o755, 0, 0}, "opq/in": {0o755, 0, 0}, "link": {0o755, 0, 0},
	} {
		var st syscall.Stat_t
		if err := syscall.Lstat(filepath.Join(dirs[0], name), &st); err != nil {
			t.Error(err)
			continue
		}
		if st.Mode&0o7777 != want.mode || st.Uid != want.uid || st.Gid != want.gid {
			t.Errorf("%s: got %o %d:%d, want %o %d:%d", name, st.Mode&0o7777, st.Uid, st.Gid, want.mode, want.uid, want.gid)
		}
	}
	value := make([]byte, 16)
	if n, err := syscall.Getxattr(filepath.Join(dirs[0], "srv/owned"), "user.mark", value); err != nil || string(value[:n]) != "here" {
		t.Errorf("attribute: got %q, %v", value[:max(n, 0)], err)
	}
}

func TestLayersCantSpeakToOverlay(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	s := openStore(t, Config{Root: t.TempDir()})
	evil := registry.Dir("evil", 0o755)
	evil.PAXRecords = map[string]string{
		"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.fine": "1",
	}
	push(t, r, "a:1", build(t, "amd64", v1.Config{}, layer(t, registry.Gzip, evil,
		registry.Regular("../../../../../../outside", 0o644, "x"), registry.Link("up", "../../../../../.."), registry.Regular("up/tmp/podwright-escape", 0o644, "x"))))
	img := pull(t, s, host+"/a:1")
	dirs, _ := s.Layers(t.Context(), img.ID)
	list := make([]byte, 256)
	n, err := syscall.Listxattr(filepath.Join(dirs[0], "evil"), list)
	if err != nil || !strings.Contains(string(list[:n]), "user.fine") || strings.Contains(string(list[:n]), "overlay") {
		t.Errorf("attributes: got %q, %v", list[:max(n, 0)], err)
	}
	if _, err := os.Stat("/tmp/podwright-escape"); err == nil {
		os.Remove("/tmp/podwright-escape")
		t.Error("a layer wrote outside its directory")
	}
	if _, err := os.Stat(filepath.Join(dirs[0], "outside")); err != nil {
		t.Errorf("a path with .. ends at the layer's root: %v", err)
	}
}

func TestImageWithoutLayers(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	s := openStore(t, Config{Root: t.TempDir()})
	push(t, r, "empty:1", build(t, "amd64", v1.Config{Cmd: []string{"x"}}))
	img := pull(t, s, host+"/empty:1")
	dirs, err := s.Layers(t.Context(), img.ID)
	if err != nil || len(dirs) != 1 {
		t.Fatalf("got %v, %v; want one empty directory", dirs, err)
	}
	if entries, err := os.ReadDir(dirs[0]); err != nil || len(entries) != 0 {
		t.Errorf("got %v, %v", entries, err)
	}
}

// The layers are what overlay makes them: put together by the kernel, they
// show the image.
func TestLayersMountAsTheImage(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	s := openStore(t, Config{Root: t.TempDir()})
	push(t, r, "a:1", build(t, "amd64", v1.Config{},
		layer(t, registry.Gzip, registry.Dir("d", 0o755), registry.Regular("d/kept", 0o644, "1"), registry.Regular("d/gone", 0o644, "1"),
			registry.Dir("o", 0o755), registry.Regular("o/hidden", 0o644, "1"), registry.Dir("tmp", 0o1777), registry.Regular(".wh.bottom", 0, "")),
		layer(t, registry.Zstd, registry.Regular("d/.wh.gone", 0, ""), registry.Dir("o", 0o700), registry.Regular("o/.wh..wh..opq", 0, ""), registry.Regular("o/new", 0o644, "2")),
		layer(t, registry.Gzip, registry.Regular("tmp/x", 0o644, "3"), registry.Regular("d/kept", 0o644, "3"))))
	img := pull(t, s, host+"/a:1")
	dirs, err := s.Layers(t.Context(), img.ID)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(dirs, ":")); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `cd "$0" && find . | sort | tr '\n' ' ' && cat d/kept && stat -c ' %a' o tmp`, dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if want := ". ./d ./d/kept ./o ./o/new ./tmp ./tmp/x 3 700\n 1777\n"; string(out) != want {
		t.Errorf("got %q, want %q", out, want)
	}
}
