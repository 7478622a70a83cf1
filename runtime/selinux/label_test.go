package selinux

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/kerneltest"
)

// policy stands in for the kernel: it knows these parts, and which types the role has.
func policy(label string) (string, error) {
	p, err := split(label)
	if err != nil {
		return "", err
	}
	known := p.user == "system_u" && p.role == "system_r" && (p.kind == "container_t" || p.kind == "custom_t" || p.kind == "spc_t") ||
		p.user == "staff_u" && p.role == "staff_r" && p.kind == "container_t" ||
		p.role == "object_r" && p.kind == "container_file_t" && p.user != "nobody_u"
	if !known || p.level != "" && !strings.HasPrefix(p.level, "s0") || strings.Contains(p.level, "c2000") {
		return "", fmt.Errorf("label %q: %w", label, ErrLabel)
	}
	if pair, ok := pairOf(p.level); ok && !strings.Contains(p.level, "-") {
		p.level = "s0:" + pair.String()
	}
	return p.String(), nil
}

func testLabels(t *testing.T, categories int) *Labels {
	t.Helper()
	l, err := newLabels("system_u:system_r:container_t:s0:c7,c8", "system_u:object_r:container_file_t:s0:c7,c8", Config{Categories: categories}, policy)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestSandboxesHaveDifferentCategoriesUntilReleased(t *testing.T) {
	l := testLabels(t, 3)
	taken := map[string]string{}
	for _, id := range []string{"a", "b", "c"} {
		got, err := l.Sandbox(id, Options{})
		if err != nil {
			t.Fatal(err)
		}
		level, ok := strings.CutPrefix(got.Process, "system_u:system_r:container_t:")
		if !ok || got.Mount != "system_u:object_r:container_file_t:"+level || taken[level] != "" {
			t.Errorf("%s: got %+v, taken %v", id, got, taken)
		}
		taken[level] = id
	}
	if _, err := l.Sandbox("d", Options{}); !errors.Is(err, ErrExhausted) {
		t.Errorf("with all of three pairs taken: got %v, want ErrExhausted", err)
	}
	if got, err := l.Sandbox("d", Options{Level: "s0:c0,c1"}); err != nil || !strings.HasSuffix(got.Process, ":s0:c0,c1") {
		t.Errorf("a level that is asked for: got %+v, %v", got, err)
	}
	l.Release("b")
	l.Release("never")
	got, err := l.Sandbox("e", Options{})
	if err != nil || taken[got.Process[len("system_u:system_r:container_t:"):]] != "b" {
		// d shares c0,c1, so where that was b's nothing is free yet.
		if _, shared := l.pairs.holders[pair{0, 1}]; !shared || taken["s0:c0,c1"] != "b" {
			t.Errorf("after b's release: got %+v, %v, taken %v", got, err, taken)
		}
	}
}

// A restart of the daemon: what is recorded is held before anybody is given anything.
func TestHeldCategoriesAreNobodyElses(t *testing.T) {
	l := testLabels(t, 3)
	l.HoldLabel("a", "system_u:system_r:container_t:s0:c0,c1")
	l.HoldLabel("a", "system_u:system_r:container_t:s0:c1,c0")
	l.Hold("a", "s0-s0:c0.c1")
	l.Hold("b", "s0:c0,c2")
	l.HoldLabel("old", "")
	for range 20 {
		got, err := l.Sandbox("c", Options{})
		if err != nil || !strings.HasSuffix(got.Process, ":s0:c1,c2") {
			t.Fatalf("got %+v, %v, want the only free pair", got, err)
		}
		l.Release("c")
	}
	l.Release("a")
	if n := len(l.pairs.holders); n != 1 {
		t.Errorf("after release %d pairs are held, want b's", n)
	}
}

func TestContainersHaveTheSandboxsLabelAndWhatTheyAskFor(t *testing.T) {
	l := testLabels(t, 0)
	sandbox := Pair{"system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"}
	for _, c := range []struct {
		name       string
		options    Options
		privileged bool
		want       Pair
	}{
		{"nothing", Options{}, false, sandbox},
		{"type", Options{Type: "custom_t"}, false, Pair{"system_u:system_r:custom_t:s0:c1,c2", sandbox.Mount}},
		{"level", Options{Level: "s0:c5,c4"}, false, Pair{"system_u:system_r:container_t:s0:c4,c5", "system_u:object_r:container_file_t:s0:c4,c5"}},
		{"no categories", Options{Level: "s0"}, false, Pair{"system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0"}},
		{"user and role", Options{User: "staff_u", Role: "staff_r"}, false, Pair{"staff_u:staff_r:container_t:s0:c1,c2", "staff_u:object_r:container_file_t:s0:c1,c2"}},
		{"privileged", Options{}, true, Pair{"system_u:system_r:spc_t:s0", sandbox.Mount}},
		{"privileged, asking", Options{Type: "custom_t", Level: "s0:c4,c5"}, true, Pair{"system_u:system_r:spc_t:s0", "system_u:object_r:container_file_t:s0:c4,c5"}},
	} {
		if got, err := l.Container(sandbox, c.options, c.privileged); err != nil || got != c.want {
			t.Errorf("%s: got %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
}

func TestWhatThePolicyDoesNotKnowIsNamed(t *testing.T) {
	l := testLabels(t, 0)
	many := "" // as a level may be, and no mount's label
	for c := 10; len(many) < 240; c += 3 {
		many += fmt.Sprintf(",c%d", c)
	}
	for _, c := range []struct {
		options      Options
		option, text string
	}{
		{Options{Type: "no_such_t"}, "type", `type "no_such_t"`},
		{Options{Level: "s9"}, "level", `level "s9"`},
		{Options{Type: "no_such_t", Level: "s9"}, "type", "no_such_t"},
		{Options{User: "nobody_u"}, "user", "nobody_u"},
		{Options{User: "staff_u", Role: "staff_r", Type: "custom_t"}, "role", "staff_r"},
		{Options{Level: "s0:c1" + many}, "level", "c1,c10,c13"},
	} {
		for _, privileged := range []bool{false, true} {
			_, err := l.Container(Pair{Process: "system_u:system_r:container_t:s0:c1,c2"}, c.options, privileged)
			var option *OptionError
			if !errors.As(err, &option) || option.Option != c.option || !errors.Is(err, ErrLabel) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%+v: got %v, want %s", c.options, err, c.option)
			}
		}
		if _, err := l.Sandbox("a", c.options); !errors.Is(err, ErrLabel) {
			t.Errorf("%+v: got %v for a sandbox", c.options, err)
		}
	}
	if n := len(l.pairs.holders) + len(l.pairs.held); n != 0 {
		t.Errorf("sandboxes that were refused hold %d pairs", n)
	}
}

// A policy without levels has none to give.
func TestPolicyWithoutCategories(t *testing.T) {
	l, err := newLabels("system_u:system_r:container_t", "system_u:object_r:container_file_t", Config{}, policy)
	if err != nil {
		t.Fatal(err)
	}
	got, err := l.Sandbox("a", Options{})
	if want := (Pair{"system_u:system_r:container_t", "system_u:object_r:container_file_t"}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestPairOf(t *testing.T) {
	for level, want := range map[string]string{
		"s0:c1,c2": "c1,c2", "s0:c2,c1": "c1,c2", "s0:c1.c2": "c1,c2", "s0-s0:c4,c9": "c4,c9", "s0:c1,c2-s0:c1,c2": "c1,c2", "s0:c1,c1,c2": "c1,c2",
		"": "", "s0": "", "s0:c1": "", "s0:c1,c2,c3": "", "s0:c0.c1023": "", "s0-s0:c0.c1023": "", "s0:x,y": "", "s0:c-1,c2": "", "s0:c2.c1": "",
	} {
		p, ok := pairOf(level)
		if ok != (want != "") || ok && p.String() != want {
			t.Errorf("%q: got %v, %v, want %q", level, p, ok, want)
		}
	}
}

func TestPairsAreNumberedOnceEach(t *testing.T) {
	const categories = 50
	seen := map[pair]bool{}
	for n := range categories * (categories - 1) / 2 {
		p := numbered(n)
		if p.low >= p.high || p.high >= categories || seen[p] {
			t.Fatalf("number %d is %v", n, p)
		}
		seen[p] = true
	}
}

func TestLabelsAreWrittenWithoutFollowingLinks(t *testing.T) {
	kerneltest.Root(t)
	dir, other := t.TempDir(), t.TempDir()
	outside := filepath.Join(other, "outside")
	for _, err := range []error{
		os.WriteFile(outside, nil, 0o600), os.MkdirAll(filepath.Join(dir, "a/b"), 0o755), os.WriteFile(filepath.Join(dir, "a/b/file"), nil, 0o600),
		os.Symlink(outside, filepath.Join(dir, "a/link")), unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	if err := SetTree(dir, label); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"": label, "a": label, "a/b/file": label, "a/link": label, "fifo": label} {
		if got := writtenLabel(filepath.Join(dir, name)); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
	before := writtenLabel(outside)
	if err := SetFile(filepath.Join(dir, "a/link"), "system_u:object_r:var_lib_t:s0"); err != nil {
		t.Fatal(err)
	}
	if got := writtenLabel(outside); got != before || got == label {
		t.Errorf("what a link leads to was labelled %q", got)
	}
	for _, err := range []error{SetFile("/no/such", ""), SetTree("/no/such", "")} {
		if err != nil {
			t.Errorf("an empty label: %v", err)
		}
	}
	if err := SetFile("/no/such", label); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("got %v", err)
	}
}

func writtenLabel(path string) string {
	buffer := make([]byte, 256)
	n, err := unix.Lgetxattr(path, xattr, buffer)
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(buffer[:n]), "\x00")
}
