package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	goruntime "runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// report is the JSON file; the table shows the same.
type report struct {
	Time     time.Time         `json:"time"`
	Duration string            `json:"duration"`
	Host     map[string]string `json:"host"`
	Names    []string          `json:"names"` // of the runtimes, the one that is compared first
	Versions map[string]string `json:"versions"`
	Rows     []row             `json:"rows"`
	Floors   []verdict         `json:"floors"`
}

type row struct {
	measure
	Runtimes map[string]summary `json:"runtimes"`
	// Times says how many times better the first runtime's p50 is than each other's.
	Times map[string]float64 `json:"times"`
}

// floor is a promise about the first runtime: its p50 is at most an Nth of the second's, or
// at most so much. One of the two is set.
type floor struct {
	section, name string
	times, atMost float64
}

var floors = []floor{
	{section: "pod life cycle, hostNetwork", name: podToRunning, times: 8},
	{section: "exec, hostNetwork", name: execSync, times: 10},
	{section: "pod life cycle, hostNetwork", name: cpuOfAll, times: 8},
	{section: "idle pods, ", name: pssPerPod, atMost: 60},
	{section: "idle pods, ", name: idleCPU, atMost: 0.2},
	{section: "lists, 100 pods", name: "ListPodSandbox", times: 1},
	{section: "lists, 100 pods", name: "ListContainers", times: 1},
	{section: "lists, 100 pods", name: "ListContainerStats", times: 10},
	{section: "lists, 100 pods", name: "ListPodSandboxStats", times: 10},
	{section: busySection, name: "ListPodSandbox" + busyTimes, atMost: 2},
	{section: busySection, name: "ListContainers" + busyTimes, atMost: 2},
}

// verdict is a floor against what was measured.
type verdict struct {
	Floor string  `json:"floor"`
	Value float64 `json:"value"`
	Held  bool    `json:"held"`
}

func (b *bench) report(took time.Duration) report {
	var uname unix.Utsname
	_ = unix.Uname(&uname) // fails for a bad pointer alone
	cgroup := "v1"
	if _, v2 := groupRoot(); v2 {
		cgroup = "v2"
	}
	load, _ := os.ReadFile("/proc/loadavg") // for information
	r := report{
		Time: time.Now().UTC(), Duration: took.Round(time.Second).String(), Versions: map[string]string{},
		Host: map[string]string{
			"kernel": unix.ByteSliceToString(uname.Release[:]), "processors": fmt.Sprint(goruntime.NumCPU()), "cgroup": cgroup,
			"load at the end": strings.Join(strings.Fields(string(load))[:3], " "),
		},
	}
	for _, c := range b.candidates {
		r.Names = append(r.Names, c.name)
		r.Versions[c.name] = c.version
	}
	r.Rows = b.samples.rows(r.Names)
	r.Floors = judge(r.Rows, r.Names)
	return r
}

// rows summarises, the sections in the order they began.
func (s *samples) rows(names []string) []row {
	var sections []string
	for _, m := range s.order {
		if !slices.Contains(sections, m.Section) {
			sections = append(sections, m.Section)
		}
	}
	var rows []row
	for _, section := range sections {
		for _, m := range s.order {
			if m.Section != section {
				continue
			}
			one := row{measure: m, Runtimes: map[string]summary{}, Times: map[string]float64{}}
			for name, values := range s.values[m] {
				one.Runtimes[name] = summarise(values)
			}
			first, ok := one.Runtimes[names[0]]
			for _, name := range names[1:] {
				other, there := one.Runtimes[name]
				if !ok || !there || first.P50 <= 0 || other.P50 <= 0 {
					continue
				}
				one.Times[name] = other.P50 / first.P50
				if m.Unit == "MB/s" {
					one.Times[name] = first.P50 / other.P50
				}
			}
			rows = append(rows, one)
		}
	}
	return rows
}

// judge holds the floors against the rows there are: what was skipped has no verdict.
func judge(rows []row, names []string) []verdict {
	var verdicts []verdict
	for _, f := range floors {
		for _, r := range rows {
			matches := r.Section == f.section || f.atMost > 0 && strings.HasPrefix(r.Section, f.section)
			first, measured := r.Runtimes[names[0]]
			if !matches || r.Name != f.name || !measured {
				continue
			}
			if f.atMost > 0 {
				verdicts = append(verdicts, verdict{fmt.Sprintf("%s at most %g %s", f.name, f.atMost, r.Unit), first.P50, first.P50 <= f.atMost})
			} else if len(names) > 1 && r.Times[names[1]] > 0 {
				times := r.Times[names[1]]
				verdicts = append(verdicts, verdict{fmt.Sprintf("%s (%s) at least %g times better than %s", f.name, f.section, f.times, names[1]), times, times >= f.times})
			}
		}
	}
	return verdicts
}

func (r report) missed() []string {
	var missed []string
	for _, v := range r.Floors {
		if !v.Held {
			missed = append(missed, fmt.Sprintf("%s: %.3g", v.Floor, v.Value))
		}
	}
	return missed
}

func (r report) write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func (r report) print(out io.Writer) {
	fmt.Fprintf(out, "kernel %s, %s processors, cgroup %s, took %s, load at the end %s\n", r.Host["kernel"], r.Host["processors"], r.Host["cgroup"], r.Duration, r.Host["load at the end"])
	for _, name := range r.Names {
		fmt.Fprintf(out, "%s: %s\n", name, r.Versions[name])
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	section := ""
	for _, row := range r.Rows {
		if row.Section != section {
			section = row.Section
			// Ends the columns of the table before.
			fmt.Fprintf(w, "\n%s\n", section)
			w.Flush()
			fmt.Fprintf(w, "\t\t%s\t\n", strings.Join(r.heads(), "\t"))
		}
		cells := []string{fmt.Sprintf("%-32s", row.Name), row.Unit}
		for i, name := range r.Names {
			s, ok := row.Runtimes[name]
			if !ok {
				cells = append(cells, "-", "-", "-", "-")
			} else {
				cells = append(cells, fmt.Sprint(s.N), figure(s.P50), figure(s.P95), figure(s.P99))
			}
			if times, ok := row.Times[name]; ok {
				cells = append(cells, fmt.Sprintf("x%.1f", times))
			} else if i > 0 {
				cells = append(cells, "-")
			}
		}
		fmt.Fprintf(w, "%s\t\n", strings.Join(cells, "\t"))
	}
	w.Flush()
	fmt.Fprintln(out, "\nfloors")
	for _, v := range r.Floors {
		word := "held  "
		if !v.Held {
			word = "MISSED"
		}
		fmt.Fprintf(out, "  %s  %s: %.3g\n", word, v.Floor, v.Value)
	}
}

// heads are the table's columns after the measure and its unit.
func (r report) heads() []string {
	var heads []string
	for i, name := range r.Names {
		heads = append(heads, name+" n", "p50", "p95", "p99")
		if i > 0 {
			heads = append(heads, "better")
		}
	}
	return heads
}

// figure prints three significant digits without exponents.
func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
