package cni

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// B50: add, remove, rename and change of a file.
func TestStatusFollowsTheConfiguration(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", recorder)
	network := n.start()
	awaitStatus(t, network, "no CNI configuration (*.conflist, *.conf, *.json) in "+n.cfg.ConfDir)
	if _, err := network.Attach(context.Background(), pod("sb1", "/x")); !errors.Is(err, ErrNotReady) {
		t.Errorf("attach: got %v, want ErrNotReady", err)
	}
	file := filepath.Join(n.cfg.ConfDir, "10-a.conflist")
	steps := []struct {
		name   string
		change func() error
		want   string
	}{
		{"added", func() error { n.conf("10-a.conflist", fakeConf); return nil }, ""},
		{"renamed away", func() error { return os.Rename(file, file+".cilium_bak") }, "no CNI configuration"},
		{"renamed back", func() error { return os.Rename(file+".cilium_bak", file) }, ""},
		{"spoilt in place", func() error { return os.WriteFile(file, []byte("{"), 0o644) }, "10-a.conflist: not a CNI configuration"},
		{"mended in place", func() error { return os.WriteFile(file, []byte(fakeConf), 0o644) }, ""},
		{"removed", func() error { return os.Remove(file) }, "no CNI configuration"},
		{"directory removed", func() error { return os.Remove(n.cfg.ConfDir) }, "no CNI configuration"},
		{"directory and file made", func() error {
			if err := os.Mkdir(n.cfg.ConfDir, 0o755); err != nil {
				return err
			}
			return os.WriteFile(file, []byte(fakeConf), 0o644)
		}, ""},
		{"plugin removed", func() error { return os.Remove(filepath.Join(n.cfg.BinDirs[0], "fake")) }, `network "podnet": plugin fake: no such executable in ` + n.cfg.BinDirs[0]},
		{"plugin installed", func() error { n.plugin("fake", recorder); return nil }, ""},
	}
	for _, step := range steps {
		if err := step.change(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		begin := time.Now()
		awaitStatus(t, network, step.want)
		if took := time.Since(begin); took > 4*time.Second {
			t.Errorf("%s: took %s", step.name, took)
		}
	}
}

// An event, not the poll, is what makes the change visible.
func TestStatusChangesWithinASecondOfAnEvent(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", recorder)
	n.conf("10-a.conflist", fakeConf)
	network := n.ready()
	begin := time.Now()
	if err := os.Remove(filepath.Join(n.cfg.ConfDir, "10-a.conflist")); err != nil {
		t.Fatal(err)
	}
	awaitStatus(t, network, "no CNI configuration")
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("took %s, and the poll is every %s", took, pollReady)
	}
}

// B50: the STATUS verb of CNI 1.1.0, and only of that.
func TestStatusVerb(t *testing.T) {
	n := newNode(t)
	down := filepath.Join(filepath.Dir(n.log), "down")
	n.plugin("fake", `if [ "$CNI_COMMAND" = STATUS ] && [ -e "`+down+`" ]; then echo '{"code":50,"msg":"agent is not running"}'; exit 1; fi; exit 0`)
	n.conf("10-a.conflist", `{"cniVersion":"1.1.0","name":"podnet","plugins":[{"type":"fake"}]}`)
	network := n.ready()
	if err := os.WriteFile(down, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	awaitStatus(t, network, `network "podnet": plugin fake: agent is not running`)
	if err := os.Remove(down); err != nil {
		t.Fatal(err)
	}
	awaitStatus(t, network, "")
	if err := os.WriteFile(down, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.conf("10-a.conflist", fakeConf) // 1.0.0: not asked
	time.Sleep(500 * time.Millisecond)
	awaitStatus(t, network, "")
}

func TestPluginThatDoesNotSpeakTheVersionIsNotReady(t *testing.T) {
	n := newNode(t)
	n.write(filepath.Join(n.cfg.BinDirs[0], "old"), "#!/bin/sh\necho '{\"cniVersion\":\"0.4.0\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\"]}'\n", 0o755)
	n.conf("10-a.conflist", `{"cniVersion":"1.0.0","name":"podnet","plugins":[{"type":"old"}]}`)
	network := n.start()
	awaitStatus(t, network, "plugin old: does not support cniVersion 1.0.0 of the configuration, only [0.3.1 0.4.0]")
	n.conf("10-a.conflist", `{"cniVersion":"0.4.0","name":"podnet","plugins":[{"type":"old"}]}`)
	awaitStatus(t, network, "")
}

// Status and Close don't wait for a plugin that hangs.
func TestHungPluginHoldsUpNeitherStatusNorClose(t *testing.T) {
	n := newNode(t)
	n.write(filepath.Join(n.cfg.BinDirs[0], "hung"), "#!/bin/sh\nsleep 300\n", 0o755)
	n.conf("10-a.conflist", `{"cniVersion":"1.0.0","name":"podnet","plugins":[{"type":"hung"}]}`)
	n.cfg.PluginTimeout = time.Second
	network, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := network.Status(); !errors.Is(err, ErrNotReady) {
		t.Errorf("before Start: got %v", err)
	}
	begin := time.Now()
	if err := network.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 500*time.Millisecond {
		t.Errorf("Start took %s", took)
	}
	awaitStatus(t, network, `network "podnet" are being asked`)
	awaitStatus(t, network, `network "podnet": plugin hung: VERSION: no answer within 1s`)
	begin = time.Now()
	if err := network.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 900*time.Millisecond {
		t.Errorf("Close took %s", took)
	}
}

// Neither goroutines nor files are left by a watcher, or by the plugins it asks.
func TestCloseLeavesNothing(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", recorder)
	n.conf("10-a.conflist", fakeConf)
	count := func() (goroutines, files int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(entries)
	}
	goroutines, files := count()
	for range 5 {
		network, err := New(n.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := network.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		awaitStatus(t, network, "")
		if _, err := network.Attach(context.Background(), pod("sb1", "/x")); err != nil {
			t.Error(err)
		}
		if err := network.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var g, f int
	for range 100 {
		if g, f = count(); g <= goroutines && f <= files {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("left: %d goroutines of %d, %d files of %d", g, goroutines, f, files)
}

// Idle, the watcher executes nothing: what a plugin supports is asked once.
func TestIdleWatcherAsksVersionsOnce(t *testing.T) {
	n := newNode(t)
	n.write(filepath.Join(n.cfg.BinDirs[0], "fake"), "#!/bin/sh\necho asked >>"+n.log+"\necho '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\"]}'\n", 0o755)
	n.conf("10-a.conflist", fakeConf)
	network := n.ready()
	for range 3 { // each an event, hence a look
		n.conf("90-other.conflist", fakeConf)
		time.Sleep(300 * time.Millisecond)
	}
	awaitStatus(t, network, "")
	data, err := os.ReadFile(n.log)
	if err != nil || strings.Count(string(data), "asked") != 1 {
		t.Errorf("got %q, %v; want one question", data, err)
	}
}
