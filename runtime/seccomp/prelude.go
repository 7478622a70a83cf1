package seccomp

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data. The halves of an argument are in native byte
// order; both our architectures are little-endian.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
)

// decision is a rule about one system call of one ABI that is ours to enforce.
type decision struct {
	nr     uint32
	action uint32
	args   []specs.LinuxSeccompArg
}

type decisions []decision

// horizon is how far a profile's knowledge of an ABI's system calls goes. ARM
// and x32 have calls of their own far above the common ones, which must not
// make the gap in between known.
type horizon struct {
	common uint32 // greatest number of the common range
	own    uint32 // greatest number above it
	any    bool
}

// x32OwnFirst is where x32's own calls begin, x32OwnLast where they end for
// good (arch/x86/entry/syscalls/syscall_64.tbl).
const x32OwnFirst, x32OwnLast = 512 | x32Bit, 547 | x32Bit

func (h *horizon) saw(a abi, nr uint32) {
	h.any = true
	if a.arch == specs.ArchARM && nr >= armPrivate || a.arch == specs.ArchX32 && nr >= x32OwnFirst {
		h.own = max(h.own, nr)
		return
	}
	h.common = max(h.common, nr)
}

// span is a range of system call numbers with one fate, or one number with
// tests of its arguments, tried in order.
type span struct {
	first, last uint32
	action      uint32
	tests       []decision
}

const enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)

// beyond are the numbers above the horizon, which get ENOSYS: programs try new
// calls and fall back when the kernel says it has none, but take EPERM as an
// answer.
func (h horizon) beyond(a abi) []span {
	switch {
	case !h.any:
		return nil
	case a.arch == specs.ArchX86_64: // x32's numbers begin there
		return []span{{first: h.common + 1, last: x32Bit - 1, action: enosys}}
	case a.arch == specs.ArchARM:
		return []span{{first: h.common + 1, last: armPrivate - 1, action: enosys}}
	case a.arch == specs.ArchX32:
		common := max(h.common, x32Bit)
		return []span{
			{first: common + 1, last: x32OwnFirst - 1, action: enosys},
			{first: x32OwnLast + 1, last: math.MaxUint32, action: enosys},
		}
	}
	return []span{{first: h.common + 1, last: math.MaxUint32, action: enosys}}
}

// permissive says whether calls that no rule is about go through, in which case
// new ones do, too.
func (c *compilation) permissive() bool {
	return c.action == unix.SECCOMP_RET_ALLOW || c.action == unix.SECCOMP_RET_LOG
}

// spans are what the prelude has to say about an ABI, in ascending order and
// not overlapping.
func (c *compilation) spans(i int) []span {
	var out []span
	own := slices.Clone(c.own[i])
	slices.SortStableFunc(own, func(a, b decision) int { return cmp.Compare(a.nr, b.nr) })
	for _, d := range own {
		last := len(out) - 1
		switch {
		case last >= 0 && out[last].last == d.nr && out[last].tests != nil:
			out[last].tests = append(out[last].tests, d)
		case last >= 0 && out[last].last == d.nr:
			// Decided without tests already; a further rule about the same call
			// agrees with that, or the profile would contradict itself.
		case len(d.args) > 0:
			out = append(out, span{first: d.nr, last: d.nr, tests: []decision{d}})
		case last >= 0 && out[last].tests == nil && out[last].last+1 == d.nr && out[last].action == d.action:
			out[last].last = d.nr
		default:
			out = append(out, span{first: d.nr, last: d.nr, action: d.action})
		}
	}
	if !c.permissive() {
		out = append(out, c.last[i].beyond(c.abis[i])...)
	}
	if c.abis[i].arch == specs.ArchX86_64 && c.noX32 {
		// The kernel's own answer, given without a copy of the rules for x32.
		out = append(out, span{first: x32Bit, last: math.MaxUint32, action: enosys})
	}
	return out
}

