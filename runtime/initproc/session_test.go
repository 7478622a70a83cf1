package initproc

import (
	"bufio"
	"os"
	"strings"
	"testing"

	"github.com/podwright/podwright/runtime/launch"
	"golang.org/x/sys/unix"
)

func chdirOp(path string, create uint64) launch.Op {
	return launch.Op{Code: launch.OpChdir, Step: "chdir", Fd: -1, Path: path, Flags: create}
}

func TestWorkingDirectory(t *testing.T) {
	user := opsIdentity(1000, defaultCaps, 0)
	for _, c := range []struct {
		name          string
		make          func(dir string)
		before, after []launch.Op
		want          string
	}{
		{"missing and made", nil, []launch.Op{chdirOp("/srv/a/b", 1)}, nil, "/srv/a/b\nexit 0"},
		{"through a link of the image", func(dir string) { os.Symlink("/../../etc", dir+"/l") }, []launch.Op{chdirOp("/l", 0)}, nil, "/etc\nexit 0"},
		{"only root may enter", func(dir string) { os.Mkdir(dir+"/p", 0o700) }, []launch.Op{chdirOp("/p", 1)}, []launch.Op{chdirOp("/p", 0)}, "/p\nexit 0"},
		{"only as the user", func(dir string) { os.Mkdir(dir+"/p", 0o700); os.Chown(dir+"/p", 1000, 1000) }, nil, []launch.Op{chdirOp("/p", 0)}, "/p\nexit 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			newLab(t)
			dir, table := oneRoot(t)
			if c.make != nil {
				c.make(dir)
			}
			must(t, as(user, c.before, c.after, "pwd"), table, c.want)
		})
	}
	for _, c := range []struct {
		name          string
		make          func(dir string)
		before, after []launch.Op
		errno         unix.Errno
		path          string
	}{
		{"missing", nil, []launch.Op{chdirOp("/none", 0)}, nil, unix.ENOENT, "/none"},
		{"a file", nil, []launch.Op{chdirOp("/bin/sh", 1)}, nil, unix.ENOTDIR, "/bin/sh"},
		{"an open descriptor", nil, []launch.Op{chdirOp("/proc/self/fd/5", 0)}, nil, unix.ELOOP, "/proc/self/fd/5"}, // CVE-2024-21626
		{"a link to an open descriptor", func(dir string) { os.Symlink("/proc/self/fd/5", dir+"/l") }, []launch.Op{chdirOp("/l", 1)}, nil, unix.ELOOP, "/l"},
		{"an open descriptor, as the user", nil, nil, []launch.Op{chdirOp("/proc/self/fd/0/", 0)}, unix.ELOOP, "/proc/self/fd/0/"},
		{"root's, as the user", func(dir string) { os.Mkdir(dir+"/p", 0o700) }, nil, []launch.Op{chdirOp("/p", 0)}, unix.EACCES, "/p"},
	} {
		t.Run(c.name, func(t *testing.T) {
			newLab(t)
			dir, table := oneRoot(t)
			if c.make != nil {
				c.make(dir)
			}
			mustFail(t, as(user, c.before, c.after, "pwd"), table, "chdir", c.errno, c.path)
		})
	}
}

func TestProgramLookUp(t *testing.T) {
	for _, c := range []struct {
		name  string
		make  func(dir string)
		path  string
		args  []string
		want  string // "" where it fails
		errno unix.Errno
		fault string
	}{
		{"the first of two", func(dir string) { os.WriteFile(dir+"/etc/echo", []byte("#!/bin/sh\nexit 7"), 0o755) }, "/etc:/bin", []string{"echo"}, "exit 7", 0, ""},
		{"a directory of that name first", func(dir string) { os.Mkdir(dir+"/etc/echo", 0o755) }, "/etc:/bin/", []string{"echo"}, "\nexit 0", 0, ""},
		{"one without the x bit first", func(dir string) { os.WriteFile(dir+"/etc/echo", nil, 0o644) }, "/etc:/bin", []string{"echo"}, "\nexit 0", 0, ""},
		{"the working directory by an empty entry", func(dir string) { os.WriteFile(dir+"/run", []byte("#!/bin/sh\nexit 3"), 0o755) }, "/bin:", []string{"run"}, "exit 3", 0, ""},
		{"a relative path", nil, "", []string{"bin/echo", "x"}, "x\nexit 0", 0, ""},
		{"no PATH at all", nil, "-", []string{"echo"}, "\nexit 0", 0, ""},
		{"nowhere", nil, "/etc:/bin:/none", []string{"nothing"}, "", unix.ENOENT, "nothing"},
		{"only a directory", func(dir string) { os.Mkdir(dir+"/etc/d", 0o755) }, "/etc", []string{"d"}, "", unix.ENOENT, "d"},
		{"only one without the x bit", func(dir string) { os.WriteFile(dir+"/etc/f", nil, 0o644) }, "/etc:/bin", []string{"f"}, "", unix.EACCES, "f"},
		{"an empty name", nil, "/bin", []string{""}, "", unix.ENOENT, ""},
		{"an absolute path that is missing", nil, "/bin", []string{"/no/such"}, "", unix.ENOENT, "/no/such"},
		{"a directory by path", nil, "/bin", []string{"/etc"}, "", unix.EACCES, "/etc"},
		{"no program", func(dir string) { os.WriteFile(dir+"/etc/f", []byte("text"), 0o755) }, "/etc:/bin", []string{"f"}, "", unix.ENOEXEC, "/etc/f"},
		{"a script without its interpreter", func(dir string) { os.WriteFile(dir+"/etc/f", []byte("#!/no\n"), 0o755) }, "/etc", []string{"f"}, "", unix.ENOENT, "f"},
	} {
		t.Run(c.name, func(t *testing.T) {
			newLab(t)
			dir, table := oneRoot(t)
			if c.make != nil {
				c.make(dir)
			}
			plan := small("", nil)
			plan.Args, plan.Env = c.args, []string{"PATH=" + c.path}
			if c.path == "-" {
				plan.Env = nil
			}
			if c.errno != 0 {
				mustFail(t, plan, table, "exec", c.errno, c.fault)
			} else {
				must(t, plan, table, c.want)
			}
		})
	}
}

