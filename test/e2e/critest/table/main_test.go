package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const list = `
# a comment
RPC Exec | ^\[k8s\.io\] Streaming .* exec with tty=
LSM AppArmor | ^\[k8s\.io\] AppArmor
`

// report writes a ginkgo report with one spec per "state name" and returns its path.
func report(t *testing.T, specs ...string) string {
	t.Helper()
	var text strings.Builder
	text.WriteString(`[{"SpecReports":[{"LeafNodeType":"BeforeSuite","State":"passed"}`)
	for _, s := range specs {
		state, name, _ := strings.Cut(s, " ")
		text.WriteString(`,{"ContainerHierarchyTexts":["[k8s.io]"],"LeafNodeType":"It","LeafNodeText":"` + name + `","State":"` + state + `"}`)
	}
	text.WriteString("]}]")
	path := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestVerdict(t *testing.T) {
	stream, apparmor := "skipped Streaming x exec with tty=false", "skipped AppArmor x"
	for name, test := range map[string]struct {
		runtime string
		specs   []string
		ok      bool
		says    string
	}{
		"all accounted for":             {"podwright", []string{"passed a", stream, apparmor}, true, "3 specs, 1 passed, 0 failed, 2 skipped"},
		"a failure":                     {"podwright", []string{"passed a", "failed b", stream, apparmor}, false, "FAILED: [k8s.io] b"},
		"a panic":                       {"podwright", []string{"passed a", "panicked b", stream, apparmor}, false, "PANICKED: [k8s.io] b"},
		"a skip without a line":         {"podwright", []string{"passed a", "skipped b", stream, apparmor}, false, "SKIPPED WITHOUT A LINE IN THE LIST: [k8s.io] b"},
		"a line without a spec":         {"podwright", []string{"passed a", apparmor}, false, "LINE WITHOUT A SPEC: RPC Exec"},
		"a peer has every RPC":          {"containerd", []string{"passed a", stream, apparmor}, false, "SKIPPED WITHOUT A LINE"},
		"a peer needs no line for RPCs": {"containerd", []string{"passed a", apparmor}, true, "2 specs, 1 passed"},
		"nothing ran":                   {"podwright", []string{stream, apparmor}, false, "0 passed"},
	} {
		t.Run(name, func(t *testing.T) {
			skips, err := readSkips(strings.NewReader(list), test.runtime)
			if err != nil {
				t.Fatal(err)
			}
			specs, err := readReport(report(t, test.specs...))
			if err != nil {
				t.Fatal(err)
			}
			v := judge(specs, skips)
			var out bytes.Buffer
			v.print(&out)
			if v.ok() != test.ok || !strings.Contains(out.String(), test.says) {
				t.Errorf("specs %q: got ok %v and\n%s\nwant ok %v and %q", test.specs, v.ok(), out.String(), test.ok, test.says)
			}
		})
	}
}

// A failed BeforeSuite must not pass as a run in which nothing failed.
func TestReportKeepsFailedSuiteNodes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.json")
	text := `[{"SpecReports":[{"LeafNodeType":"BeforeSuite","State":"failed"},{"LeafNodeType":"It","LeafNodeText":"a","State":"passed"}]}]`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	specs, err := readReport(path)
	if err != nil {
		t.Fatal(err)
	}
	if v := judge(specs, nil); v.ok() {
		t.Errorf("got ok for a report with a failed BeforeSuite, want not ok")
	}
}

// critest matches --ginkgo.skip against the suite's description, a space and the name.
func TestSkipPatternMatchesBehindTheSuiteDescription(t *testing.T) {
	skips, err := readSkips(strings.NewReader(list), "podwright")
	if err != nil {
		t.Fatal(err)
	}
	pattern := skipPattern(skips)
	re := regexp.MustCompile(pattern)
	if name := "CRI validation [k8s.io] Streaming x exec with tty=true"; !re.MatchString(name) {
		t.Errorf("pattern %q does not match %q", pattern, name)
	}
	if name := "CRI validation [k8s.io] AppArmor y"; re.MatchString(name) {
		t.Errorf("pattern %q matches %q, which skips itself", pattern, name)
	}
}

func TestSkipsRefuseALineWithoutReason(t *testing.T) {
	if _, err := readSkips(strings.NewReader("^Streaming"), "podwright"); err == nil {
		t.Error("got no error for a line that does not say what is lacked")
	}
}

func TestBenchmarksAreShownSideBySide(t *testing.T) {
	run := func(states string, ns string) string {
		dir := t.TempDir()
		var specs []string
		for _, state := range strings.Fields(states) {
			specs = append(specs, state+" benchmark about start a container from scratch")
		}
		for name, text := range map[string]string{
			"pod_benchmark_data.json": `{"operationsNames":["CreatePod","StopPod"],"datapoints":[{"operationsDurationsNs":[` + ns + `,2000000]},{"operationsDurationsNs":[` + ns + `]}]}`,
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(report(t, specs...), filepath.Join(dir, "report")); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for name, test := range map[string]struct {
		states string
		ok     bool
	}{"all passed": {"passed passed", true}, "one skipped": {"passed skipped", false}, "one failed": {"failed passed", false}} {
		var out bytes.Buffer
		ok, err := benchmarks(&out, []string{"a=" + run("passed", "1500000"), "b=" + run(test.states, "40000000")})
		if err != nil || ok != test.ok {
			t.Errorf("%s: got %t, %v, want %t\n%s", name, ok, err, test.ok, &out)
		}
		if !regexp.MustCompile(`CreatePod +2 +1\.50 +1\.50 +2 +40\.00 +40\.00`).MatchString(out.String()) || !regexp.MustCompile(`StopPod +1 +2\.00`).MatchString(out.String()) {
			t.Errorf("%s: got %s", name, &out)
		}
	}
	for _, bad := range [][]string{nil, {"a"}, {"a=/nonexistent"}} {
		if _, err := benchmarks(&bytes.Buffer{}, bad); err == nil {
			t.Errorf("%q: got no error", bad)
		}
	}
}
