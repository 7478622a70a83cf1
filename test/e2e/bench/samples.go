package main

import (
	"math"
	"slices"
	"sync"
	"time"
)

// measure names what was measured; Unit says how, and MB/s alone is better when it is more.
type measure struct {
	Section string `json:"section"`
	Name    string `json:"name"`
	Unit    string `json:"unit"`
}

// samples are all values of a run.
type samples struct {
	mu     sync.Mutex
	order  []measure // as first seen: the order of the report
	values map[measure]map[string][]float64
}

func newSamples() *samples { return &samples{values: map[measure]map[string][]float64{}} }

// add stores one value of a runtime.
func (s *samples) add(section, name, unit, runtime string, value float64) {
	m := measure{section, name, unit}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.values[m] == nil {
		s.order = append(s.order, m)
		s.values[m] = map[string][]float64{}
	}
	s.values[m][runtime] = append(s.values[m][runtime], value)
}

// of returns a function that stores durations of a section.
func (s *samples) of(section, runtime string) func(string, time.Duration) {
	return func(name string, d time.Duration) { s.add(section, name, "ms", runtime, milliseconds(d)) }
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// summary is the distribution of one measure of one runtime.
type summary struct {
	N    int     `json:"n"`
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P95  float64 `json:"p95"`
	P99  float64 `json:"p99"`
	// All is every value in the order they were measured, if they are few.
	All []float64 `json:"all,omitempty"`
}

// fewValues are shown one by one.
const fewValues = 10

func summarise(values []float64) summary {
	sorted := slices.Sorted(slices.Values(values))
	sum := 0.0
	for _, v := range sorted {
		sum += v
	}
	if len(values) > fewValues {
		values = nil
	}
	return summary{
		All: values, N: len(sorted), Mean: sum / float64(len(sorted)),
		P50: percentile(sorted, 50), P95: percentile(sorted, 95), P99: percentile(sorted, 99),
	}
}

// percentile is by nearest rank: always a value that was measured. sorted is not empty.
func percentile(sorted []float64, p float64) float64 {
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}
