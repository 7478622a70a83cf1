package main

import (
	"fmt"
	"regexp"
	"strings"
)

// expectation is a line of skips.txt that counts for this boot.
type expectation struct {
	why     string
	pattern *regexp.Regexp
}

// parseSkips reads lines of the form "module | why | regular expression"; the module is any, or that of the boot which
// the line is for.
func parseSkips(text, lsm string) ([]expectation, error) {
	var list []expectation
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.SplitN(line, "|", 3)
		if len(fields) != 3 || strings.TrimSpace(fields[1]) == "" {
			return nil, fmt.Errorf("skips: line %q: want module, reason, pattern", line)
		}
		pattern, err := regexp.Compile(strings.TrimSpace(fields[2]))
		if err != nil {
			return nil, fmt.Errorf("skips: %w", err)
		}
		if module := strings.TrimSpace(fields[0]); module == "any" || module == lsm {
			list = append(list, expectation{strings.TrimSpace(fields[1]), pattern})
		}
	}
	return list, nil
}

// reasonFor gives the line's reason for a skip, "" where there is no line.
func reasonFor(s skip, expected []expectation) string {
	for _, e := range expected {
		if e.pattern.MatchString(s.String()) {
			return e.why
		}
	}
	return ""
}
