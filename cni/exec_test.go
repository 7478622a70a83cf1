package cni

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const fakeConf = `{"cniVersion":"1.0.0","name":"podnet","plugins":[{"type":"fake"}]}`

// A plugin that fails, hangs or prints rubbish: the error names network, plugin
// and what it said, bounded and printable, and the caller is not held up.
func TestPluginThatFailsIsNamedWithItsWords(t *testing.T) {
	const add = `[ "$CNI_COMMAND" = ADD ] || exit 0; `
	cases := []struct {
		name, body string
		want       []string
		not        string
	}{
		{"an error as specified", add + `echo '{"code":11,"msg":"no free addresses","details":"range 10.0.0.0/30"}'; exit 1`,
			[]string{`attach network "podnet": plugin fake: no free addresses; range 10.0.0.0/30`}, "type="},
		{"words on stderr", add + `echo "iptables: not found" >&2; exit 3`,
			[]string{`"podnet"`, "plugin fake", "exit status 3", `stderr "iptables: not found"`}, ""},
		{"rubbish and failure", add + `printf 'Segm\033[31ment\n\001'; exit 1`,
			[]string{"plugin fake", `stdout "Segm\x1b[31ment`}, "\033"},
		{"an error with terminal sequences", add + `printf '{"code":7,"msg":"a\\u001b[2Jb\\nFAKE LOG LINE"}'; exit 1`,
			[]string{"plugin fake: a [2Jb FAKE LOG LINE"}, "\033"},
		{"rubbish and success", add + `echo hello world`,
			[]string{`"podnet"`, "plugin fake", "without a valid answer", `"hello world"`}, ""},
		{"nothing and success", add, []string{"plugin fake", "without a valid answer", "printed nothing"}, ""},
		{"null", add + `echo null`, []string{"plugin fake", "without a valid answer"}, ""},
		{"a list with nulls", add + `echo '{"cniVersion":"0.4.0","ips":[null]}'`, []string{"plugin fake", "without a valid answer"}, ""},
		{"half an answer", add + `printf '{"cniVersion":"1.0.0","ips":['`, []string{"plugin fake", "without a valid answer"}, ""},
		{"an unknown version", add + `echo '{"cniVersion":"9.9.9"}'`, []string{`"podnet"`, "9.9.9"}, ""},
		{"no address", add + `echo '{"cniVersion":"1.0.0"}'`, []string{`"podnet"`, "no address"}, ""},
		{"death by a signal", add + `kill -SEGV $$`, []string{"plugin fake", "segmentation fault"}, ""},
		{"output without end", add + `yes 0123456789abcdef | head -c 3000000`, []string{"plugin fake", "more than 1048576 bytes"}, "0123"},
		{"a novel on stderr", add + `yes xxxxxxxxxxxxxxxx | head -c 3000000 >&2; exit 1`, []string{"plugin fake", "xxxx"}, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			n.plugin("fake", c.body)
			n.conf("10-a.conflist", fakeConf)
			attached, err := n.ready().Attach(context.Background(), pod("sb1", "/run/netns/none"))
			wantError(t, err, c.want...)
			if attached == nil || len(attached.Networks) != 1 {
				t.Errorf("attachment to tear down: got %+v", attached)
			}
			if err == nil {
				return
			}
			if len(err.Error()) > 3*maxSaidBytes {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			if c.not != "" && strings.Contains(err.Error(), c.not) {
				t.Errorf("%q contains %q", err, c.not)
			}
		})
	}
}

func TestErrorCodeOfThePluginIsKept(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", `echo '{"code":11,"msg":"try again later"}'; exit 1`)
	n.conf("10-a.conflist", fakeConf)
	_, err := n.ready().Attach(context.Background(), pod("sb1", "/x"))
	var perr *PluginError
	if !errors.As(err, &perr) || perr.Code != 11 || perr.Plugin != "fake" || perr.Command != "ADD" || perr.Timeout {
		t.Errorf("got %#v", perr)
	}
}

// hang starts a child in the group that writes its pid and holds the pipes, too.
const hang = `[ "$CNI_COMMAND" = ADD ] || exit 0
echo working on it >&2
sleep 300 &
echo $! >>"$LOG"
echo $$ >>"$LOG"
wait
`

