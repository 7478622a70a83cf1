package seccompprofiles

import (
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Conflict names two rules that give one system call different outcomes while
// nothing in their arguments keeps them apart. Compilers resolve that silently,
// each in its own way (libseccomp drops the conditional rule, or the later one),
// so such a profile doesn't mean what it says.
type Conflict struct {
	Name          string
	Rule, Earlier int // indexes into Syscalls
}

// FindConflict returns the first conflict in a resolved profile, or nil.
func FindConflict(spec *specs.LinuxSeccomp) *Conflict {
	byName := make(map[string][]int, 512)
	for i, r := range spec.Syscalls {
		for _, name := range r.Names {
			for _, earlier := range byName[name] {
				if e := spec.Syscalls[earlier]; !sameOutcome(r, e) && !disjoint(r.Args, e.Args) {
					return &Conflict{Name: name, Rule: i, Earlier: earlier}
				}
			}
			if known := byName[name]; len(known) == 0 || known[len(known)-1] != i {
				byName[name] = append(known, i)
			}
		}
	}
	return nil
}

func sameOutcome(a, b specs.LinuxSyscall) bool {
	return plainAction(a.Action) == plainAction(b.Action) && Errno(a.ErrnoRet) == Errno(b.ErrnoRet)
}

func plainAction(a specs.LinuxSeccompAction) specs.LinuxSeccompAction {
	if a == specs.ActKill {
		return specs.ActKillThread
	}
	return a
}

// Errno is the errno of an SCMP_ACT_ERRNO that names none: EPERM (OCI runtime
// specification).
func Errno(errnoRet *uint) uint {
	if errnoRet == nil {
		return 1
	}
	return *errnoRet
}

// disjoint says whether it is certain that no call satisfies both lists.
func disjoint(a, b []specs.LinuxSeccompArg) bool {
	for _, x := range a {
		for _, y := range b {
			if x.Index == y.Index && argsDisjoint(x, y) {
				return true
			}
		}
	}
	return false
}

func argsDisjoint(x, y specs.LinuxSeccompArg) bool {
	xLow, xHigh, xRange := interval(x)
	yLow, yHigh, yRange := interval(y)
	if xRange && yRange {
		return xHigh < yLow || yHigh < xLow || xLow > xHigh || yLow > yHigh
	}
	// What is no range is NE or a mask: an equality can be tried against it.
	if xRange && xLow == xHigh {
		return !matches(y, xLow)
	}
	if yRange && yLow == yHigh {
		return !matches(x, yLow)
	}
	if x.Op == specs.OpMaskedEqual && y.Op == specs.OpMaskedEqual {
		return (x.ValueTwo^y.ValueTwo)&x.Value&y.Value != 0
	}
	return false
}

// interval is the range of values that satisfy a, where they are one. An
// impossible test has low > high.
func interval(a specs.LinuxSeccompArg) (low, high uint64, ok bool) {
	switch a.Op {
	case specs.OpEqualTo:
		return a.Value, a.Value, true
	case specs.OpLessEqual:
		return 0, a.Value, true
	case specs.OpGreaterEqual:
		return a.Value, math.MaxUint64, true
	case specs.OpLessThan:
		if a.Value == 0 {
			return 1, 0, true
		}
		return 0, a.Value - 1, true
	case specs.OpGreaterThan:
		if a.Value == math.MaxUint64 {
			return 1, 0, true
		}
		return a.Value + 1, math.MaxUint64, true
	}
	return 0, 0, false
}

// matches is for the two operators that aren't an interval.
func matches(a specs.LinuxSeccompArg, v uint64) bool {
	if a.Op == specs.OpNotEqual {
		return v != a.Value
	}
	return v&a.Value == a.ValueTwo&a.Value
}
