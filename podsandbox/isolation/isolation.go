// Package isolation compares what a container's spec asks for with what the kernel says holds for its first process.
// It reads and changes nothing, and judges only what makes a container less confined than asked: a workload may give
// up rights, and nothing is wrong with that. What it reads from the container's side (mount tables, paths) may be
// hostile: reads are bounded, and no path is looked up on a file system whose server could let it wait.
// Source: proc(5), proc_pid_status(5), proc_pid_mountinfo(5), namespaces(7), user_namespaces(7), capabilities(7).
package isolation

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Finding is one property: what was asked, and what holds.
type Finding struct {
	Aspect   string `json:"aspect"`
	Asked    string `json:"asked"`
	Enforced string `json:"enforced"`
	// Differs: what holds confines less than what was asked.
	Differs bool `json:"differs"`
}

// Report is everything that was compared.
type Report struct {
	PID       int       `json:"pid"`
	StartTime uint64    `json:"startTime"` // as in Input
	Findings  []Finding `json:"findings"`
	// FilterDigest is that of the seccomp program that was asked for, "" without one.
	FilterDigest string `json:"filterDigest,omitempty"`
	// Notes say what was asked for and is known to be weaker on this node since the container was created.
	Notes []string `json:"notes"`
}

// Differences counts the findings in which less holds than was asked.
func (r *Report) Differences() (n int) {
	for _, f := range r.Findings {
		if f.Differs {
			n++
		}
	}
	return n
}

// Input is what a report is made of.
type Input struct {
	PID       int
	StartTime uint64 // clock ticks after boot: with PID the process's identity
	Spec      *specs.Spec
	Cgroup    string    // the container's group, relative to the mount of the hierarchies
	Limits    []Finding // of that group, read by its owner
	Notes     []string
	Filter    []byte // the seccomp program that was asked for, as seccomp(2) takes it
	PIDOwner  string // whose PID namespace it was to join, if not the sandbox's: "container x's"
}

// ErrGone reports that the process has ended.
var ErrGone = errors.New("the process has ended")

// Read makes the report. It fails with ErrGone when the process ended meanwhile.
func Read(in Input) (*Report, error) {
	p, err := openProcess(in.PID, in.StartTime)
	if err != nil {
		return nil, err
	}
	defer p.close()
	r := &Report{PID: in.PID, StartTime: in.StartTime, Notes: append([]string{}, in.Notes...), FilterDigest: FilterDigest(in.Filter)}
	for _, part := range []struct {
		what string
		read func(*process, *specs.Spec) ([]Finding, error)
	}{
		{"namespaces", func(p *process, s *specs.Spec) ([]Finding, error) { return namespaces(p, s, in.PIDOwner) }},
		{"id mappings", mappings}, {"identity", identity}, {"capabilities", capabilities},
		{"privileges", func(p *process, s *specs.Spec) ([]Finding, error) { return privileges(p, s, in.Filter) }},
		{"security label", label}, {"limits", limits}, {"mounts", mounts},
	} {
		found, err := part.read(p, in.Spec)
		if err != nil {
			return nil, p.explain(part.what, err)
		}
		r.Findings = append(r.Findings, found...)
	}
	group, err := membership(p, in.Cgroup)
	if err != nil {
		return nil, p.explain("cgroup", err)
	}
	r.Findings = append(append(r.Findings, group...), in.Limits...)
	if err := p.check(); err != nil { // what was read by number belongs to it
		return nil, p.explain("process", err)
	}
	return r, nil
}

// exitPatience is how long a process may take from losing its namespaces to having ended.
const exitPatience = time.Second

// explain tells a process that ended from what can't be read. On its way out it has no namespaces and no mount table any
// more (ENOENT, EINVAL); that is believed only once it has ended, or what can't be read would pass for what can't be wrong.
func (p *process) explain(what string, err error) error {
	ending := errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL)
	for deadline := time.Now().Add(exitPatience); ; time.Sleep(time.Millisecond) {
		if gone := p.check(); gone != nil {
			return fmt.Errorf("process %d: %w", p.pid, gone)
		}
		if !ending || time.Now().After(deadline) {
			return fmt.Errorf("%s of process %d: %w", what, p.pid, err)
		}
	}
}
