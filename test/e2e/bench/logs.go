package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

const logThroughput = "container output to log file"

// lineBytes is the length of a log line as the workload writes it, with its end.
const lineBytes = 100

// chatter prints lines as fast as they are taken: from a file, many at a time, so that what
// is measured is the runtime and not a program that prints line by line.
func chatter(lines int) []string {
	const perFile = 10000
	line := strings.Repeat("x", lineBytes-1)
	script := fmt.Sprintf(`yes %s | head -n %d >/tmp/lines; echo begin; i=0
		while [ $i -lt %d ]; do cat /tmp/lines; i=$((i+1)); done; echo end`, line, perFile, lines/perFile)
	return []string{"/bin/sh", "-c", script}
}

// logs measures how fast a container's output reaches its log, from the first line to the
// last, and that it gets there whole.
func (b *bench) logs(ctx context.Context) error {
	lines := b.logMB * 1000000 / lineBytes
	kind := podKind{network: hostNetwork, pid: ownPID, command: chatter(lines)}
	section := fmt.Sprintf("log, lines of %d bytes", lineBytes)
	say("%s: %d rounds of %d MB", section, b.rounds, b.logMB)
	meters := b.meters(section, b.logMB)
	for i := range b.rounds {
		err := b.alternate(i, func(r *candidate) error {
			p, err := b.newPod(r, kind)
			if err != nil {
				return err
			}
			meters[r].mark()
			took, err := p.talk(ctx)
			if err != nil {
				return err
			}
			b.samples.add(section, logThroughput, "MB/s", r.name, float64(b.logMB)/took.Seconds())
			if err := p.checkLog(lines); err != nil {
				return err
			}
			return os.Remove(p.logPath())
		})
		if err != nil {
			return err
		}
	}
	return meters.finish(ctx)
}

// talk runs the pod until its last line is in the log.
func (p *pod) talk(ctx context.Context) (time.Duration, error) {
	first, err := watchLog(p.logPath())
	if err != nil {
		return 0, err
	}
	defer first.close()
	if err := do(ctx, p.startSteps(), nil); err != nil {
		return 0, err
	}
	begin, err := first.wait(ctx, "stdout F begin\n")
	if err != nil {
		return 0, err
	}
	for !endsWith(p.logPath(), "stdout F end\n") {
		if time.Since(begin) > callTimeout {
			return 0, errors.New("the last line did not come")
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return 0, err
		}
	}
	took := time.Since(begin)
	return took, do(ctx, p.stopSteps(), nil)
}

func endsWith(path, end string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	tail := make([]byte, len(end))
	if _, err := f.Seek(int64(-len(end)), io.SeekEnd); err != nil {
		return false
	}
	_, err = io.ReadFull(f, tail)
	return err == nil && string(tail) == end
}

// checkLog counts the workload's lines.
func (p *pod) checkLog(want int) error {
	f, err := os.Open(p.logPath())
	if err != nil {
		return err
	}
	defer f.Close()
	return countLines(f, []byte(" stdout F "+strings.Repeat("x", lineBytes-1)), want)
}

func countLines(r io.Reader, end []byte, want int) error {
	got, others := 0, 0
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if bytes.HasSuffix(lines.Bytes(), end) {
			got++
		} else {
			others++
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	// The others are those that say where the output begins and ends.
	if got != want || others != 2 {
		return fmt.Errorf("the log has %d whole lines and %d others, want %d and 2", got, others, want)
	}
	return nil
}
