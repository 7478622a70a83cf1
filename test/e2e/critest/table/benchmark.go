package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// results is what this program reads of a file of critest's LifecycleBenchmarksResultsSet.
type results struct {
	OperationsNames []string `json:"operationsNames"`
	Datapoints      []struct {
		OperationsDurationsNs []int64 `json:"operationsDurationsNs"`
	} `json:"datapoints"`
}

// benchmarks prints the figures of runtimes side by side; each argument is NAME=DIRECTORY of a run. It answers whether
// every benchmark spec of every run passed.
func benchmarks(w io.Writer, runs []string) (bool, error) {
	if len(runs) == 0 {
		return false, errors.New("no NAME=DIRECTORY given")
	}
	ok := true
	var names, order []string
	took := map[string]map[string][]time.Duration{} // operation -> runtime -> durations
	for _, run := range runs {
		name, dir, found := strings.Cut(run, "=")
		if !found {
			return false, fmt.Errorf("%q: want NAME=DIRECTORY", run)
		}
		names = append(names, name)
		passed, err := readBenchmark(w, name, dir, func(operation string, d time.Duration) {
			if took[operation] == nil {
				took[operation] = map[string][]time.Duration{}
				order = append(order, operation)
			}
			took[operation][name] = append(took[operation][name], d)
		})
		if err != nil {
			return false, err
		}
		ok = ok && passed
	}
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "ms\t")
	for _, name := range names {
		fmt.Fprintf(table, "%s n\tp50\tp95\t", name)
	}
	fmt.Fprintln(table)
	for _, operation := range order {
		fmt.Fprintf(table, "%s\t", operation)
		for _, name := range names {
			list := slices.Sorted(slices.Values(took[operation][name]))
			if len(list) == 0 {
				fmt.Fprint(table, "0\t-\t-\t")
				continue
			}
			at := func(percent int) float64 { return list[(len(list)*percent-1)/100].Seconds() * 1000 }
			fmt.Fprintf(table, "%d\t%.2f\t%.2f\t", len(list), at(50), at(95))
		}
		fmt.Fprintln(table)
	}
	return ok, table.Flush()
}

// readBenchmark reads one run: the durations in its files, and of specs without a file how long they took in all.
func readBenchmark(w io.Writer, name, dir string, add func(operation string, d time.Duration)) (bool, error) {
	specs, err := readReport(filepath.Join(dir, "report"))
	if err != nil {
		return false, err
	}
	paths, err := filepath.Glob(filepath.Join(dir, "*_benchmark_data.json"))
	if err != nil {
		return false, err
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return false, err
		}
		var r results
		if err := json.Unmarshal(text, &r); err != nil {
			return false, fmt.Errorf("read benchmark %s: %w", path, err)
		}
		for _, point := range r.Datapoints {
			for i, ns := range point.OperationsDurationsNs[:min(len(point.OperationsDurationsNs), len(r.OperationsNames))] {
				add(r.OperationsNames[i], time.Duration(ns))
			}
		}
	}
	states := map[string]int{}
	for _, s := range specs {
		if !strings.Contains(s.name(), "benchmark") {
			continue
		}
		states[s.State]++
		if strings.Contains(s.name(), "from scratch") {
			add("start a container from scratch, twice", s.RunTime)
		}
		if s.State != "passed" {
			fmt.Fprintf(w, "%s: %s: %s\n    %s\n", strings.ToUpper(s.State), name, s.name(), firstLines(s.Failure.Message, 12))
		}
	}
	for _, state := range slices.Sorted(maps.Keys(states)) {
		fmt.Fprintf(w, "critest's benchmark specs on %s: %d %s\n", name, states[state], state)
	}
	return states["passed"] > 0 && len(states) == 1, nil
}
