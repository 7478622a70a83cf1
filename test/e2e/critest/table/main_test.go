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
