package namespace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// The process's own namespaces are the main thread's: it must never change.
func TestMainThreadStaysAtHome(t *testing.T) {
	p := newPins(t)
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := p.Create(ctx, "sb1", Spec{Net: true}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 64 { // enough that some goroutine lands on the main thread
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 20 {
				err := p.Run(ctx, "sb1", func() error {
					if unix.Gettid() == unix.Getpid() {
						t.Error("fn runs on the main thread")
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	if now, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", os.Getpid())); now != own {
		t.Errorf("namespace of the main thread: got %s, want %s", now, own)
	}
	if err := p.Remove(ctx, "sb1"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "threads to end", func() bool {
		tasks, err := os.ReadDir("/proc/self/task")
		return err == nil && len(tasks) < 32+runtime.NumCPU()
	})
}

func TestParallelSandboxesAreKeptApart(t *testing.T) {
	p := newPins(t)
	ctx := context.Background()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			id := fmt.Sprintf("par%d", i)
			spec := all(id)
			spec.Sysctls = map[string]string{"net.ipv4.ip_default_ttl": fmt.Sprint(100 + i)}
			if err := p.Create(ctx, id, spec); err != nil {
				t.Error(err)
				return
			}
			if got := inNamespace(t, p, id, "sh", "-c", "hostname; cat /proc/sys/net/ipv4/ip_default_ttl"); got != fmt.Sprintf("%s\n%d", id, 100+i) {
				t.Errorf("%s: got %q", id, got)
			}
			if err := p.Remove(ctx, id); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
}

func TestWriteSysctlsAfterCreate(t *testing.T) {
	p := newPins(t)
	ctx := context.Background()
	if err := p.Create(ctx, "sb1", Spec{Net: true, UTS: true}); err != nil {
		t.Fatal(err)
	}
	if err := p.WriteSysctls(ctx, "sb1", map[string]string{"net/ipv4/conf/lo/forwarding": "1"}); err != nil {
		t.Error(err)
	}
	err := p.Run(ctx, "sb1", func() error {
		data, err := os.ReadFile("/proc/sys/net/ipv4/conf/lo/forwarding")
		if strings.TrimSpace(string(data)) != "1" {
			t.Errorf("got %q", data)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	// The IPC namespace of this sandbox is the host's.
	if err := p.WriteSysctls(ctx, "sb1", map[string]string{"kernel.msgmax": "8193"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("host's IPC: got %v, want fs.ErrNotExist", err)
	}
	if err := p.Remove(ctx, "sb1"); err != nil {
		t.Fatal(err)
	}
}
