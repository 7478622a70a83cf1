package namespace

import (
	"context"
	"fmt"
	"testing"
	"time"
)

func BenchmarkCreateRemove(b *testing.B) {
	p := newPins(b)
	ctx := context.Background()
	spec := all("bench")
	spec.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	var create, remove time.Duration
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprintf("b%d", i)
		begin := time.Now()
		if err := p.Create(ctx, id, spec); err != nil {
			b.Fatal(err)
		}
		middle := time.Now()
		if err := p.Remove(ctx, id); err != nil {
			b.Fatal(err)
		}
		create += middle.Sub(begin)
		remove += time.Since(middle)
	}
	b.ReportMetric(float64(create.Microseconds())/float64(b.N), "µs/create")
	b.ReportMetric(float64(remove.Microseconds())/float64(b.N), "µs/remove")
}

func BenchmarkRun(b *testing.B) {
	p := newPins(b)
	ctx := context.Background()
	if err := p.Create(ctx, "bench", Spec{Net: true}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := p.Run(ctx, "bench", func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
	if err := p.Remove(ctx, "bench"); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkLinks(b *testing.B) {
	p := newPins(b)
	ctx := context.Background()
	var ids []string
	for i := range 100 {
		id := fmt.Sprintf("bench%d", i)
		if err := p.Create(ctx, id, Spec{Net: true}); err != nil {
			b.Fatal(err)
		}
		ids = append(ids, id)
	}
	for b.Loop() {
		p.Links(ctx, ids, func(_ string, _ []Link, err error) {
			if err != nil {
				b.Fatal(err)
			}
		})
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(ids)), "µs/sandbox")
	for _, id := range ids {
		if err := p.Remove(ctx, id); err != nil {
			b.Fatal(err)
		}
	}
}
