package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const stamp = "2026-02-03T04:05:06.000000007Z"

func buffers() *Buffers {
	b := NewBuffers()
	b.now = func() time.Time { return time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC) }
	return b
}

type fixture struct {
	path   string
	file   *File
	read   int
	write  *os.File
	stream *Stream
	b      *Buffers
}

func open(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func newFixture(t *testing.T, dir string, tty bool) *fixture {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(p[0], true)
	f := &fixture{path: filepath.Join(dir, "log"), read: p[0], write: os.NewFile(uintptr(p[1]), "pipe"), b: buffers()}
	f.file = NewFile(open(t, f.path))
	f.stream = NewStream(f.file, "stdout", tty)
	t.Cleanup(func() { unix.Close(p[0]); f.write.Close(); f.file.Close() })
	return f
}

// drain pumps until the pipe is empty or ended.
func (f *fixture) drain(t *testing.T) {
	t.Helper()
	for {
		_, eof, err := f.stream.Pump(f.read, f.b)
		if eof || errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (f *fixture) content(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// B35, B40.
func TestLinesOfOneStream(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 1024) // exactly the limit
	for _, c := range []struct {
		name string
		tty  bool
		in   []string // one write, one read each
		end  bool
		want []string
	}{
		{"one line", false, []string{"hello\n"}, false, []string{"F hello"}},
		{"empty line", false, []string{"\n"}, false, []string{"F "}},
		{"two in one write", false, []string{"a\nb\n"}, false, []string{"F a", "F b"}},
		{"line in three writes", false, []string{"a", "b", "c\nd\n"}, false, []string{"F abc", "F d"}},
		{"unfinished line waits", false, []string{"a\nb"}, false, []string{"F a"}},
		{"unfinished line at the end", false, []string{"a\nb"}, true, []string{"F a", "P b"}},
		{"as long as the limit", false, []string{long + "\n"}, true, []string{"F " + long}},
		{"one above the limit", false, []string{long + "x\n"}, true, []string{"P " + long, "F x"}},
		{"three chunks in pieces", false, []string{long[:5], long, long, "y\nz\n"}, true,
			[]string{"P " + long[:5] + long[:len(long)-5], "P " + long[len(long)-5:] + long[:len(long)-5], "F " + long[len(long)-5:] + "y", "F z"}},
		{"as long as the limit, no newline", false, []string{long}, true, []string{"P " + long}},
		{"carriage return is kept in a pipe", false, []string{"a\r\n"}, false, []string{"F a\r"}},
		{"carriage return of a terminal", true, []string{"a\r\nb\rc\r\n\r\n"}, false, []string{"F a", "F b\rc", "F "}},
		{"carriage return split from its newline", true, []string{"a\r", "\n"}, false, []string{"F a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, t.TempDir(), c.tty)
			for _, text := range c.in {
				if _, err := f.write.WriteString(text); err != nil {
					t.Fatal(err)
				}
				f.drain(t)
			}
			if c.end {
				f.write.Close()
				f.drain(t)
			}
			var want strings.Builder
			for _, line := range c.want {
				fmt.Fprintf(&want, "%s stdout %s\n", stamp, line)
			}
			if got := f.content(t); got != want.String() {
				t.Errorf("got  %.300q\nwant %.300q", got, want.String())
			}
		})
	}
}

// B38.
func TestReopenLosesAndDoublesNothing(t *testing.T) {
	f := newFixture(t, t.TempDir(), false)
	f.write.WriteString("one\ntw")
	f.drain(t)
	rotated := f.path + ".1"
	if err := os.Rename(f.path, rotated); err != nil {
		t.Fatal(err)
	}
	f.write.WriteString("o\nthree\n")
	f.file.Reopen(open(t, f.path))
	f.drain(t)
	old, _ := os.ReadFile(rotated)
	if got, want := string(old)+"|"+f.content(t), stamp+" stdout F one\n|"+stamp+" stdout F two\n"+stamp+" stdout F three\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// B37: the pipe is drained, whole lines stay whole, and what is lost is counted.
func TestFullDiskNeverBlocksTheContainer(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("mounting a tmpfs needs root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	f := newFixture(t, dir, false)
	const lines = 3000
	for i := range lines {
		fmt.Fprintf(f.write, "line %d\n", i)
		f.drain(t)
	}
	if !errors.Is(f.file.Failing, unix.ENOSPC) {
		t.Fatalf("got %v while the disk is full, want ENOSPC", f.file.Failing)
	}
	filler := f.content(t)
	if err := os.Truncate(f.path, 0); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(f.write, "after\n")
	f.drain(t)
	if f.file.Failing != nil {
		t.Errorf("got %v with room again, want nil", f.file.Failing)
	}
	whole := uint64(strings.Count(filler, "\n"))
	if f.file.Lost != lines-whole {
		t.Errorf("got %d lines lost, want %d of %d", f.file.Lost, lines-whole, lines)
	}
	if got := strings.TrimPrefix(f.content(t), "\n"); got != stamp+" stdout F after\n" {
		t.Errorf("got %q afterwards", got)
	}
	if strings.HasSuffix(filler, "\n") == strings.HasPrefix(f.content(t), "\n") {
		t.Errorf("a cut-off line %.60q was not ended: %.60q", filler[len(filler)-20:], f.content(t))
	}
}

func TestMendEndsWhatAKilledKeeperLeft(t *testing.T) {
	for _, c := range []struct{ name, before, want string }{
		{"empty file", "", ""},
		{"whole lines", stamp + " stdout F a\n", stamp + " stdout F a\n"},
		{"cut in the middle", stamp + " stdout F a\n" + stamp + " stdo", stamp + " stdout F a\n" + stamp + " stdo\n"},
		{"chunk without its end", stamp + " stdout P a\n" + stamp + " stderr F b\n", stamp + " stdout P a\n" + stamp + " stderr F b\n" + stamp + " stdout F \n"},
		{"chunk with its end", stamp + " stdout P a\n" + stamp + " stdout F b\n", stamp + " stdout P a\n" + stamp + " stdout F b\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, t.TempDir(), false)
			if err := os.WriteFile(f.path, []byte(c.before), 0o640); err != nil {
				t.Fatal(err)
			}
			f.file.Mend(f.b, f.stream, NewStream(f.file, "stderr", false))
			if got := f.content(t); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestWithoutALogFileTheOutputIsDropped(t *testing.T) {
	f := newFixture(t, t.TempDir(), false)
	f.file.Close()
	f.write.WriteString("a\nb")
	f.drain(t)
	if f.file.Lost != 0 || f.file.Failing != nil {
		t.Errorf("got %d lost, %v, want none", f.file.Lost, f.file.Failing)
	}
}

func TestIdleStreamHoldsNoMemory(t *testing.T) {
	f := newFixture(t, t.TempDir(), false)
	f.write.WriteString("half")
	f.drain(t)
	f.write.WriteString(" and half\n")
	f.drain(t)
	if f.stream.carry != nil {
		t.Errorf("got %d bytes kept, want none", cap(f.stream.carry))
	}
}

// FuzzLines: whatever is written in whatever pieces, the chunks joined give it back.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb"), uint16(1))
	f.Add(bytes.Repeat([]byte("x"), 3*lineBytes), uint16(1000))
	f.Fuzz(func(t *testing.T, text []byte, piece uint16) {
		x := newFixture(t, t.TempDir(), false)
		for rest := text; len(rest) > 0; {
			n := min(len(rest), int(piece)+1, 60000)
			x.write.Write(rest[:n])
			rest = rest[n:]
			x.drain(t)
		}
		x.write.Close()
		x.drain(t)
		var joined []byte
		for line := range strings.Lines(x.content(t)) {
			tag, body := line[len(stamp)+len(" stdout ")], line[len(stamp)+len(" stdout F "):]
			if len(body) > lineBytes+1 {
				t.Fatalf("chunk of %d bytes", len(body))
			}
			joined = append(joined, strings.TrimSuffix(body, "\n")...)
			if tag == 'F' {
				joined = append(joined, '\n')
			}
		}
		if !bytes.Equal(joined, text) {
			t.Fatalf("got %.200q, want %.200q", joined, text)
		}
	})
}

func BenchmarkPump(b *testing.B) {
	var p [2]int
	unix.Pipe2(p[:], unix.O_CLOEXEC)
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	path := filepath.Join(b.TempDir(), "log")
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	buffers, file := NewBuffers(), NewFile(fd)
	defer file.Close()
	stream := NewStream(file, "stdout", false)
	text := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), readBytes/100)
	b.SetBytes(int64(len(text)))
	for i := 0; b.Loop(); i++ {
		unix.Write(p[1], text)
		stream.Pump(p[0], buffers)
		if i%1000 == 999 {
			unix.Ftruncate(fd, 0)
		}
	}
}
