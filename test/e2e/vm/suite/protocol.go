package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// marker is what the testing package puts before its own lines, so that no test's output is taken for one.
const marker = 0x16

// mostLines of a failed test are shown; the file has all of them.
const mostLines = 80

// protocol follows the output of one test binary.
type protocol struct {
	pkg     string
	show    io.Writer
	current string // the test whose output comes
	output  []outputLine
	totals
	skips []skip
}

type outputLine struct{ test, text string }

// totals count tests at the top; skipped counts those below as well.
type totals struct{ passed, failed, skipped int }

// skip is a test that did not run, and what it said.
type skip struct{ pkg, test, reason string }

func (s skip) String() string { return s.pkg + " " + s.test + ": " + s.reason }

func (p *protocol) line(text string) {
	said, framed, found := strings.Cut(text, string(rune(marker)))
	if said != "" || !found {
		p.output = append(p.output, outputLine{p.current, said})
	}
	if !found {
		return
	}
	framed = strings.TrimSpace(framed)
	if verb, ok := strings.CutPrefix(framed, "=== "); ok {
		if fields := strings.Fields(verb); len(fields) == 2 {
			p.current = fields[1]
		}
		return
	}
	verb, ok := strings.CutPrefix(framed, "--- ")
	word, rest, isEnd := strings.Cut(verb, ": ")
	if !ok || !isEnd {
		return
	}
	name, _, _ := strings.Cut(rest, " (")
	p.end(word, name, framed)
}

// end takes a test's verdict.
func (p *protocol) end(word, name, framed string) {
	top := !strings.Contains(name, "/")
	switch {
	case word == "SKIP":
		p.skipped++
		p.skips = append(p.skips, skip{p.pkg, name, strings.Join(p.said(name, false), " ")})
	case word == "PASS" && top:
		p.passed++
	case word == "FAIL" && top:
		p.failed++
		fmt.Fprintf(p.show, "%s in %s\n", framed, p.pkg)
		p.tail(p.said(name, true))
	}
}

// said is what a test wrote, and those below it too.
func (p *protocol) said(name string, below bool) []string {
	var lines []string
	for _, l := range p.output {
		if l.test == name || below && strings.HasPrefix(l.test, name+"/") {
			lines = append(lines, strings.TrimSpace(l.text))
		}
	}
	return lines
}

func (p *protocol) tail(lines []string) {
	if n := len(lines); n > mostLines {
		fmt.Fprintf(p.show, "    (%d lines before)\n", n-mostLines)
		lines = lines[n-mostLines:]
	}
	for _, line := range lines {
		fmt.Fprintln(p.show, "    "+line)
	}
}

// close judges the binary's end and its skips, and gives the totals.
func (p *protocol) close(end error, expected []expectation) totals {
	switch {
	case end != nil && p.failed == 0:
		p.failed++
		fmt.Fprintf(p.show, "--- FAIL: %s ended without a verdict: %v\n", p.pkg, end)
		var lines []string
		for _, l := range p.output {
			lines = append(lines, l.text)
		}
		p.tail(lines)
	case end == nil && p.passed+p.failed+p.skipped == 0:
		p.failed++
		fmt.Fprintf(p.show, "--- FAIL: %s: no test ran\n", p.pkg)
	}
	for _, s := range p.skips {
		if why := reasonFor(s, expected); why != "" {
			fmt.Fprintf(p.show, "--- SKIP: %s (%s)\n", s, why)
			continue
		}
		p.failed++
		fmt.Fprintf(p.show, "--- FAIL: skipped, which nothing in skips.txt expects: %s\n", s)
	}
	return p.totals
}

// add counts one package more and shows its line.
func (t *totals) add(p totals, took time.Duration, pkg string) string {
	t.passed, t.failed, t.skipped = t.passed+p.passed, t.failed+p.failed, t.skipped+p.skipped
	word := "ok  "
	if p.failed > 0 {
		word = "FAIL"
	}
	return fmt.Sprintf("%s %-24s %4d passed, %2d failed, %2d skipped %7.1f s", word, pkg, p.passed, p.failed, p.skipped, took.Seconds())
}
