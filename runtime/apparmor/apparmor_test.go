package apparmor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fakeKernel is a directory as the kernel shows its profiles, and a parser that writes there.
type fakeKernel struct {
	t   *testing.T
	dir string
}

func newFakeKernel(t *testing.T, profiles ...string) *fakeKernel {
	t.Helper()
	k := &fakeKernel{t, t.TempDir()}
	k.write("profiles", strings.Join(append(profiles, ""), "\n"))
	return k
}

func (k *fakeKernel) write(name, text string) {
	k.t.Helper()
	path := filepath.Join(k.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		k.t.Fatal(err)
	}
}

// policy has a parser that runs script with $kernel set; its standard input is the profile.
func (k *fakeKernel) policy(own, script string) *Policy {
	k.t.Helper()
	parser := filepath.Join(k.dir, "parser")
	k.write("parser", "#!/bin/sh\nkernel="+k.dir+"\necho run >>$kernel/runs\n"+script+"\n")
	if err := os.Chmod(parser, 0o755); err != nil {
		k.t.Fatal(err)
	}
	return &Policy{
		cfg:    Config{Default: DefaultName, StateFile: filepath.Join(k.dir, "state")},
		kernel: k.dir, own: own, parser: func() (string, error) { return parser, nil }, loading: make(chan struct{}, 1),
	}
}

func (k *fakeKernel) runs() int {
	raw, _ := os.ReadFile(filepath.Join(k.dir, "runs"))
	return strings.Count(string(raw), "run")
}

// loads is a parser that succeeds, as the kernel does then.
const loads = `mkdir -p $kernel/policy/profiles/podwright-default.7
echo podwright-default >$kernel/policy/profiles/podwright-default.7/name
cat >$kernel/text
sha256sum <$kernel/text >$kernel/policy/profiles/podwright-default.7/sha256
sed -i '/^podwright-default /d' $kernel/profiles
echo "podwright-default (enforce)" >>$kernel/profiles`

func TestProfileIsLoadedOnceAndAgainWhenItChanged(t *testing.T) {
	k := newFakeKernel(t, "/usr/bin/man (enforce)", "some (name) (complain)")
	ctx := context.Background()
	for step, c := range []struct {
		what string
		do   func(p *Policy)
		own  string
		runs int
	}{
		{"first start", func(*Policy) {}, unconfined, 1},
		{"start with the same", func(*Policy) {}, unconfined, 1},
		{"start under a profile", func(*Policy) {}, "podwright", 2},
		{"replaced by another", func(*Policy) { k.write("policy/profiles/podwright-default.7/sha256", "other") }, "podwright", 3},
		{"removed", func(*Policy) { k.write("profiles", "") }, "podwright", 4},
		{"complains only", func(*Policy) { k.write("profiles", "podwright-default (complain)\n") }, "podwright", 5},
		{"state lost", func(p *Policy) { os.Remove(p.cfg.StateFile) }, "podwright", 6},
	} {
		p := k.policy(c.own, loads)
		c.do(p)
		if err := p.Load(ctx); err != nil {
			t.Fatalf("step %d, %s: %v", step, c.what, err)
		}
		if got := k.runs(); got != c.runs {
			t.Errorf("step %d, %s: the parser ran %d times, want %d", step, c.what, got, c.runs)
		}
	}
	p := k.policy("podwright", loads)
	name, err := p.Default(ctx)
	if name != DefaultName || err != nil || k.runs() != 6 {
		t.Errorf("the default of a node that has it: got %q, %v, %d runs", name, err, k.runs())
	}
	k.write("profiles", "")
	if name, err = p.Default(ctx); name != DefaultName || err != nil || k.runs() != 7 {
		t.Errorf("the default after its removal: got %q, %v, %d runs, want it loaded", name, err, k.runs())
	}
}

func TestFailureToLoadIsSaidAndNotRepeatedAtOnce(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct{ name, script, want string }{
		{"the parser refuses", "echo 'AppArmor parser error at line 3' >&2; exit 1", "AppArmor parser error at line 3"},
		{"the parser does nothing", "cat >/dev/null", "the profile is not loaded"},
	} {
		k := newFakeKernel(t)
		p := k.policy(unconfined, c.script)
		for range 3 {
			if _, err := p.Default(ctx); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), DefaultName) {
				t.Errorf("%s: got %v, want %q", c.name, err, c.want)
			}
		}
		if k.runs() != 1 {
			t.Errorf("%s: the parser ran %d times", c.name, k.runs())
		}
		p.again = time.Now()
		p.Default(ctx)
		if k.runs() != 2 {
			t.Errorf("%s: later the parser ran %d times, want another try", c.name, k.runs())
		}
	}
	k := newFakeKernel(t)
	p := k.policy(unconfined, "")
	p.parser = func() (string, error) { return "", ErrNoParser }
	if _, err := p.Default(ctx); !errors.Is(err, ErrNoParser) {
		t.Errorf("without a parser: got %v", err)
	}
}

