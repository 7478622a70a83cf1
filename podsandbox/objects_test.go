package podsandbox

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/runtime/kerneltest"
)

// onSmallDisk gives a core whose records are on a file system that fill leaves no byte of.
func onSmallDisk(t *testing.T) (m *core, fill func()) {
	t.Helper()
	kerneltest.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatalf("mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	store, err := record.Open(record.Config{Root: filepath.Join(dir, "records"), SyncEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return &core{cfg: Config{Records: store}}, func() {
		f, err := os.Create(filepath.Join(dir, "fill"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("fill the disk: %v", err)
		}
	}
}

func recordedContainer(t *testing.T, m *core) *container {
	t.Helper()
	c := newContainer(&record.Container{ID: record.NewID(), SandboxID: record.NewID(), BootID: "b", Phase: record.ContainerRunning}, &criv1.ContainerConfig{}, [32]byte{})
	if err := m.changeContainer(c, func(*record.Container) bool { return true }); err != nil {
		t.Fatal(err)
	}
	return c
}

// A full disk must not keep a pod from ending: that is what frees it.
func TestEndsAreKnownThoughTheDiskIsFull(t *testing.T) {
	m, fill := onSmallDisk(t)
	c := recordedContainer(t, m)
	s := newSandbox(&record.Sandbox{ID: record.NewID(), BootID: "b", Phase: record.SandboxReady}, &criv1.PodSandboxConfig{}, [32]byte{})
	if err := m.changeSandbox(s, func(*record.Sandbox) {}); err != nil {
		t.Fatal(err)
	}
	fill()
	if err := m.changeContainer(c, func(r *record.Container) bool { r.PID = 7; return true }); !errors.Is(err, unix.ENOSPC) || c.record().PID == 7 {
		t.Errorf("a change that is no end: got %v and pid %d, want ENOSPC and no change", err, c.record().PID)
	}
	err := m.changeContainer(c, func(r *record.Container) bool { r.Phase, r.ExitCode = record.ContainerExited, 3; return true })
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("an exit: got %v, want ENOSPC", err)
	}
	if r := c.record(); r.Phase != record.ContainerExited || r.ExitCode != 3 {
		t.Errorf("got %s with code %d, want exited with 3", r.Phase, r.ExitCode)
	}
	select {
	case <-c.exited:
	default:
		t.Error("who waits for the exit is not told")
	}
	m.endSandbox(t.Context(), s, func(r *record.Sandbox) { r.Phase = record.SandboxNotReady })
	if got := s.record().Phase; got != record.SandboxNotReady {
		t.Errorf("the sandbox is %s, want not-ready", got)
	}
	if err := errors.Join(m.deleteContainer(c), m.deleteSandbox(s)); err != nil {
		t.Errorf("delete: %v", err)
	}
}

// A late exit or a recovery that runs beside Remove must not bring the record back.
func TestDeletedRecordsStayDeleted(t *testing.T) {
	m, _ := onSmallDisk(t)
	c := recordedContainer(t, m)
	if err := m.deleteContainer(c); err != nil {
		t.Fatal(err)
	}
	if err := m.changeContainer(c, func(r *record.Container) bool { r.Phase = record.ContainerExited; return true }); err != nil {
		t.Fatal(err)
	}
	if loaded, err := m.cfg.Records.Load(); err != nil || len(loaded.Containers) != 0 {
		t.Errorf("got %v, %v, want no record", loaded.Containers, err)
	}
}

// B24: of the stops whose callers vanished the earliest kills; the others start nothing.
func TestVanishedStopsLeaveOneKiller(t *testing.T) {
	var r stopRequest
	begin := time.Now()
	for i, test := range []struct {
		after time.Duration
		first bool
	}{{30 * time.Second, true}, {30 * time.Second, false}, {40 * time.Second, false}, {5 * time.Second, true}, {10 * time.Second, false}} {
		if got := r.leave(begin.Add(test.after)); got != test.first {
			t.Errorf("stop %d, %s: got %v, want %v", i, test.after, got, test.first)
		}
	}
}
