package main

import (
	"flag"
	"io"
	"os"

	"github.com/coreos/go-systemd/v22/journal"
	"k8s.io/klog/v2"
)

// Priorities of syslog(3) that the journal takes from the beginning of a line (sd-daemon(3)), by klog's severity.
var journalPriorities = map[string]string{"INFO": "<6>", "WARNING": "<4>", "ERROR": "<3>", "FATAL": "<2>"}

// logToJournal has klog write lines as the journal wants them, if it is the journal that reads standard error: it knows
// the time and the process itself, and takes the priority from what the line begins with.
func logToJournal(flags *flag.FlagSet) error {
	if is, err := journal.StderrIsJournalStream(); err != nil || !is {
		return nil // JOURNAL_STREAM may be somebody else's leftover
	}
	return logWithPriorities(flags, os.Stderr)
}

func logWithPriorities(flags *flag.FlagSet, out io.Writer) error {
	for _, set := range [][2]string{
		{"logtostderr", "false"}, {"alsologtostderr", "false"}, {"stderrthreshold", "FATAL"}, {"one_output", "true"}, {"skip_headers", "true"},
	} {
		if err := flags.Set(set[0], set[1]); err != nil {
			return err
		}
	}
	for severity, priority := range journalPriorities {
		klog.SetOutputBySeverity(severity, prefixed{priority, out})
	}
	return nil
}

// prefixed writes each line with a prefix, in one piece.
type prefixed struct {
	prefix string
	out    io.Writer
}

func (p prefixed) Write(line []byte) (int, error) {
	if _, err := p.out.Write(append([]byte(p.prefix), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}
