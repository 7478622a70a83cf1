package cni

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A full disk must not keep a pod from being stopped: DEL runs, with the result that libcni kept at ADD.
func TestDetachWorksOnAFullDisk(t *testing.T) {
	n := recorderNode(t, "fake")
	n.conf("10-a.conflist", fakeConf)
	n.cfg.CacheDir = t.TempDir()
	if err := unix.Mount("tmpfs", n.cfg.CacheDir, "tmpfs", 0, "size=128k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(n.cfg.CacheDir, unix.MNT_DETACH) })
	network := n.ready()
	sandbox := pod("sb1", netns(t, "full"))
	attached, err := network.Attach(context.Background(), sandbox)
	if err != nil {
		t.Fatal(err)
	}
	_ = n.lines()
	fill, err := os.Create(filepath.Join(n.cfg.CacheDir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	for err == nil {
		_, err = fill.Write(make([]byte, 4096))
	}
	if err := network.Detach(context.Background(), sandbox, attached); err != nil {
		t.Errorf("detach on a full disk: %v", err)
	}
	lines := n.lines()
	if len(lines) != 1 || decode(t, lines[0]).PrevResult == nil {
		t.Errorf("got %v, want one DEL with the result of ADD", heads(lines))
	}
}
