package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPercentileIsAMeasuredValue(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	for _, c := range []struct {
		values []float64
		p      float64
		want   float64
	}{
		{[]float64{7}, 50, 7}, {[]float64{7}, 99, 7},
		{[]float64{1, 2}, 50, 1}, {[]float64{1, 2, 9}, 50, 2}, {[]float64{1, 2, 9}, 95, 9},
		{hundred, 50, 50}, {hundred, 95, 95}, {hundred, 99, 99}, {hundred, 100, 100}, {hundred, 0, 1},
	} {
		if got := percentile(c.values, c.p); got != c.want {
			t.Errorf("percentile %g of %d values: got %g, want %g", c.p, len(c.values), got, c.want)
		}
	}
}

func TestSummariseSorts(t *testing.T) {
	values := []float64{9, 1, 2}
	got := summarise(values)
	if want := (summary{N: 3, Mean: 4, P50: 2, P95: 9, P99: 9, All: []float64{9, 1, 2}}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := summarise(make([]float64, fewValues+1)); got.All != nil {
		t.Errorf("%d values: all of them are in the report", fewValues+1)
	}
}

func TestParseCPUStat(t *testing.T) {
	got, err := parseCPUStat("usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n")
	if err != nil || got != 1500*time.Microsecond {
		t.Errorf("got %v, %v, want 1.5ms", got, err)
	}
	for _, bad := range []string{"", "user_usec 7\n", "usage_usec x\n"} {
		if got, err := parseCPUStat(bad); err == nil {
			t.Errorf("%q: got %v, want an error", bad, got)
		}
	}
}

func TestParsePSS(t *testing.T) {
	text := "00400000-7ffd6a1f0000 ---p 00000000 00:00 0    [rollup]\nRss:                1884 kB\nPss:                 142 kB\nPss_Dirty:            92 kB\n"
	if got, err := parsePSS([]byte(text)); err != nil || got != 142 {
		t.Errorf("got %d, %v, want 142", got, err)
	}
	if got, err := parsePSS([]byte("Rss: 12 kB\n")); err == nil {
		t.Errorf("no Pss: got %d, want an error", got)
	}
}

func TestProcessPSSLeavesTheWorkloadOut(t *testing.T) {
	if got, err := processPSS("self", os.Args); err != nil || got != 0 {
		t.Errorf("a process with the workload's command: got %d, %v, want 0", got, err)
	}
	if got, err := processPSS("self", idle); err != nil || got < 100 {
		t.Errorf("this process: got %d KB, %v, want what a Go program takes", got, err)
	}
}

func TestEndpointFlag(t *testing.T) {
	var f endpointFlags
	for _, good := range []string{"a=unix:///run/a.sock", "b=unix:///run/b.sock,/bench-b"} {
		if err := f.Set(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	want := endpointFlags{{"a", "unix:///run/a.sock", ""}, {"b", "unix:///run/b.sock", "/bench-b"}}
	if !slices.Equal(f, want) {
		t.Errorf("got %v, want %v", f, want)
	}
	for _, bad := range []string{"", "unix:///x", "=unix:///x", "c=tcp://x", "c=unix:///x,relative", "a=unix:///again"} {
		if err := f.Set(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestParseRefusesWhatItDoesNotKnow(t *testing.T) {
	good := []string{"-endpoint", "a=unix:///x", "-skip", "memory,bridge", "-n", "3"}
	opts, err := parse(good)
	if err != nil || !opts.skip["memory"] || !opts.skip["bridge"] || opts.n != 3 {
		t.Errorf("%v: got %+v, %v", good, opts, err)
	}
	for _, bad := range [][]string{{}, {"-endpoint", "a=unix:///x", "-skip", "nothing"}, {"-endpoint", "a=unix:///x", "-n", "0"}, {"-endpoint", "a=unix:///x", "-parallel", "0"}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}

func TestCountLines(t *testing.T) {
	end := []byte(" stdout F xx")
	log := "t stdout F begin\nt stdout F xx\nt stdout F xx\nt stdout F end\n"
	if err := countLines(strings.NewReader(log), end, 2); err != nil {
		t.Error(err)
	}
	for name, broken := range map[string]string{
		"a line lost":    "t stdout F begin\nt stdout F xx\nt stdout F end\n",
		"a line split":   "t stdout F begin\nt stdout F xx\nt stdout P x\nt stdout F x\nt stdout F end\n",
		"one line twice": "t stdout F begin\nt stdout F xx\nt stdout F xx\nt stdout F xx\nt stdout F end\n",
	} {
		if err := countLines(strings.NewReader(broken), end, 2); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestLogWatchSeesTheFirstWholeLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	watch, err := watchLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer watch.close()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, part := range []string{"t stdout F re", "ady\nt stdout F more\n"} {
		if _, err := f.WriteString(part); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := watch.wait(t.Context(), "stdout F ready\n"); err != nil {
		t.Error(err)
	}
	other, err := watchLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	if _, err := f.WriteString("t stdout F late\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := other.wait(t.Context(), "stdout F late\n"); err == nil {
		t.Error("a first line other than the one that is waited for is no error")
	}
}

// measured makes rows of one run of two runtimes.
func measured(t *testing.T, podwright, containerd float64) []row {
	t.Helper()
	s := newSamples()
	for _, m := range []struct{ section, name, unit string }{
		{"pod life cycle, hostNetwork", podToRunning, "ms"}, {"pod life cycle, bridge", podToRunning, "ms"},
		{"pod life cycle, hostNetwork", cpuOfAll, "ms"}, {"exec, hostNetwork", execSync, "ms"},
		{"idle pods, bridge", pssPerPod, "KB"}, {"log", logThroughput, "MB/s"},
	} {
		s.add(m.section, m.name, m.unit, "podwright", podwright)
		s.add(m.section, m.name, m.unit, "containerd", containerd)
	}
	return s.rows([]string{"podwright", "containerd"})
}

func TestRowsKeepSectionsTogetherAndSayHowManyTimesBetter(t *testing.T) {
	rows := measured(t, 10, 85)
	var sections []string
	for _, r := range rows {
		sections = append(sections, r.Section)
		want := 8.5
		if r.Unit == "MB/s" {
			want = 10.0 / 85
		}
		if got := r.Times["containerd"]; got != want {
			t.Errorf("%s, %s: got %g times better, want %g", r.Section, r.Name, got, want)
		}
	}
	want := []string{"pod life cycle, hostNetwork", "pod life cycle, hostNetwork", "pod life cycle, bridge", "exec, hostNetwork", "idle pods, bridge", "log"}
	if !slices.Equal(sections, want) {
		t.Errorf("got sections %q, want %q", sections, want)
	}
}

func TestFloors(t *testing.T) {
	names := []string{"podwright", "containerd"}
	for _, c := range []struct {
		podwright, containerd float64
		missed                int
	}{{10, 100, 0}, {10, 99, 1}, {10, 79, 3}, {60, 600, 0}, {61, 610, 1}} {
		r := report{Floors: judge(measured(t, c.podwright, c.containerd), names)}
		if len(r.Floors) != 4 || len(r.missed()) != c.missed {
			t.Errorf("%g against %g: %d floors, missed %q, want 4 and %d", c.podwright, c.containerd, len(r.Floors), r.missed(), c.missed)
		}
	}
	alone := newSamples()
	alone.add("idle pods, hostNetwork", pssPerPod, "KB", "podwright", 61)
	if got := judge(alone.rows(names[:1]), names[:1]); len(got) != 1 || got[0].Held {
		t.Errorf("without a peer: got %+v, want the one floor that needs none, missed", got)
	}
}

func TestPrintShowsMissingFigures(t *testing.T) {
	s := newSamples()
	s.add("lists", "ListContainerStats", "ms", "containerd", 200)
	names := []string{"podwright", "containerd"}
	var out bytes.Buffer
	report{Host: map[string]string{}, Names: names, Rows: s.rows(names)}.print(&out)
	if got := strings.Join(strings.Fields(out.String()), " "); !strings.Contains(got, "ListContainerStats ms - - - - 1 200 200 200 -") {
		t.Errorf("got %s", out.String())
	}
}
