package isolation

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// limitNames are the spec's names in the words of /proc/pid/limits, which needs no privilege as prlimit(2) does.
var limitNames = map[string]string{
	"RLIMIT_AS": "Max address space", "RLIMIT_CORE": "Max core file size", "RLIMIT_CPU": "Max cpu time", "RLIMIT_DATA": "Max data size",
	"RLIMIT_FSIZE": "Max file size", "RLIMIT_LOCKS": "Max file locks", "RLIMIT_MEMLOCK": "Max locked memory",
	"RLIMIT_MSGQUEUE": "Max msgqueue size", "RLIMIT_NICE": "Max nice priority", "RLIMIT_NOFILE": "Max open files",
	"RLIMIT_NPROC": "Max processes", "RLIMIT_RSS": "Max resident set", "RLIMIT_RTPRIO": "Max realtime priority",
	"RLIMIT_RTTIME": "Max realtime timeout", "RLIMIT_SIGPENDING": "Max pending signals", "RLIMIT_STACK": "Max stack size",
}

// limits compares hard limits, which a workload may lower, and the OOM score, which it may raise.
func limits(p *process, s *specs.Spec) ([]Finding, error) {
	text, err := p.read("limits", smallFile)
	if err != nil {
		return nil, err
	}
	var out []Finding
	for _, l := range s.Process.Rlimits {
		has, err := hardLimit(text, limitNames[l.Type])
		if err != nil {
			return nil, fmt.Errorf("limit %s: %w", l.Type, err)
		}
		out = append(out, Finding{Aspect: l.Type, Asked: limitText(l.Hard), Enforced: limitText(has), Differs: has > l.Hard})
	}
	if s.Process.OOMScoreAdj == nil {
		return out, nil
	}
	if text, err = p.read("oom_score_adj", smallFile); err != nil {
		return nil, err
	}
	score, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		return nil, fmt.Errorf("oom_score_adj: %w", err)
	}
	asked := *s.Process.OOMScoreAdj
	return append(out, Finding{Aspect: "oom_score_adj", Asked: strconv.Itoa(asked), Enforced: strconv.Itoa(score), Differs: score < asked}), nil
}

// hardLimit reads the second number of the line of that name.
func hardLimit(text, name string) (uint64, error) {
	for line := range strings.Lines(text) {
		values, ok := strings.CutPrefix(line, name+" ")
		if fields := strings.Fields(values); ok && name != "" && len(fields) >= 2 {
			if fields[1] == "unlimited" {
				return unix.RLIM_INFINITY, nil
			}
			return strconv.ParseUint(fields[1], 10, 64)
		}
	}
	return 0, errors.New("the kernel doesn't tell it")
}

func limitText(n uint64) string {
	if n == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return strconv.FormatUint(n, 10)
}

// membership looks for the container's group, or one below it, in every hierarchy that limits anything.
func membership(p *process, group string) ([]Finding, error) {
	text, err := p.read("cgroup", smallFile)
	if err != nil {
		return nil, err
	}
	f := Finding{Aspect: "cgroup", Asked: group, Enforced: group}
	below := "/" + strings.Trim(group, "/") + "/" // as seen from wherever podwright is itself
	if group == "/" {
		below = "/"
	}
	unified := !strings.Contains(strings.ReplaceAll(text, ":name=", ""), ":memory")
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 || fields[1] == "" && !unified || strings.HasPrefix(fields[1], "name=") {
			continue // of v1 the named ones limit nothing, and neither does v2 beside it
		}
		if !strings.Contains(fields[2]+"/", below) {
			f.Differs, f.Enforced = true, strings.TrimPrefix(fields[1]+" "+fields[2], " ")
		}
	}
	return []Finding{f}, nil
}
