package seccompprofiles

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLocalhost(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "seccomp")
	elsewhere := filepath.Join(dir, "elsewhere")
	for _, d := range []string{filepath.Join(root, "profiles"), elsewhere} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(path string, size int) {
		t.Helper()
		if err := os.WriteFile(path, bytes.Repeat([]byte("x"), size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(root, "profiles", "a.json"), 3)
	write(filepath.Join(root, "largest.json"), maxProfileBytes)
	write(filepath.Join(root, "huge.json"), maxProfileBytes+1)
	write(filepath.Join(elsewhere, "b.json"), 4)
	write(dir+"/seccomp-beside.json", 5)
	if err := unix.Mkfifo(filepath.Join(root, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"operator": elsewhere, "loop": "loop", "magic": "/proc/self/fd/0"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	cases := []struct {
		name, root, ref string
		size            int
		want            string // in the error
	}{
		{"relative", root, "profiles/a.json", 3, ""},
		{"absolute below root, as the kubelet sends it", root, root + "/profiles/a.json", 3, ""},
		{"through the administrator's link", root, "operator/b.json", 4, ""},
		{"at the limit", root, "largest.json", maxProfileBytes, ""},
		{"anywhere with root /", "/", elsewhere + "/b.json", 4, ""},
		{"CVE-2023-2431: empty", root, "", 0, ErrNoReference.Error()},
		{"outside", root, elsewhere + "/b.json", 0, "not below"},
		{"a name that only begins alike", root, dir + "/seccomp-beside.json", 0, "not below"},
		{"upwards", root, "../elsewhere/b.json", 0, "contains .."},
		{"upwards inside", root, root + "/profiles/../profiles/a.json", 0, "contains .."},
		{"zero byte", root, "a\x00b", 0, "zero byte"},
		{"missing", root, "none.json", 0, "no such file"},
		{"a directory", root, "profiles", 0, "not a regular file"},
		{"root itself", root, ".", 0, "not a regular file"},
		{"a FIFO", root, "fifo", 0, "not a regular file"},
		{"too large", root, "huge.json", 0, "larger than 1 MiB"},
		{"a link to itself", root, "loop", 0, "symbolic links"},
		{"a magic link", root, "magic", 0, "symbolic links"},
		{"no directory configured", "", "a.json", 0, "not an absolute path"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			begin := time.Now()
			data, err := Localhost(c.root, c.ref)
			if time.Since(begin) > 5*time.Second {
				t.Error("it blocked")
			}
			if c.want == "" && (err != nil || len(data) != c.size) {
				t.Errorf("got %d bytes, %v, want %d", len(data), err, c.size)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
	if _, err := Localhost(root, ""); !errors.Is(err, ErrNoReference) {
		t.Errorf("got %v, want ErrNoReference", err)
	}
	if _, err := Localhost(root, "none.json"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
}
