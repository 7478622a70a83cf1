// Command bench measures CRI runtimes beside each other: whatever it does, it does with one
// runtime, then with the next, so that a busy machine hurts all of them alike. It owns the
// phases, the samples and the report; it starts no runtime (run does) and knows a runtime by
// nothing but its socket and, for processor time and memory, its control group.
// Source: the CRI (k8s.io/cri-api), proc(5), cgroup v1 cpuacct and v2 cpu.stat.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the command line.
type options struct {
	endpoints endpointFlags
	image     string
	n         int
	parallel  int
	skip      map[string]bool
	json      string
	floors    bool
	logDir    string
	settle    time.Duration
	rounds    int
	logMB     int
}

// phases in the order they run. Memory is first: daemons that have done nothing yet show
// their growth best.
var phases = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"memory", (*bench).memory},
	{"lifecycle", (*bench).lifecycles},
	{"parallel", (*bench).parallelLifecycles},
	{"exec", (*bench).execs},
	{"logs", (*bench).logs},
	{"busy", (*bench).busy},
}

// bench is one run over all runtimes.
type bench struct {
	options
	id         string // of this run; every sandbox carries it as a label
	candidates []*candidate
	samples    *samples
	pods       int // number of the last pod, for unique names
}

func main() {
	opts, err := parse(os.Args[1:])
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		err = run(ctx, opts)
		stop()
	}
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var names []string
	for _, phase := range phases {
		names = append(names, phase.name)
	}
	names = append(names, "lists", "bridge", "shared-pid")
	opts := options{skip: map[string]bool{}}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.Var(&opts.endpoints, "endpoint", "`name=unix:///socket[,cgroup]` of a runtime, once for each; the first is compared with the others.\n"+
		"cgroup is the group (below the mount) that holds its processes in /runtime and will hold its pods in /pods")
	flags.StringVar(&opts.image, "image", "registry.k8s.io/e2e-test-images/busybox:1.29-2", "image with busybox")
	flags.IntVar(&opts.n, "n", 100, "pods per variant of the life cycle, calls of each list; twice as many of ExecSync")
	flags.IntVar(&opts.parallel, "parallel", 10, "pods at a time in the parallel life cycle")
	skip := flags.String("skip", "", "what to leave out, of "+strings.Join(names, ","))
	flags.StringVar(&opts.json, "json", "", "`file` for the figures")
	flags.BoolVar(&opts.floors, "floors", false, "exit 1 when the first runtime misses a floor")
	flags.StringVar(&opts.logDir, "log-dir", "/var/log/pods", "`directory` for containers' logs")
	flags.DurationVar(&opts.settle, "settle", 30*time.Second, "rest before memory is read")
	flags.IntVar(&opts.rounds, "rounds", 3, "rounds of the memory and log phases")
	flags.IntVar(&opts.logMB, "log-mb", 100, "megabytes of log lines per round")
	if err := flags.Parse(args); err != nil {
		return opts, err
	}
	for name := range strings.SplitSeq(*skip, ",") {
		if name != "" && !slices.Contains(names, name) {
			return opts, fmt.Errorf("-skip %s: there are %s", name, strings.Join(names, ", "))
		}
		opts.skip[name] = true
	}
	switch {
	case len(opts.endpoints) == 0:
		return opts, errors.New("no -endpoint given")
	case opts.n < 1 || opts.parallel < 1 || opts.rounds < 1 || opts.logMB < 1:
		return opts, errors.New("-n, -parallel, -rounds and -log-mb are at least 1")
	}
	return opts, nil
}

func run(ctx context.Context, opts options) (err error) {
	b := &bench{options: opts, id: fmt.Sprintf("bench-%d", os.Getpid()), samples: newSamples()}
	b.logDir = filepath.Join(opts.logDir, b.id)
	defer os.RemoveAll(b.logDir)
	for _, e := range opts.endpoints {
		r, err := connect(ctx, e, opts.image)
		if err != nil {
			return err
		}
		defer r.conn.Close()
		b.candidates = append(b.candidates, r)
		say("%s is %s", r.name, r.version)
	}
	defer func() { err = errors.Join(err, b.cleanUp(context.WithoutCancel(ctx))) }()
	begin := time.Now()
	err = b.measure(ctx)
	// What was measured before something failed is shown all the same.
	report := b.report(time.Since(begin))
	report.print(os.Stdout)
	if err != nil {
		return err
	}
	if opts.json != "" {
		if err := report.write(opts.json); err != nil {
			return err
		}
	}
	if missed := report.missed(); opts.floors && len(missed) > 0 {
		return fmt.Errorf("floors missed: %s", strings.Join(missed, "; "))
	}
	return nil
}

func (b *bench) measure(ctx context.Context) error {
	for _, phase := range phases {
		if b.skip[phase.name] {
			continue
		}
		if err := phase.run(b, ctx); err != nil {
			return fmt.Errorf("phase %s: %w", phase.name, err)
		}
	}
	return nil
}

// alternate calls do for every runtime, another one first each time.
func (b *bench) alternate(i int, do func(r *candidate) error) error {
	for k := range b.candidates {
		r := b.candidates[(i+k)%len(b.candidates)]
		if err := do(r); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}

// networks are the kinds of pod network that are measured.
func (b *bench) networks() []network {
	if b.skip["bridge"] {
		return []network{hostNetwork}
	}
	return []network{hostNetwork, bridge}
}

// cleanUp removes what an interrupted phase left.
func (b *bench) cleanUp(ctx context.Context) error {
	var errs []error
	for _, r := range b.candidates {
		if err := r.removeAll(ctx, b.id); err != nil {
			errs = append(errs, fmt.Errorf("%s: clean up: %w", r.name, err))
		}
	}
	return errors.Join(errs...)
}

// say tells on stderr how far it is; the table alone goes to stdout.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format(time.TimeOnly)+" "+format+"\n", args...)
}
