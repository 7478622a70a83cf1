package cgroup

import (
	"strconv"
	"strings"
	"time"
)

// Pressure is how long tasks of a group waited for a resource
// (Documentation/accounting/psi.rst).
type Pressure struct {
	Some Stall // at least one task waited
	Full Stall // all of them did
}

// Stall is a time since the group was made, and its share of the last seconds in percent.
type Stall struct {
	Total                time.Duration
	Avg10, Avg60, Avg300 float64
}

// parsePressure reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the same of full,
// which old kernels lack for the processor. Text without either is nil.
func parsePressure(text string) *Pressure {
	var p *Pressure
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "some" && fields[0] != "full" {
			continue
		}
		if p == nil {
			p = &Pressure{}
		}
		stall := &p.Some
		if fields[0] == "full" {
			stall = &p.Full
		}
		for _, field := range fields[1:] {
			key, value, _ := strings.Cut(field, "=")
			switch key {
			case "total":
				n, _ := strconv.ParseUint(value, 10, 64)
				stall.Total = micros(n)
			case "avg10":
				stall.Avg10 = percent(value)
			case "avg60":
				stall.Avg60 = percent(value)
			case "avg300":
				stall.Avg300 = percent(value)
			}
		}
	}
	return p
}

func percent(text string) float64 {
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || !(f >= 0 && f <= 1000) { // NaN too
		return 0
	}
	return f
}
