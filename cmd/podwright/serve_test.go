package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A child that a killed daemon was forking holds the lock a moment longer; a daemon that runs holds it for good.
func TestLockWaitsForAKilledDaemonOnly(t *testing.T) {
	dir := t.TempDir()
	held, err := os.Create(filepath.Join(dir, "podwright.lock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(held.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if f, err := lockInstance(dir); err == nil {
		f.Close()
		t.Fatal("got the lock of a daemon that runs")
	}
	time.AfterFunc(200*time.Millisecond, func() { held.Close() })
	f, err := lockInstance(dir)
	if err != nil {
		t.Fatalf("after its end: %v", err)
	}
	f.Close()
}
