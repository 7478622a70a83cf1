package wire

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// journalStream is set by systemd for what it starts with the journal as standard error: device and inode of that stream
// (systemd.exec(5)). Keeper and anchor are given it, and nothing else of the daemon's environment.
const journalStream = "JOURNAL_STREAM"

// JournalVariable is that variable, for the environment of a process.
func JournalVariable() string { return journalStream + "=" + os.Getenv(journalStream) }

// JournalReads says whether what is written to f goes to the journal: the variable is inherited by what writes elsewhere.
func JournalReads(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && os.Getenv(journalStream) == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// NewLog writes lines of keys and values. The journal knows the time itself, and takes the priority from what a line begins
// with (sd-daemon(3)).
func NewLog(out io.Writer, journal bool) *slog.Logger {
	if !journal {
		return slog.New(slog.NewTextHandler(out, nil))
	}
	return slog.New(slog.NewTextHandler(journalLines{out}, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// journalLines puts a priority before the level that a line begins with.
type journalLines struct{ io.Writer }

func (w journalLines) Write(line []byte) (int, error) {
	priority := "<6>"
	if bytes.HasPrefix(line, []byte("level=ERROR")) {
		priority = "<3>"
	}
	_, err := w.Writer.Write(append([]byte(priority), line...))
	return len(line), err
}