// prelude is the part of the program in front of libseccomp's:
//
//	which ABI? -> number below the first span: libseccomp's part
//	           -> in a span: its action
//	           -> between spans: libseccomp's part
//
// It reads arguments only for the calls it has tests for, so the kernel's
// bitmap of always-allowed calls (Linux 5.11) still covers the rest.
func (c *compilation) prelude() ([]unix.SockFilter, error) {
	a := newAssembler()
	body := a.label()
	sections := make([]label, len(c.abis))
	spans := make([][]span, len(c.abis))
	used := false
	for i := range c.abis {
		sections[i], spans[i] = a.label(), c.spans(i)
		used = used || len(spans[i]) > 0
	}
	if !used {
		return nil, nil
	}
	a.load(offsetArch)
	for i, abi := range c.abis {
		if abi.arch != specs.ArchX32 { // reached from x86_64's section
			a.when(unix.BPF_JEQ, abi.audit, sections[i], next)
		}
	}
	a.jump(body)
	for i, abi := range c.abis {
		a.mark(sections[i])
		if abi.arch != specs.ArchX32 {
			a.load(offsetNumber)
		}
		if abi.arch == specs.ArchX86_64 && !c.noX32 {
			a.when(unix.BPF_JGE, x32Bit, c.x32Section(sections, body), next)
		}
		if err := c.section(a, spans[i], body); err != nil {
			return nil, err
		}
	}
	a.mark(body)
	return a.program(), nil
}

func (c *compilation) x32Section(sections []label, body label) label {
	for i, abi := range c.abis {
		if abi.arch == specs.ArchX32 {
			return sections[i]
		}
	}
	return body // where libseccomp treats it as another architecture
}

func (c *compilation) section(a *assembler, spans []span, body label) error {
	for _, s := range spans {
		a.when(unix.BPF_JGE, s.first, next, body)
		after := a.label()
		if s.last != math.MaxUint32 {
			a.when(unix.BPF_JGT, s.last, after, next)
		}
		if err := c.decide(a, s); err != nil {
			return err
		}
		a.mark(after)
	}
	a.jump(body)
	return nil
}

func (c *compilation) decide(a *assembler, s span) error {
	if s.tests == nil {
		a.ret(s.action)
		return nil
	}
	for _, d := range s.tests {
		fail := a.label()
		for _, arg := range d.args {
			if err := test(a, arg, fail); err != nil {
				return err
			}
		}
		a.ret(d.action)
		a.mark(fail)
	}
	a.ret(c.action)
	return nil
}

// test goes on if the argument satisfies arg and to fail if not. Arguments have
// 64 bits, comparisons 32: the high half decides unless it is equal.
func test(a *assembler, arg specs.LinuxSeccompArg, fail label) error {
	low := offsetArgs + 8*uint32(arg.Index)
	high := low + 4
	valueHigh, valueLow := uint32(arg.Value>>32), uint32(arg.Value)
	pass := a.label()
	a.load(high)
	switch arg.Op {
	case specs.OpEqualTo:
		a.when(unix.BPF_JEQ, valueHigh, next, fail)
		a.load(low)
		a.when(unix.BPF_JEQ, valueLow, pass, fail)
	case specs.OpNotEqual:
		a.when(unix.BPF_JEQ, valueHigh, next, pass)
		a.load(low)
		a.when(unix.BPF_JEQ, valueLow, fail, pass)
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		a.when(unix.BPF_JGT, valueHigh, pass, next)
		a.when(unix.BPF_JEQ, valueHigh, next, fail)
		a.load(low)
		a.when(jumpFor(arg.Op), valueLow, pass, fail)
	case specs.OpLessThan, specs.OpLessEqual:
		a.when(unix.BPF_JGT, valueHigh, fail, next)
		a.when(unix.BPF_JEQ, valueHigh, next, pass)
		a.load(low)
		a.when(jumpFor(arg.Op), valueLow, fail, pass)
	case specs.OpMaskedEqual: // value is the mask
		want := arg.ValueTwo & arg.Value
		a.and(valueHigh)
		a.when(unix.BPF_JEQ, uint32(want>>32), next, fail)
		a.load(low)
		a.and(valueLow)
		a.when(unix.BPF_JEQ, uint32(want), pass, fail)
	default:
		return fmt.Errorf("unknown operator %q", arg.Op)
	}
	a.mark(pass)
	return nil
}

// jumpFor is the comparison of the low halves; "less" tests its opposite.
func jumpFor(op specs.LinuxSeccompOperator) uint16 {
	if op == specs.OpGreaterThan || op == specs.OpLessEqual {
		return unix.BPF_JGT
	}
	return unix.BPF_JGE
}
