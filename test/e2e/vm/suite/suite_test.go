package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func feed(text string, end error, skips string) (totals, string) {
	var shown strings.Builder
	p := &protocol{pkg: "runtime/x", show: &shown}
	for line := range strings.Lines(text) {
		p.line(strings.TrimSuffix(strings.ReplaceAll(line, "^V", "\x16"), "\n"))
	}
	expected, err := parseSkips(skips, "selinux")
	if err != nil {
		panic(err)
	}
	return p.close(end, expected), shown.String()
}

func TestVerdicts(t *testing.T) {
	failure := errors.New("exit status 1")
	for name, test := range map[string]struct {
		text, skips string
		end         error
		want        totals
		words       []string
	}{
		"passes": {text: "^V=== RUN   TestA\nsaid^V--- PASS: TestA (0.00s)\n^V=== RUN   TestB\n^V=== RUN   TestB/sub\n^V    --- PASS: TestB/sub (0.00s)\n^V--- PASS: TestB (1.00s)\n^VPASS\n",
			want: totals{passed: 2}},
		"a failure with what it said": {text: "^V=== RUN   TestA\n^V=== RUN   TestA/sub\n    a_test.go:1: got 1, want 2\n^V    --- FAIL: TestA/sub (0.00s)\n^V--- FAIL: TestA (0.00s)\n^VFAIL\n",
			end: failure, want: totals{failed: 1}, words: []string{"--- FAIL: TestA (0.00s) in runtime/x", "a_test.go:1: got 1, want 2"}},
		"a panic": {text: "^V=== RUN   TestA\npanic: oh\n\ngoroutine 1\n", end: failure, want: totals{failed: 1}, words: []string{"ended without a verdict: exit status 1", "panic: oh"}},
		"nothing": {text: "testing: warning: no tests to run\n^VPASS\n", want: totals{failed: 1}, words: []string{"no test ran"}},
		"an expected skip": {text: "^V=== RUN   TestA\n    a_test.go:1: AppArmor is missing\n^V--- SKIP: TestA (0.00s)\n",
			skips: "selinux | the other boot has it | AppArmor is missing", want: totals{skipped: 1}, words: []string{"--- SKIP: runtime/x TestA: a_test.go:1: AppArmor is missing (the other boot has it)"}},
		"a skip that only the other boot expects": {text: "^V=== RUN   TestA\n    a_test.go:1: SELinux is missing\n^V--- SKIP: TestA (0.00s)\n",
			skips: "apparmor | the other boot has it | SELinux is missing", want: totals{failed: 1, skipped: 1}, words: []string{"nothing in skips.txt expects"}},
		"a skip below": {text: "^V=== RUN   TestA\n^V=== RUN   TestA/v1\n    a_test.go:1: no v1\n^V    --- SKIP: TestA/v1 (0.00s)\n^V--- PASS: TestA (0.00s)\n",
			skips: "any | v2 | TestA/v1: .*no v1", want: totals{passed: 1, skipped: 1}},
		"a test that prints a verdict": {text: "^V=== RUN   TestA\n--- FAIL: TestOther (0.00s)\n^V--- PASS: TestA (0.00s)\n", want: totals{passed: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			got, shown := feed(test.text, test.end, test.skips)
			if got != test.want {
				t.Errorf("got %+v, want %+v; shown: %s", got, test.want, shown)
			}
			for _, word := range test.words {
				if !strings.Contains(shown, word) {
					t.Errorf("shown %q, want %q in it", shown, word)
				}
			}
		})
	}
}

// The protocol is read from a test binary as Go makes it: this one.
func TestRunsARealBinary(t *testing.T) {
	if os.Getenv("SUITE_INNER") != "" {
		t.Run("sub", func(t *testing.T) { t.Skip("inner reason") })
		fmt.Print("no end of line")
		return
	}
	t.Setenv("SUITE_INNER", "1")
	tree, self := t.TempDir(), must(os.Executable())
	if err := errors.Join(os.Mkdir(filepath.Join(tree, "x"), 0o755), os.Symlink(self, filepath.Join(tree, "x", "x.test"))); err != nil {
		t.Fatal(err)
	}
	var shown, whole strings.Builder
	p := &protocol{pkg: "x", show: &shown}
	err := job{pkg: "x", limit: time.Minute, flags: []string{"-test.run=^TestRunsARealBinary$"}}.run(tree, p, &whole)
	expected, _ := parseSkips("any | because | inner reason", "none")
	if got := p.close(err, expected); got != (totals{passed: 1, skipped: 1}) || !strings.Contains(shown.String(), "(because)") {
		t.Errorf("got %+v, %v; shown %q, whole %q", got, err, shown.String(), whole.String())
	}
}

func TestPlanIsChecked(t *testing.T) {
	for text, want := range map[string]string{"": "nothing to run", "runtime/x\n": "want package", "runtime/x much\n": "want package", "runtime/x 0": "want package"} {
		file := filepath.Join(t.TempDir(), "plan")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := readPlan(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("plan %q: got %v, want %q", text, err, want)
		}
	}
}

func must(s string, err error) string {
	if err != nil {
		panic(err)
	}
	return s
}