func consoleOps(uid uint64) []launch.Op {
	return []launch.Op{
		{Code: launch.OpSetsid, Step: "setsid", Fd: -1},
		{Code: launch.OpConsole, Step: "open terminal", Fd: -1, Flags: uid, Number: 1},
	}
}

// withConsole is a container on a terminal.
func withConsole(script string, ops []launch.Op) *launch.Plan {
	plan := small(script, append(opsMounts()[2:3], opsMounts()[4]), ops...)
	return plan
}

// The terminal has the client's size before the workload can ask for it.
func TestConsoleIsBornWithItsSize(t *testing.T) {
	ops := consoleOps(0)
	for i := range ops {
		if ops[i].Code == launch.OpConsole {
			ops[i].Data = []byte{0x2c, 0x01, 0x28, 0x00} // 300 columns, 40 rows
		}
	}
	newLab(t)
	_, table := oneRoot(t)
	l := start(t, withConsole("stty size", ops), table, true)
	if got, want := dialogue(t, l, ""), "40 300\nexit 0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// dialogue reads the terminal until the container ends, writing answer after the first line.
func dialogue(t *testing.T, l *launched, answer string) string {
	t.Helper()
	if l.console == nil {
		t.Fatalf("no console among %+v, failed %v", l.statuses, l.failed)
	}
	var text strings.Builder
	lines := bufio.NewReader(l.console)
	for {
		line, err := lines.ReadString('\n')
		text.WriteString(line)
		if err != nil { // EIO when the last descriptor of the slave is closed
			break
		}
		if answer != "" {
			l.console.WriteString(answer)
			answer = ""
		}
	}
	return strings.ReplaceAll(text.String(), "\r\n", "\n") + l.finish(t)
}

func TestConsole(t *testing.T) { // B40
	newLab(t)
	_, table := oneRoot(t)
	l := start(t, withConsole("tty; read x; echo got $x; stat -c '%u %a' /dev/pts/0; stat -c %t:%T /dev/console; echo >/dev/tty && echo controlling; ls /proc/self/fd", consoleOps(1000)), table, true)
	got := dialogue(t, l, "word\n")
	if want := "/dev/pts/0\nword\ngot word\n1000 620\n88:0\n\ncontrolling\n0  1  2  3\nexit 0"; got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestConsoleFailures(t *testing.T) { // CVE-2025-52565
	pty := opsMounts()[2]
	for name, c := range map[string]struct {
		extra []launch.Op
		errno unix.Errno
		path  string
	}{
		"no devpts":                   {nil, unix.ENOENT, "/dev/pts/ptmx"},
		"a file instead of ptmx":      {[]launch.Op{{Code: launch.OpMkdir, Path: "/dev/pts"}, {Code: launch.OpMknod, Path: "/dev/pts/ptmx", Number: unix.S_IFREG | 0o666}}, unix.ENODEV, "/dev/pts/ptmx"},
		"the host's ptmx":             {[]launch.Op{{Code: launch.OpMkdir, Path: "/dev/pts"}, {Code: launch.OpMknod, Path: "/dev/pts/ptmx", Number: unix.S_IFCHR | 0o666, Flags: 1<<8 | 5}}, unix.ENODEV, "/dev/pts/ptmx"},
		"/dev/console is a link":      {[]launch.Op{pty, {Code: launch.OpSymlink, Path: "/dev/console", Arg: "/etc"}}, unix.ELOOP, "/dev/console"},
		"/dev/console is dangling":    {[]launch.Op{pty, {Code: launch.OpSymlink, Path: "/dev/console", Arg: "/etc/new"}}, unix.ELOOP, "/dev/console"},
		"/dev/console is a directory": {[]launch.Op{pty, {Code: launch.OpMkdir, Path: "/dev/console"}}, unix.EISDIR, "/dev/console"},
	} {
		t.Run(name, func(t *testing.T) {
			newLab(t)
			_, table := oneRoot(t)
			for i := range c.extra {
				c.extra[i].Fd = -1
				if c.extra[i].Step == "" {
					c.extra[i].Step = "extra"
				}
			}
			mustFail(t, small("", c.extra, consoleOps(0)...), table, "open terminal", c.errno, c.path)
		})
	}
}
