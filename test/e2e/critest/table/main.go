// Command table judges a critest run: it reads ginkgo's JSON report and the list of skips,
// prints what passed, failed and was skipped and why, and fails unless every spec passed or
// has a line in the list.
// It owns the verdict; it may not decide what critest runs, except by printing the skips.
// Source: types.Report of github.com/onsi/ginkgo/v2.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

func main() {
	skipsPath := flag.String("skips", "", "`file` of skips")
	runtimeName := flag.String("runtime", "podwright", "`name` of the runtime; only podwright may lack an RPC")
	focus := flag.String("focus", "", "judge only specs that match this `regexp`")
	pattern := flag.Bool("skip-pattern", false, "print one regexp for --ginkgo.skip and exit")
	benchmark := flag.Bool("benchmark", false, "print the figures of benchmark runs, each given as NAME=DIRECTORY")
	flag.Parse()

	if *benchmark {
		ok, err := benchmarks(os.Stdout, flag.Args())
		exit(ok, err)
	}
	ok, err := run(*skipsPath, *runtimeName, *focus, *pattern, flag.Arg(0))
	exit(ok, err)
}

func exit(ok bool, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "table:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
	os.Exit(0)
}

func run(skipsPath, runtimeName, focus string, pattern bool, reportPath string) (bool, error) {
	file, err := os.Open(skipsPath)
	if err != nil {
		return false, err
	}
	defer file.Close()
	skips, err := readSkips(file, runtimeName)
	if err != nil {
		return false, fmt.Errorf("read skips %s: %w", skipsPath, err)
	}
	if pattern {
		fmt.Println(skipPattern(skips))
		return true, nil
	}
	focused, err := regexp.Compile(focus)
	if err != nil {
		return false, fmt.Errorf("parse focus: %w", err)
	}
	specs, err := readReport(reportPath)
	if err != nil {
		return false, err
	}
	specs = slices.DeleteFunc(specs, func(s spec) bool { return !focused.MatchString(s.name()) })
	v := judge(specs, skips)
	if focus != "" {
		v.stale = nil // the lines' specs may just not be in focus
	}
	v.print(os.Stdout)
	return v.ok(), nil
}

// skip is one line of the list.
type skip struct {
	lacks string // "RPC Exec", "LSM AppArmor"
	name  *regexp.Regexp
}

func readSkips(r io.Reader, runtimeName string) ([]skip, error) {
	var skips []skip
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		lacks, expression, ok := strings.Cut(line, " | ")
		if !ok {
			return nil, fmt.Errorf("%q: no %q", line, " | ")
		}
		name, err := regexp.Compile(expression)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(lacks, "RPC ") && runtimeName != "podwright" {
			continue
		}
		skips = append(skips, skip{lacks, name})
	}
	return skips, lines.Err()
}

// skipPattern joins the lines for critest. It matches them against the suite's description
// and the name, so an anchor at the name's beginning has to go.
func skipPattern(skips []skip) string {
	var patterns []string
	for _, s := range skips {
		if strings.HasPrefix(s.lacks, "RPC ") {
			patterns = append(patterns, strings.TrimPrefix(s.name.String(), "^"))
		}
	}
	return strings.Join(patterns, "|")
}

// spec is what this program reads of ginkgo's types.SpecReport.
type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeType            string
	LeafNodeText            string
	State                   string
	RunTime                 time.Duration
	Failure                 struct {
		Message  string
		Location struct {
			FileName   string
			LineNumber int
		}
	}
}

func (s spec) name() string {
	return strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " ")
}

func readReport(path string) ([]spec, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var reports []struct{ SpecReports []spec }
	if err := json.Unmarshal(text, &reports); err != nil {
		return nil, fmt.Errorf("read report %s: %w", path, err)
	}
	var specs []spec
	for _, report := range reports {
		for _, s := range report.SpecReports {
			// A failed BeforeSuite or AfterSuite is in the report as a spec without a name.
			if s.LeafNodeType != "It" && (s.State == "passed" || s.State == "skipped") {
				continue
			}
			specs = append(specs, s)
		}
	}
	if len(specs) == 0 {
		return nil, errors.New("read report " + path + ": no specs in it")
	}
	return specs, nil
}

// verdict sorts the specs of a run.
type verdict struct {
	passed  int
	failed  []spec
	skipped map[string][]string // what is lacked -> names
	unknown []spec              // skipped, and no line says why
	stale   []skip              // lines that no spec matches
}

func judge(specs []spec, skips []skip) verdict {
	v := verdict{skipped: map[string][]string{}}
	matched := map[string]bool{}
	for _, s := range specs {
		line := slices.IndexFunc(skips, func(k skip) bool { return k.name.MatchString(s.name()) })
		if line >= 0 {
			matched[skips[line].name.String()] = true
		}
		switch {
		case s.State == "passed":
			v.passed++
		case s.State != "skipped" && s.State != "pending":
			v.failed = append(v.failed, s)
		case line >= 0:
			v.skipped[skips[line].lacks] = append(v.skipped[skips[line].lacks], s.name())
		default:
			v.unknown = append(v.unknown, s)
		}
	}
	for _, s := range skips {
		if !matched[s.name.String()] {
			v.stale = append(v.stale, s)
		}
	}
	return v
}

func (v verdict) ok() bool {
	return v.passed > 0 && len(v.failed)+len(v.unknown)+len(v.stale) == 0
}

func (v verdict) print(w io.Writer) {
	skipped := len(v.unknown)
	reasons := make([]string, 0, len(v.skipped))
	for lacks, names := range v.skipped {
		reasons = append(reasons, lacks)
		skipped += len(names)
	}
	slices.Sort(reasons)
	for _, lacks := range reasons {
		names := v.skipped[lacks]
		slices.Sort(names)
		fmt.Fprintf(w, "skipped, %s: %d\n", lacks, len(names))
		for _, name := range names {
			fmt.Fprintf(w, "    %s\n", name)
		}
	}
	for _, s := range v.unknown {
		fmt.Fprintf(w, "SKIPPED WITHOUT A LINE IN THE LIST: %s\n    %s\n", s.name(), firstLines(s.Failure.Message, 2))
	}
	for _, s := range v.stale {
		fmt.Fprintf(w, "LINE WITHOUT A SPEC: %s | %s\n", s.lacks, s.name)
	}
	for _, s := range v.failed {
		fmt.Fprintf(w, "%s: %s\n    %s:%d\n    %s\n", strings.ToUpper(s.State), s.name(),
			s.Failure.Location.FileName, s.Failure.Location.LineNumber, firstLines(s.Failure.Message, 12))
	}
	fmt.Fprintf(w, "critest: %d specs, %d passed, %d failed, %d skipped\n",
		v.passed+len(v.failed)+skipped, v.passed, len(v.failed), skipped)
}

// firstLines keeps a failure readable: behind the text, gomega prints whole structures.
func firstLines(text string, n int) string {
	text, _, _ = strings.Cut(text, "\nUnexpected error:")
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) > n {
		lines = append(lines[:n], "...")
	}
	return strings.Join(lines, "\n    ")
}
