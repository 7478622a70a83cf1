package kubelet

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The kubelet renames the log, has podwright reopen it and packs the old one: no line is lost or comes twice (B38).
func TestRotationLosesNoLineB38(t *testing.T) {
	mustRun(t, "lines")
	var count int
	mustEventually(t, 2*time.Minute, "rotated logs", func() error {
		files, err := filepath.Glob(logPattern("lines"))
		if err != nil || len(files) < 4 {
			return fmt.Errorf("files %v: %w", files, err)
		}
		count, err = wholeLog("lines")
		return err
	})
	t.Logf("%d lines without a gap", count)
}

func logPattern(pod string) string { return "/var/log/pods/default_" + pod + "-lab_*/main/0.log*" }

// wholeLog reads what was rotated as well, and gives how many lines there are without a gap from line 0 on.
func wholeLog(pod string) (int, error) {
	files, err := filepath.Glob(logPattern(pod))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("logs of %s: %v, %w", pod, files, err)
	}
	// Sorted by name, but for the current one, which is the last.
	slices.Sort(files)
	var whole strings.Builder
	for _, file := range append(files[1:], files[0]) {
		text, err := unpacked(file)
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(text) {
			if _, message, ok := strings.Cut(line, " stdout F "); ok && strings.HasSuffix(line, "\n") {
				whole.WriteString(message)
			}
		}
	}
	count, err := numbered(whole.String())
	if err == nil && !strings.HasPrefix(whole.String(), "line 0\n") {
		err = fmt.Errorf("the log begins with %q", whole.String()[:40])
	}
	return count, err
}

func unpacked(file string) (string, error) {
	open, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer open.Close()
	if !strings.HasSuffix(file, ".gz") {
		text, err := io.ReadAll(open)
		return string(text), err
	}
	packed, err := gzip.NewReader(open)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(packed)
	return string(text), err
}

// numbered looks for a gap, or a line twice, in "line N"; it gives how many there are.
func numbered(text string) (int, error) {
	count, next := 0, -1
	for line := range strings.Lines(text) {
		var number int
		if _, err := fmt.Sscanf(line, "line %d\n", &number); err != nil {
			return count, fmt.Errorf("line %q after %d", line, next-1)
		}
		if next >= 0 && number != next {
			return count, fmt.Errorf("line %d after %d", number, next-1)
		}
		next = number + 1
		count++
	}
	if count == 0 {
		return 0, errors.New("there are no lines")
	}
	return count, nil
}
