package node

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"
)

func TestCrictlStats(t *testing.T) {
	if os.Getenv(crictlVariable) == "" && os.Getenv(roleVariable) != "" {
		t.Skip("crictl is missing: test/e2e/tools/get crictl says why")
	}
	n := onNode(t)
	c := crictl{t, n}
	p := n.pod(t, ownNetwork)
	one, ended := p.sleeper(nil), p.start(nil, "true")
	ended.wait(10 * time.Second)
	c.has([]string{one.id[:13], one.config.GetMetadata().GetName()}, "stats", "--seconds", "1")
	c.has([]string{one.id[:13]}, "stats", "--seconds", "1", "--pod", p.id)
	if out := c.run("stats", "--seconds", "1", "--label", "no=such"); strings.Contains(out, one.id[:13]) {
		t.Errorf("crictl stats of others: got %q", out)
	}
	var stats struct {
		Stats []struct {
			Attributes    struct{ ID string }
			CPU           struct{ UsageCoreNanoSeconds struct{ Value string } }
			Memory        struct{ WorkingSetBytes struct{ Value string } }
			WritableLayer struct{ FsID struct{ Mountpoint string } }
		}
	}
	text := c.run("stats", "--seconds", "1", "--output", "json", one.id[:13])
	if err := json.Unmarshal([]byte(text), &stats); err != nil || len(stats.Stats) != 1 || stats.Stats[0].Attributes.ID != one.id || stats.Stats[0].CPU.UsageCoreNanoSeconds.Value == "" ||
		stats.Stats[0].Memory.WorkingSetBytes.Value == "" || stats.Stats[0].WritableLayer.FsID.Mountpoint != n.path("state", "containers") {
		t.Errorf("crictl stats: got %s, %v", text, err)
	}
	c.has([]string{p.id[:13], p.config.GetMetadata().GetName()}, "statsp", "--seconds", "1")
	c.has([]string{"container_memory_working_set_bytes", "labelKeys", "namespace"}, "metricdescs")
	c.has([]string{"container_network_receive_bytes_total", "container_cpu_usage_seconds_total", p.id, one.id, "eth0"}, "metricsp")
	c.has([]string{"defaultInterface", "eth0", one.id, "processCount"}, "statsp", "--seconds", "1", "--output", "json", p.id)
}
