package cgroup

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// BenchmarkLifeCycle is what a container start and end pays here: create with
// limits and devices, open, look for an OOM, kill the empty group, remove.
func BenchmarkLifeCycle(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root to make cgroups")
	}
	m, err := New(Config{})
	if err != nil {
		b.Skip(err)
	}
	ctx, parent := context.Background(), fmt.Sprintf("/podwright-test-%d-bench", os.Getpid())
	if err := m.Create(ctx, parent, nil); err != nil {
		b.Fatal(err)
	}
	defer m.Remove(ctx, parent)
	res := &specs.LinuxResources{
		CPU:     &specs.LinuxCPU{Shares: p[uint64](102), Quota: p[int64](20000), Period: p[uint64](100000)},
		Memory:  &specs.LinuxMemory{Limit: p[int64](64 << 20), Swap: p[int64](64 << 20)},
		Devices: defaultDevices(),
	}
	steps := []struct {
		name string
		run  func(path string) error
	}{
		{"create", func(path string) error { return m.Create(ctx, path, res) }},
		{"open", func(path string) error {
			h, err := m.Open(path)
			if err == nil {
				err = h.Close()
			}
			return err
		}},
		{"oom", func(path string) error { _, err := m.OOM(path); return err }},
		{"kill", func(path string) error { return m.Kill(ctx, path) }},
		{"remove", func(path string) error { return m.Remove(ctx, path) }},
	}
	for i := range steps {
		b.Run(steps[i].name, func(b *testing.B) {
			for n := range b.N {
				path := fmt.Sprintf("%s/c%d", parent, n)
				for j, s := range steps {
					if j == i {
						b.StartTimer()
					}
					err := s.run(path)
					b.StopTimer()
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkStatistics is what each container costs whenever somebody asks.
func BenchmarkStatistics(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root to make cgroups")
	}
	m, err := New(Config{})
	if err != nil {
		b.Skip(err)
	}
	ctx, path := context.Background(), fmt.Sprintf("/podwright-test-%d-bench", os.Getpid())
	if err := m.Create(ctx, path, nil); err != nil {
		b.Fatal(err)
	}
	defer m.Remove(ctx, path)
	for name, run := range map[string]func() error{
		"usage":     func() error { _, err := m.Usage(path); return err },
		"all":       func() error { _, err := m.Stats(path); return err },
		"processes": func() error { _, err := m.Processes(path); return err },
	} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				if err := run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
