package seccompprofiles

import (
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// knownArches are the architectures the format names. Which of them a filter is
// made for is decided when the profile is resolved.
var knownArches = []specs.Arch{
	specs.ArchX86, specs.ArchX86_64, specs.ArchX32, specs.ArchARM, specs.ArchAARCH64,
	specs.ArchMIPS, specs.ArchMIPS64, specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32,
	specs.ArchPPC, specs.ArchPPC64, specs.ArchPPC64LE, specs.ArchS390, specs.ArchS390X,
	specs.ArchPARISC, specs.ArchPARISC64, specs.ArchRISCV64, specs.ArchLOONGARCH64, specs.ArchM68K, specs.ArchSH, specs.ArchSHEB,
}

// conditionArches are the names includes.arches may hold: GOARCH and the
// engines' own names of personalities.
var conditionArches = []string{
	"amd64", "386", "x86", "x32", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mips64n32", "mipsel", "mipsel64",
	"mipsel64n32", "mipsle", "parisc", "parisc64", "ppc", "ppc64", "ppc64le", "riscv64", "s390", "s390x",
}

var flags = []specs.LinuxSeccompFlag{
	specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow, "SECCOMP_FILTER_FLAG_TSYNC",
}

var operators = []specs.LinuxSeccompOperator{
	specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual,
}

// decoder turns the tree into a Profile. It keeps the first error, in document
// order, and does nothing more after it.
type decoder struct {
	data []byte
	err  error
}

func (d *decoder) fail(offset int, path, reason string) {
	if d.err == nil {
		d.err = errorAt(d.data, offset, path, reason)
	}
}

// fields calls field for each member of an object, in document order. Null
// members count as absent; field returns false for a name it doesn't know.
func (d *decoder) fields(n *node, path string, field func(name, path string, value *node) bool) {
	if !d.is(n, path, kindObject) {
		return
	}
	for i, k := range n.keys {
		if d.err != nil {
			return
		}
		value := n.items[i]
		if value.kind == kindNull {
			value = nil
		}
		if !field(k.name, join(path, k.name), value) {
			d.fail(k.offset, join(path, k.name), "unknown key")
		}
	}
}

func (d *decoder) profile(n *node) *Profile {
	p := &Profile{data: d.data}
	var defaultAction, defaultErrno, defaultErrnoName, archMap, architectures *node
	d.fields(n, "", func(name, path string, v *node) bool {
		switch name {
		case "defaultAction":
			defaultAction, p.defaultAction = v, d.action(v, path)
		case "defaultErrnoRet":
			defaultErrno = v
		case "defaultErrno":
			defaultErrnoName = v
		case "archMap":
			archMap = v
			d.each(v, path, func(v *node, path string) { p.archMap = append(p.archMap, d.architecture(v, path)) })
		case "architectures":
			architectures, p.architectures = v, d.arches(v, path)
		case "flags":
			p.flags = d.flags(v, path)
		case "syscalls":
			if v != nil && len(v.items) > maxRules {
				d.fail(v.offset, path, "more than 4096 rules")
			}
			d.each(v, path, func(v *node, path string) { p.rules = append(p.rules, d.rule(v, path)) })
		case "listenerPath", "listenerMetadata":
			if d.text(v, path) != "" {
				d.fail(v.offset, path, "not supported: podwright has no notification listener")
			}
		default:
			return false
		}
		return true
	})
	if defaultAction == nil {
		d.fail(n.offset, "defaultAction", "missing")
	}
	p.defaultErrnoRet = d.errno(p.defaultAction, defaultErrno, "defaultErrnoRet", defaultErrnoName, "defaultErrno")
	if archMap != nil && architectures != nil && len(p.archMap) > 0 && len(p.architectures) > 0 {
		d.fail(architectures.offset, "architectures", "archMap is given as well; use one of them")
	}
	return p
}

func (d *decoder) architecture(n *node, path string) architecture {
	var a architecture
	d.fields(n, path, func(name, path string, v *node) bool {
		switch name {
		case "architecture":
			a.native = d.arch(v, path)
		case "subArchitectures":
			a.subs = d.arches(v, path)
		default:
			return false
		}
		return true
	})
	if a.native == "" && d.err == nil {
		d.fail(n.offset, join(path, "architecture"), "missing")
	}
	return a
}

func (d *decoder) rule(n *node, path string) rule {
	r := rule{offset: n.offset}
	var names, single, action, errno, errnoName *node
	d.fields(n, path, func(name, path string, v *node) bool {
		switch name {
		case "names":
			names = v
			d.each(v, path, func(v *node, path string) { r.names = append(r.names, d.syscall(v, path)) })
		case "name": // the form before names, which older profiles still have
			if v != nil && d.text(v, path) != "" {
				single = v
				r.names = append(r.names, d.syscall(v, path))
			}
		case "action":
			action, r.action = v, d.action(v, path)
		case "errnoRet":
			errno = v
		case "errno":
			errnoName = v
		case "args":
			d.each(v, path, func(v *node, path string) { r.args = append(r.args, d.arg(v, path, r.args)) })
		case "comment":
			d.text(v, path)
		case "includes":
			r.includes = d.condition(v, path)
		case "excludes":
			r.excludes = d.condition(v, path)
		default:
			return false
		}
		return true
	})
	switch {
	case d.err != nil:
	case len(r.names) == 0:
		d.fail(n.offset, join(path, "names"), "missing: the rule is about no system call")
	case names != nil && single != nil:
		d.fail(single.offset, join(path, "name"), "names is given as well; use names")
	case action == nil:
		d.fail(n.offset, join(path, "action"), "missing")
	}
	r.errnoRet = d.errno(r.action, errno, join(path, "errnoRet"), errnoName, join(path, "errno"))
	return r
}

func (d *decoder) arg(n *node, path string, before []specs.LinuxSeccompArg) specs.LinuxSeccompArg {
	var a specs.LinuxSeccompArg
	var index, value, valueTwo, op *node
	d.fields(n, path, func(name, path string, v *node) bool {
		switch name {
		case "index":
			index, a.Index = v, uint(d.number(v, path, 5))
		case "value":
			value, a.Value = v, d.number(v, path, 1<<64-1)
		case "valueTwo":
			valueTwo, a.ValueTwo = v, d.number(v, path, 1<<64-1)
		case "op":
			op, a.Op = v, specs.LinuxSeccompOperator(d.text(v, path))
			if v != nil && !slices.Contains(operators, a.Op) {
				d.fail(v.offset, path, "unknown operator "+quote(string(a.Op)))
			}
		default:
			return false
		}
		return true
	})
	for _, need := range []struct {
		node *node
		name string
	}{{index, "index"}, {value, "value"}, {op, "op"}} {
		if need.node == nil && d.err == nil {
			d.fail(n.offset, join(path, need.name), "missing")
		}
	}
	if a.ValueTwo != 0 && a.Op != specs.OpMaskedEqual && d.err == nil {
		d.fail(valueTwo.offset, join(path, "valueTwo"), "only SCMP_CMP_MASKED_EQ has a second value")
	}
	// libseccomp can't, and runtimes that paper over it make the tests
	// alternatives where the author meant a range.
	if d.err == nil && slices.ContainsFunc(before, func(b specs.LinuxSeccompArg) bool { return b.Index == a.Index }) {
		d.fail(index.offset, join(path, "index"), "one rule can test argument "+strconv.Itoa(int(a.Index))+" only once")
	}
	return a
}

func (d *decoder) condition(n *node, path string) condition {
	var c condition
	if n == nil {
		return c
	}
	d.fields(n, path, func(name, path string, v *node) bool {
		switch name {
		case "caps":
			d.each(v, path, func(v *node, path string) {
				c.caps = append(c.caps, d.text(v, path))
				if !slices.Contains(capabilities, v.text) {
					d.fail(v.offset, path, "unknown capability "+quote(v.text))
				}
			})
		case "arches":
			d.each(v, path, func(v *node, path string) {
				c.arches = append(c.arches, d.text(v, path))
				if !slices.Contains(conditionArches, v.text) {
					d.fail(v.offset, path, "unknown architecture "+quote(v.text))
				}
			})
		case "minKernel":
			if v == nil {
				break
			}
			version, err := parseVersion(d.text(v, path))
			if err != nil {
				d.fail(v.offset, path, err.Error())
			}
			c.minKernel = &version
		default:
			return false
		}
		return true
	})
	return c
}

func (d *decoder) syscall(n *node, path string) string {
	name := d.text(n, path)
	if d.err == nil && !Known(name) {
		d.fail(n.offset, path, "unknown system call "+quote(name))
	}
	return name
}

func (d *decoder) action(n *node, path string) specs.LinuxSeccompAction {
	action := specs.LinuxSeccompAction(d.text(n, path))
	if n == nil || d.err != nil {
		return ""
	}
	if reason := CheckAction(action); reason != "" {
		d.fail(n.offset, path, reason)
	}
	return action
}

// errno is given as a number (errnoRet) or, in the way of containers/common, as
// a name or number in a string (errno).
func (d *decoder) errno(action specs.LinuxSeccompAction, ret *node, retPath string, name *node, namePath string) *uint {
	var errno *uint
	if ret != nil {
		n := uint(d.number(ret, retPath, maxErrno))
		errno = &n
	}
	if name != nil && d.text(name, namePath) != "" {
		n, ok := errnoNamed(name.text)
		switch {
		case !ok:
			d.fail(name.offset, namePath, "unknown errno "+quote(name.text))
		case errno != nil && *errno != n:
			d.fail(name.offset, namePath, "another errno than "+retPath[strings.LastIndexByte(retPath, '.')+1:]+"'s")
		}
		errno = &n
	}
	if errno != nil && action != specs.ActErrno {
		at, path := ret, retPath
		if at == nil {
			at, path = name, namePath
		}
		d.fail(at.offset, path, "only SCMP_ACT_ERRNO has an errno")
	}
	return errno
}

func errnoNamed(s string) (uint, bool) {
	if n, err := strconv.ParseUint(s, 10, 64); err == nil {
		return uint(n), n <= maxErrno
	}
	for n := unix.Errno(1); n < 256; n++ {
		if unix.ErrnoName(n) == s {
			return uint(n), true
		}
	}
	return 0, false
}

func (d *decoder) arch(n *node, path string) specs.Arch {
	arch := specs.Arch(d.text(n, path))
	if n != nil && !slices.Contains(knownArches, arch) {
		d.fail(n.offset, path, "unknown architecture "+quote(string(arch)))
	}
	return arch
}

func (d *decoder) arches(n *node, path string) []specs.Arch {
	var arches []specs.Arch
	d.each(n, path, func(v *node, path string) { arches = append(arches, d.arch(v, path)) })
	return arches
}

func (d *decoder) flags(n *node, path string) []specs.LinuxSeccompFlag {
	if n == nil {
		return nil
	}
	list := []specs.LinuxSeccompFlag{}
	d.each(n, path, func(v *node, path string) {
		flag := specs.LinuxSeccompFlag(d.text(v, path))
		if !slices.Contains(flags, flag) {
			d.fail(v.offset, path, "unknown or unsupported flag "+quote(string(flag)))
		}
		list = append(list, flag)
	})
	return list
}

// each calls item for the elements of an array; an absent one has none. Null
// elements are refused.
func (d *decoder) each(n *node, path string, item func(v *node, path string)) {
	if n == nil || !d.is(n, path, kindArray) {
		return
	}
	for i, v := range n.items {
		if d.err == nil {
			item(v, path+"["+strconv.Itoa(i)+"]")
		}
	}
}

func (d *decoder) text(n *node, path string) string {
	if n == nil || !d.is(n, path, kindString) {
		return ""
	}
	return n.text
}

func (d *decoder) number(n *node, path string, limit uint64) uint64 {
	if n == nil || !d.is(n, path, kindNumber) {
		return 0
	}
	v, err := strconv.ParseUint(n.text, 10, 64)
	if err != nil || v > limit {
		d.fail(n.offset, path, "want a whole number from 0 to "+strconv.FormatUint(limit, 10)+", got "+n.text)
	}
	return v
}

func (d *decoder) is(n *node, path string, want kind) bool {
	if n.kind != want {
		d.fail(n.offset, path, "want "+want.String()+", got "+n.kind.String())
	}
	return n.kind == want
}

// quote bounds what an error repeats of a hostile document.
func quote(s string) string {
	const limit = 64
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return strconv.Quote(s)
}
