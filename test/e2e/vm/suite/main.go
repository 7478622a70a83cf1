// Command suite runs test binaries one after the other inside the guest and says what came of them.
// It owns the plan's order, time limits and the verdict: a test that fails, a binary that ends without one, and a skip
// that nobody gave a reason for beforehand are failures. It may not know what the tests are about.
// Source: cmd/test2json's framing of a test's output (testing.Flags, -test.v=test2json).
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	tree := flag.String("tree", "", "directory of the repository's files, with NAME.test beside each package's")
	plan := flag.String("plan", "", "file with a line for each run: package, seconds, flags of its test binary")
	skips := flag.String("skips", "", "file of the skips that are expected")
	lsm := flag.String("lsm", "none", "security module of this boot")
	results := flag.String("results", "", "directory for the whole output, a file for each package")
	flag.Parse()
	if err := run(*tree, *plan, *skips, *lsm, *results); err != nil {
		fmt.Println("suite:", err)
		os.Exit(1)
	}
}

// job is a line of the plan.
type job struct {
	pkg   string
	limit time.Duration
	flags []string
}

func run(tree, plan, skipsFile, lsm, results string) error {
	jobs, err := readPlan(plan)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(skipsFile)
	if err != nil {
		return err
	}
	expected, err := parseSkips(string(text), lsm)
	if err != nil {
		return err
	}
	var all totals
	begin := time.Now()
	for i, j := range jobs {
		file, err := os.Create(filepath.Join(results, fmt.Sprintf("%02d-%s.txt", i+1, strings.ReplaceAll(j.pkg, "/", "_"))))
		if err != nil {
			return err
		}
		begin := time.Now()
		p := &protocol{pkg: j.pkg, show: os.Stdout}
		err = j.run(tree, p, file)
		fmt.Println(all.add(p.close(err, expected), time.Since(begin), j.pkg))
		if err := file.Close(); err != nil {
			return err
		}
	}
	fmt.Printf("%d passed, %d failed, %d skipped in %s\n", all.passed, all.failed, all.skipped, time.Since(begin).Round(time.Second))
	if all.failed > 0 {
		return errors.New("failed")
	}
	return nil
}

func readPlan(file string) ([]job, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var jobs []job
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		j := job{pkg: fields[0]}
		seconds := 0
		if len(fields) > 1 {
			_, err = fmt.Sscan(fields[1], &seconds)
			j.flags = fields[2:]
		}
		if err != nil || seconds <= 0 {
			return nil, fmt.Errorf("%s: line %q: want package, seconds, flags", file, line)
		}
		j.limit = time.Duration(seconds) * time.Second
		jobs = append(jobs, j)
	}
	if len(jobs) == 0 {
		return nil, fmt.Errorf("%s: nothing to run", file)
	}
	return jobs, nil
}

// run feeds what the test binary writes to p and to whole; the error is how it ended.
func (j job) run(tree string, p *protocol, whole io.Writer) error {
	// Past its own limit a test binary says where it hangs; what doesn't even do that is killed.
	ctx, cancel := context.WithTimeout(context.Background(), j.limit+30*time.Second)
	defer cancel()
	name := filepath.Base(j.pkg) + ".test"
	cmd := exec.CommandContext(ctx, "./"+name, append([]string{"-test.v=test2json", "-test.count=1", "-test.timeout=" + j.limit.String()}, j.flags...)...)
	cmd.Dir = filepath.Join(tree, j.pkg)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	if err := errors.Join(cmd.Start(), w.Close()); err != nil {
		return err
	}
	// Owner: run; ends when nobody has the pipe any more, or when it is closed a second after the binary's end.
	read := make(chan struct{})
	go func() {
		defer close(read)
		reader := bufio.NewReader(io.TeeReader(r, whole))
		for {
			line, err := reader.ReadString('\n')
			if line != "" {
				p.line(strings.TrimSuffix(line, "\n"))
			}
			if err != nil {
				return
			}
		}
	}()
	err = cmd.Wait()
	if ctx.Err() != nil {
		err = fmt.Errorf("killed: it hung past its limit of %s", j.limit)
	}
	select {
	case <-read:
	case <-time.After(time.Second):
		r.Close()
		<-read
	}
	return err
}