func checkAllDead(t *testing.T, n *node) {
	t.Helper()
	pids := n.lines()
	if len(pids) != 2 {
		t.Fatalf("pids: got %v, want two", pids)
	}
	for _, line := range pids {
		pid, err := strconv.Atoi(line[0])
		if err != nil {
			t.Fatal(err)
		}
		dead := false
		for range 100 {
			state, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
			// An orphan may wait as a zombie for whoever is init here.
			if dead = err != nil || strings.Contains(string(state), ") Z "); dead {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if !dead {
			t.Errorf("process %d of the plugin is alive", pid)
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
				_ = unix.Close(fd)
			}
		}
	}
}

func TestPluginThatHangsIsKilledWithItsGroupAtTheDeadline(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", hang)
	n.conf("10-a.conflist", fakeConf)
	network := n.ready()
	network.runner.timeout = 300 * time.Millisecond
	begin := time.Now()
	_, err := network.Attach(context.Background(), pod("sb1", "/x"))
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
	wantError(t, err, `attach network "podnet"`, "plugin fake", "ADD: no answer within 300ms, killed", "working on it")
	var perr *PluginError
	if !errors.As(err, &perr) || !perr.Timeout || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %#v, want a timeout", err)
	}
	checkAllDead(t, n)
}

func TestCallerThatLeavesEndsThePlugin(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", hang)
	n.conf("10-a.conflist", fakeConf)
	network := n.ready()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err := network.Attach(ctx, pod("sb1", "/x"))
	if took := time.Since(begin); took > 1300*time.Millisecond {
		t.Errorf("took %s", took)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	var perr *PluginError
	if !errors.As(err, &perr) || perr.Timeout {
		t.Errorf("got %#v, want no timeout of the plugin's own", perr)
	}
	checkAllDead(t, n)
}

// A plugin may leave a daemon running (dnsmasq); that it holds stdout hangs nobody.
func TestPluginThatLeavesAProcessBehindIsNotWaitedForForever(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", recorder+`[ "$CNI_COMMAND" = ADD ] && { sleep 30 & echo $! >>"$LOG"; echo $$ >>"$LOG"; }; exit 0`)
	n.conf("10-a.conflist", fakeConf)
	network := n.ready()
	begin := time.Now()
	if _, err := network.Attach(context.Background(), pod("sb1", "/x")); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > outputGrace+3*time.Second {
		t.Errorf("took %s", took)
	}
	for _, line := range n.lines() {
		pid, err := strconv.Atoi(line[0])
		if err != nil {
			continue
		}
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			_ = unix.Close(fd)
		}
	}
}

func TestPluginEnvironmentLacksTheDaemonsOwnVariables(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/systemd/notify")
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("WHATEVER", "kept")
	n := newNode(t)
	n.plugin("fake", `env >"$LOG"; pwd >>"$LOG"; ls /proc/$$/fd >>"$LOG"; exit 1`)
	n.conf("10-a.conflist", fakeConf)
	_, _ = n.ready().Attach(context.Background(), pod("sb1", "/x"))
	data, err := os.ReadFile(n.log)
	if err != nil {
		t.Fatal(err)
	}
	env := "\n" + string(data)
	for _, want := range []string{"\nWHATEVER=kept\n", "\nPATH=", "\nCNI_CONTAINERID=sb1\n", "\n/\n0\n1\n"} {
		if !strings.Contains(env, want) {
			t.Errorf("%q is missing in %s", want, env)
		}
	}
	for _, not := range []string{"NOTIFY_SOCKET", "LISTEN_FDS"} {
		if strings.Contains(env, not) {
			t.Errorf("%s is given to plugins", not)
		}
	}
	if got := pluginEnv([]string{"A=1"}); len(got) != 2 || got[1] != defaultPath {
		t.Errorf("without PATH: got %v", got)
	}
}

// CVE-2021-20206
func TestPluginNameIsNeverAPath(t *testing.T) {
	dir := t.TempDir()
	inner := filepath.Join(dir, "bin")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "evil"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(inner, "data"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r := &runner{}
	for _, name := range []string{"../evil", "/bin/sh", "..", ".", "", "a/b", "data", "missing", "-x", "a\x00"} {
		if path, err := r.FindInPath(name, []string{inner}); err == nil {
			t.Errorf("%q: found %s", name, path)
		}
	}
	if path, err := r.FindInPath("evil", []string{inner, dir}); err != nil || path != filepath.Join(dir, "evil") {
		t.Errorf("got %s, %v", path, err)
	}
}
