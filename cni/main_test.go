package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// insideEnv marks the copy of the test binary that runs in namespaces of its own.
const insideEnv = "PODWRIGHT_CNI_TEST_INSIDE"

// TestMain runs the tests in a mount and a network namespace of their own with an
// empty /run: the bridges, rules and addresses of real plugins never reach the
// machine, and all of them are gone with the process.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "serve" {
		serve(os.Args[2:])
		return
	}
	if os.Geteuid() != 0 {
		os.Exit(m.Run()) // what needs root skips
	}
	if os.Getenv(insideEnv) == "" {
		os.Exit(runInside())
	}
	if err := prepareInside(); err != nil {
		fmt.Fprintln(os.Stderr, "prepare namespaces of the tests' own:", err)
		os.Exit(1)
	}
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	os.Exit(m.Run())
}

func prepareInside() error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	return nil
}

func runInside() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// Unshareflags, not Cloneflags: Go makes the whole tree private before exec.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "re-execute the tests in namespaces of their own:", err)
		return 1
	}
	return 0
}

func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Getenv(insideEnv) == "" {
		tb.Skip("needs root: makes network namespaces")
	}
}

// node is a node's CNI set-up below a temporary directory.
type node struct {
	tb  testing.TB
	cfg Config
	// log is what fake plugins write about themselves.
	log string
}

func newNode(tb testing.TB) *node {
	tb.Helper()
	dir := tb.TempDir()
	n := &node{tb: tb, log: filepath.Join(dir, "log"), cfg: Config{
		ConfDir:       filepath.Join(dir, "net.d"),
		BinDirs:       []string{filepath.Join(dir, "bin")},
		CacheDir:      filepath.Join(dir, "cache"),
		PluginTimeout: 20 * time.Second,
	}}
	for _, sub := range []string{n.cfg.ConfDir, n.cfg.BinDirs[0]} {
		if err := os.Mkdir(sub, 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	return n
}

// plugin writes a plugin: a shell script that answers VERSION and, for the rest,
// does what body says. $LOG is the node's log file.
func (n *node) plugin(name, body string) {
	n.tb.Helper()
	n.write(filepath.Join(n.cfg.BinDirs[0], name), fmt.Sprintf(`#!/bin/sh
LOG=%q
if [ "$CNI_COMMAND" = VERSION ]; then
  echo '{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}'
  exit 0
fi
%s
`, n.log, body), 0o755)
}

// recorder is a plugin that logs one line of what it got and answers with an address.
const recorder = `echo "$(basename "$0")|$CNI_COMMAND|$CNI_CONTAINERID|$CNI_NETNS|$CNI_IFNAME|$CNI_ARGS|$(cat)" >>"$LOG"
if [ "$CNI_COMMAND" = ADD ]; then
  echo '{"cniVersion":"1.0.0","interfaces":[{"name":"vethX"},{"name":"'"$CNI_IFNAME"'","sandbox":"/x"}],"ips":[{"address":"10.9.0.2/24","interface":1},{"address":"fd00::2/64","interface":1},{"address":"10.9.0.1/24","interface":0}]}'
fi
`

func (n *node) conf(file, content string) {
	n.tb.Helper()
	n.write(filepath.Join(n.cfg.ConfDir, file), content, 0o644)
}

func (n *node) write(path, content string, mode os.FileMode) {
	n.tb.Helper()
	temp := path + ".new"
	if err := os.WriteFile(temp, []byte(content), mode); err != nil {
		n.tb.Fatal(err)
	}
	if err := os.Rename(temp, path); err != nil {
		n.tb.Fatal(err)
	}
}

// lines are the log's lines so far; it is emptied.
func (n *node) lines() [][]string {
	n.tb.Helper()
	data, err := os.ReadFile(n.log)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		n.tb.Fatal(err)
	}
	if err := os.Remove(n.log); err != nil {
		n.tb.Fatal(err)
	}
	var lines [][]string
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		lines = append(lines, strings.SplitN(line, "|", 7))
	}
	return lines
}

// start starts a Network on the node and ends it with the test.
func (n *node) start() *Network {
	n.tb.Helper()
	network, err := New(n.cfg)
	if err != nil {
		n.tb.Fatal(err)
	}
	if err := network.Start(context.Background()); err != nil {
		n.tb.Fatal(err)
	}
	n.tb.Cleanup(func() {
		if err := network.Close(); err != nil {
			n.tb.Error(err)
		}
	})
	return network
}

// ready starts a Network and waits until its plugins have been asked.
func (n *node) ready() *Network {
	n.tb.Helper()
	network := n.start()
	awaitStatus(n.tb, network, "")
	return network
}

// awaitStatus waits for a status with that text in it, or none for "".
func awaitStatus(tb testing.TB, network *Network, want string) {
	tb.Helper()
	var err error
	for begin := time.Now(); time.Since(begin) < 20*time.Second; time.Sleep(10 * time.Millisecond) {
		err = network.Status()
		if err == nil && want == "" || err != nil && want != "" && strings.Contains(err.Error(), want) {
			if err != nil && !errors.Is(err, ErrNotReady) {
				tb.Errorf("status %v is not ErrNotReady", err)
			}
			return
		}
	}
	tb.Fatalf("status: got %v, want %q", err, want)
}

// netns makes a network namespace that ends with the test and returns its path.
func netns(tb testing.TB, name string) string {
	tb.Helper()
	needRoot(tb)
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		tb.Fatalf("ip netns add: %v: %s", err, out)
	}
	tb.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	// As whoever makes a sandbox's namespace does.
	if out, err := exec.Command("ip", "-n", name, "link", "set", "lo", "up").CombinedOutput(); err != nil {
		tb.Fatalf("ip link set lo up: %v: %s", err, out)
	}
	return "/run/netns/" + name
}

func pod(id, netnsPath string) Pod {
	return Pod{SandboxID: id, Name: "web-0", Namespace: "shop", UID: "u-1", NetnsPath: netnsPath}
}

func wantError(tb testing.TB, err error, parts ...string) {
	tb.Helper()
	if err == nil {
		tb.Errorf("no error, want one with %q", parts)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			tb.Errorf("got %q, want %q in it", err, part)
		}
	}
}
