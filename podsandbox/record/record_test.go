package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"
	"time"
)

func open(t *testing.T, root string) *Store {
	t.Helper()
	s, err := Open(Config{Root: root, SyncEvery: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func sampleSandbox() *Sandbox {
	return &Sandbox{
		ID: NewID(), BootID: "boot", Phase: SandboxReady, Config: []byte{0x0a, 0x00, 0xff}, CreatedNanos: 7, NetPath: "/run/netns/x",
		Attachment: json.RawMessage(`{"ips":["10.0.0.2"]}`), IPs: []string{"10.0.0.2", "fd00::2"}, ReaperPID: 12, ReaperStartTime: 99,
	}
}

func sampleContainer() *Container {
	return &Container{
		ID: NewID(), SandboxID: NewID(), BootID: "boot", Phase: ContainerRunning, Config: []byte("x"), ImageID: "sha256:1", LogPath: "/var/log/x",
		CreatedNanos: 1, StartedNanos: 2, PID: 44, StartTime: 5, UID: 1000, GID: 1000, Groups: []int64{1000, 1234},
	}
}

func TestRecordsAreThereAgainAfterReopening(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	sandbox, container := sampleSandbox(), sampleContainer()
	if err := errors.Join(s.PutSandbox(sandbox), s.PutContainer(container), s.PutSpec(container.ID, json.RawMessage(`{"ociVersion":"1.3.0"}`))); err != nil {
		t.Fatal(err)
	}
	container.Phase, container.ExitCode = ContainerExited, 137
	if err := s.PutContainer(container); err != nil {
		t.Fatal(err)
	}
	again := open(t, root)
	got, err := again.Load()
	want := Loaded{Sandboxes: []Sandbox{*sandbox}, Containers: []Container{*container}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if spec, err := again.Spec(container.ID); err != nil || string(spec) != `{"ociVersion":"1.3.0"}` {
		t.Errorf("spec: got %s, %v", spec, err)
	}
}

func TestDeletedRecordsAreGoneAndDeletingAgainIsNoError(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	sandbox, container := sampleSandbox(), sampleContainer()
	if err := errors.Join(s.PutSandbox(sandbox), s.PutContainer(container), s.PutSpec(container.ID, json.RawMessage(`{}`))); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := errors.Join(s.DeleteSandbox(sandbox.ID), s.DeleteContainer(container.ID)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Spec(container.ID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("spec of a deleted container: got %v, want fs.ErrNotExist", err)
	}
	for _, dir := range []string{sandboxDir, containerDir} {
		if left, err := os.ReadDir(filepath.Join(root, dir)); err != nil || len(left) != 0 {
			t.Errorf("%s: got %v, %v, want nothing left", dir, left, err)
		}
	}
}

// One record that cannot be read is reported and hides no other (B14).
func TestBadRecordsAreListedAndTheOthersLoaded(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	good := sampleSandbox()
	if err := s.PutSandbox(good); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"empty": "", "not json": "{", "other version": `{"version":2,"id":"%"}`, "no phase": `{"version":1,"id":"%"}`,
		"negative pid": `{"version":1,"id":"%","sandboxID":"%","phase":"running","pid":-1}`,
		"another's":    `{"version":1,"id":"` + good.ID + `","sandboxID":"` + good.ID + `","phase":"created"}`,
	} {
		t.Run(name, func(t *testing.T) {
			id := NewID()
			path := filepath.Join(root, containerDir, id)
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(path)
			raw := bytes.ReplaceAll([]byte(content), []byte("%"), []byte(id))
			if err := os.WriteFile(filepath.Join(path, "record.1.json"), raw, 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := s.Load()
			if err != nil || len(got.Sandboxes) != 1 || len(got.Containers) != 0 || len(got.Bad) != 1 {
				t.Fatalf("got %+v, %v, want one sandbox and one bad record", got, err)
			}
			bad := got.Bad[0]
			if bad.ID != id || bad.Kind != "container" || !errors.Is(bad.Err, ErrInvalid) || bad.Path != path {
				t.Errorf("got %+v", bad)
			}
			if _, err := os.Stat(filepath.Join(path, "record.1.json")); err != nil {
				t.Errorf("the bad record did not stay: %v", err)
			}
		})
	}
}

func TestADirectoryWithoutARecordIsCleared(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	sandbox := sampleSandbox()
	cut := filepath.Join(root, sandboxDir, sandbox.ID)
	if err := os.Mkdir(cut, 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Load(); err != nil || len(got.Sandboxes)+len(got.Bad) != 0 {
		t.Fatalf("got %+v, %v, want nothing", got, err)
	}
	if _, err := os.Stat(cut); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want it removed", err)
	}
	if err := s.PutSandbox(sandbox); err != nil {
		t.Fatal(err)
	}
}

// After a power cut the newest file may be empty or cut short: the one before it counts, and the next one is newer.
func TestACutRecordLeavesTheOneBefore(t *testing.T) {
	root := t.TempDir()
	s, err := Open(Config{Root: root, SyncEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	r := sampleContainer()
	for _, message := range []string{"synced", "lost"} {
		r.Message = message
		if err := s.PutContainer(r); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(root, containerDir, r.ID)
	names, err := filepath.Glob(filepath.Join(dir, "record.*.json"))
	if err != nil || len(names) != 2 {
		t.Fatalf("before the sync: got %v, %v, want both generations", names, err)
	}
	newest := filepath.Join(dir, generationName(recordFile, s.generation.Load()))
	if err := os.Truncate(newest, 10); err != nil {
		t.Fatal(err)
	}
	again := open(t, root) // as if the first store had died
	got, err := again.Load()
	if err != nil || len(got.Containers) != 1 || got.Containers[0].Message != "synced" || len(got.Bad) != 0 {
		t.Fatalf("got %+v, %v, want the record before", got, err)
	}
	r.Message = "next"
	if err := again.PutContainer(r); err != nil {
		t.Fatal(err)
	}
	if got, err := again.Load(); err != nil || len(got.Containers) != 1 || got.Containers[0].Message != "next" {
		t.Errorf("got %+v, %v, want the newest", got, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestOneGenerationIsLeftAfterTheSync(t *testing.T) {
	root := t.TempDir()
	s, err := Open(Config{Root: root, SyncEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	r := sampleContainer()
	for range 5 {
		if err := errors.Join(s.PutContainer(r), s.PutSpec(r.ID, json.RawMessage(`{}`))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Join(root, containerDir, r.ID))
	if err != nil || len(left) != 2 {
		t.Errorf("got %v, %v, want one record and one spec", left, err)
	}
}

func TestRecordsNobodyCouldActOnAreRefused(t *testing.T) {
	s := open(t, t.TempDir())
	for name, err := range map[string]error{
		"short id":     s.PutSandbox(&Sandbox{ID: "../x", Phase: SandboxReady}),
		"no phase":     s.PutSandbox(&Sandbox{ID: NewID()}),
		"no sandbox":   s.PutContainer(&Container{ID: NewID(), Phase: ContainerCreated}),
		"spec of none": s.PutSpec("..", nil),
		"delete":       s.DeleteSandbox("../../etc"),
	} {
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
}

func TestCloseSyncsAndEndsTheGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	s, err := Open(Config{Root: t.TempDir(), SyncEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.PutSandbox(sampleSandbox()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(s.sync.dirty); n != 0 {
		t.Errorf("got %d unsynced objects after Close", n)
	}
	if err := s.sync.stop(); err != nil { // twice
		t.Error(err)
	}
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("got %d goroutines, had %d", runtime.NumGoroutine(), before)
}

func TestTheBackgroundSyncTakesEveryChange(t *testing.T) {
	s := open(t, t.TempDir())
	for range 20 {
		if err := s.PutSandbox(sampleSandbox()); err != nil {
			t.Fatal(err)
		}
	}
	pending := func() int {
		s.sync.mu.Lock()
		defer s.sync.mu.Unlock()
		return len(s.sync.dirty)
	}
	for deadline := time.Now().Add(10 * time.Second); pending() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("got %d unsynced objects", pending())
		}
	}
}

func TestFilesAreForTheirOwnerOnly(t *testing.T) {
	root := filepath.Join(t.TempDir(), "state")
	s := open(t, root)
	r := sampleSandbox()
	if err := s.PutSandbox(r); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{
		root: fs.ModeDir | 0o700, filepath.Join(root, sandboxDir, r.ID): fs.ModeDir | 0o700, filepath.Join(root, sandboxDir, r.ID, "record.1.json"): 0o600,
	} {
		info, err := os.Stat(path)
		if err != nil || info.Mode() != want {
			t.Errorf("%s: got %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
}

func TestNewIDsAreValidAndDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := NewID()
		if !ValidID(id) || seen[id] {
			t.Fatalf("got %q", id)
		}
		seen[id] = true
	}
	for _, id := range []string{"", "abc", NewID() + "0", "G" + NewID()[1:], NewID()[:63] + "/"} {
		if ValidID(id) {
			t.Errorf("%q is valid", id)
		}
	}
}

func FuzzDecode(f *testing.F) {
	b, err := encodeContainer(sampleContainer())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	b, err = encodeSandbox(sampleSandbox())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeContainer(b); err == nil {
			again, err := encodeContainer(&r)
			if err != nil {
				t.Fatalf("a record that decoded does not encode: %v", err)
			}
			if _, err := decodeContainer(again); err != nil {
				t.Fatal(err)
			}
		}
		if r, err := decodeSandbox(b); err == nil {
			if _, err := encodeSandbox(&r); err != nil {
				t.Fatalf("a record that decoded does not encode: %v", err)
			}
		}
	})
}

func BenchmarkPut(b *testing.B) {
	s, err := Open(Config{Root: b.TempDir(), SyncEvery: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	r := sampleContainer()
	r.Config = bytes.Repeat([]byte("x"), 2000)
	for b.Loop() {
		if err := s.PutContainer(r); err != nil {
			b.Fatal(err)
		}
	}
}