func TestParserThatHangsIsEnded(t *testing.T) {
	k := newFakeKernel(t)
	p := k.policy(unconfined, "exec sleep 1000")
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := p.Default(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	p.loading <- struct{}{} // somebody else waits for the parser
	if err := p.Load(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("behind another: got %v, want the deadline", err)
	}
}

func TestLoadedReadsTheKernelsList(t *testing.T) {
	k := newFakeKernel(t, "plain (enforce)", "with (parentheses) (complain)", "/usr/bin/x//child (kill)", "nothing")
	p := k.policy(unconfined, "")
	for name, mode := range map[string]string{"plain": "enforce", "with (parentheses)": "complain", "/usr/bin/x//child": "kill"} {
		if got, err := p.Loaded(name); got != mode || err != nil {
			t.Errorf("%s: got %q, %v, want %s", name, got, err, mode)
		}
	}
	for _, name := range []string{"", "plai", "plain (enforce)", "with", "nothing", "plain//&/usr/bin/x//child"} {
		if _, err := p.Loaded(name); !errors.Is(err, ErrNotLoaded) {
			t.Errorf("%q: got %v, want ErrNotLoaded", name, err)
		}
	}
	os.Remove(filepath.Join(k.dir, "profiles"))
	if _, err := p.Loaded("plain"); err == nil || errors.Is(err, ErrNotLoaded) || !strings.Contains(err.Error(), "securityfs") {
		t.Errorf("without securityfs: got %v, want what to mount", err)
	}
}

func TestDefaultOfTheNodesOwn(t *testing.T) {
	k := newFakeKernel(t, "site (complain)")
	p := k.policy(unconfined, loads)
	p.cfg.Default = "site"
	if name, err := p.Default(context.Background()); name != "site" || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
	p.cfg.Default = "gone"
	if _, err := p.Default(context.Background()); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("one that is missing: got %v", err)
	}
	p.cfg.Default = ""
	if _, err := p.Default(context.Background()); err == nil {
		t.Error("none: got no error")
	}
	if err := p.Load(context.Background()); err != nil || k.runs() != 0 {
		t.Errorf("got %v, the parser ran %d times for profiles of the node's", err, k.runs())
	}
}

func TestProfileText(t *testing.T) {
	text, err := profileText(unconfined, true)
	if err != nil || !strings.HasPrefix(text, "abi <abi/3.0>,\n") || strings.Count(text, "{") == 0 || !strings.HasSuffix(text, "}\n") {
		t.Errorf("got %v\n%s", err, text)
	}
	if strings.Contains(text, "include") {
		t.Error("the profile depends on files of the node's")
	}
	text, err = profileText("/usr/local/bin/podwright//&x", false)
	if err != nil || strings.Contains(text, "abi <") || !strings.Contains(text, "signal (receive) peer=/usr/local/bin/podwright//&x,") {
		t.Errorf("of a confined daemon: got %v\n%s", err, text)
	}
	for _, own := range []string{"a b", "x{a,b}", "x*", "x,\n  mount", `"x"`, "^x", ""} {
		if text, err := profileText(own, true); err == nil {
			t.Errorf("label %q: got no error\n%s", own, text)
		}
	}
}

// TestProfileCompiles has the parser read the profile, as of a daemon that is confined and of one that is not. Nothing is loaded.
func TestProfileCompiles(t *testing.T) {
	parser, err := Parser()
	if err != nil {
		t.Skipf("%s is missing", parserName)
	}
	for _, own := range []string{unconfined, "/usr/local/bin/podwright", "podwright//&:ns://x"} {
		for _, abi := range []bool{false, true} {
			if _, err := os.Stat(policyABI); abi && err != nil {
				continue
			}
			text, err := profileText(own, abi)
			if err != nil {
				t.Fatal(err)
			}
			if err := runParser(context.Background(), parser, text, "--skip-kernel-load"); err != nil {
				t.Errorf("label %s, abi %v: %v", own, abi, err)
			}
			if err := runParser(context.Background(), parser, strings.Replace(text, "deny mount", "deny mounds", 1), "--skip-kernel-load"); err == nil {
				t.Error("the parser takes anything")
			}
		}
	}
}
