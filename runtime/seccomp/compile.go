package seccomp

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/seccompprofiles"
)

// maxInstructions is the kernel's BPF_MAXINSNS.
const maxInstructions = 4096

// multiplexer is x86's socketcall(2). For every rule about a socket call
// libseccomp adds one of its own about the multiplexer, without the conditions,
// since they would be behind a pointer. Where a profile speaks about the
// multiplexer itself, its word is final, so we decide in front of the library.
const multiplexer = "socketcall"

// compilation collects what a spec says, before any instruction is written.
type compilation struct {
	arch   string
	abis   []abi
	noX32  bool   // x32 is listed, but the kernel doesn't have it
	action uint32 // SECCOMP_RET_* where no rule matches
	rules  []libraryRule
	own    []decisions // per ABI, for the prelude
	mux    bool        // the profile has rules for the multiplexer
	last   []horizon   // per ABI
}

type libraryRule struct {
	index      int // in the spec
	name       string
	call       libseccomp.ScmpSyscall
	action     libseccomp.ScmpAction
	conditions []libseccomp.ScmpCondition
}

func compile(arch string, noX32 bool, spec *specs.LinuxSeccomp) (*Filter, error) {
	flags, err := filterFlags(spec.Flags)
	if err != nil {
		return nil, err
	}
	if spec.ListenerPath != "" || spec.ListenerMetadata != "" {
		return nil, errors.New("a notification listener is not supported")
	}
	abis, err := abisOf(arch, spec.Architectures)
	if err != nil {
		return nil, err
	}
	listed := len(abis)
	if noX32 {
		abis = slices.DeleteFunc(abis, func(a abi) bool { return a.arch == specs.ArchX32 })
	}
	action, err := outcome(spec.DefaultAction, spec.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("defaultAction: %w", err)
	}
	if c := seccompprofiles.FindConflict(spec); c != nil {
		return nil, fmt.Errorf("syscalls[%d] contradicts syscalls[%d] about %s: one call could match both", c.Rule, c.Earlier, c.Name)
	}
	c := &compilation{
		arch: arch, abis: abis, noX32: len(abis) < listed, action: action,
		own: make([]decisions, len(abis)), last: make([]horizon, len(abis)),
	}
	for i, rule := range spec.Syscalls {
		if err := c.addRule(i, rule); err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
	}
	body, err := c.library()
	if err != nil {
		return nil, err
	}
	prelude, err := c.prelude()
	if err != nil {
		return nil, err
	}
	program := append(encode(prelude), body...)
	if n := len(program) / instructionBytes; n > maxInstructions {
		return nil, fmt.Errorf("the filter has %d instructions, the kernel takes %d", n, maxInstructions)
	}
	return newFilter(program, flags), nil
}

// filterFlags translates to seccomp(2)'s. A profile without flags gets
// SPEC_ALLOW, as with the other runtimes: before Linux 5.16 a filter without it
// slows every indirect branch of the workload. TSYNC asks for what execve does
// anyway: no other thread of init outlives it.
func filterFlags(flags []specs.LinuxSeccompFlag) (uint32, error) {
	if flags == nil {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	var bits uint32
	for _, f := range flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			bits |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			bits |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC":
		default:
			return 0, fmt.Errorf("flags: %q is not supported", f)
		}
	}
	return bits, nil
}

// outcome is an action as the kernel's SECCOMP_RET_*.
func outcome(action specs.LinuxSeccompAction, errnoRet *uint) (uint32, error) {
	if reason := seccompprofiles.CheckAction(action); reason != "" {
		return 0, errors.New(reason)
	}
	if errnoRet != nil && action != specs.ActErrno {
		return 0, fmt.Errorf("%s has no errno", action)
	}
	switch action {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActErrno:
		errno := seccompprofiles.Errno(errnoRet)
		if errno > 4095 { // the kernel's MAX_ERRNO
			return 0, fmt.Errorf("errno %d is greater than 4095", errno)
		}
		return unix.SECCOMP_RET_ERRNO | uint32(errno), nil
	}
	return unix.SECCOMP_RET_KILL_THREAD, nil
}

// libraryAction is an outcome as libseccomp calls it; LOG and the rest have no
// data, ERRNO has its number in the low half.
func libraryAction(outcome uint32) libseccomp.ScmpAction {
	switch outcome & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_ALLOW:
		return libseccomp.ActAllow
	case unix.SECCOMP_RET_LOG:
		return libseccomp.ActLog
	case unix.SECCOMP_RET_TRAP:
		return libseccomp.ActTrap
	case unix.SECCOMP_RET_ERRNO:
		return libseccomp.ActErrno.SetReturnCode(int16(outcome & unix.SECCOMP_RET_DATA))
	case unix.SECCOMP_RET_KILL_PROCESS:
		return libseccomp.ActKillProcess
	}
	return libseccomp.ActKillThread
}

func (c *compilation) addRule(index int, rule specs.LinuxSyscall) error {
	ret, err := outcome(rule.Action, rule.ErrnoRet)
	if err != nil {
		return err
	}
	conditions, err := libraryConditions(rule.Args)
	if err != nil {
		return err
	}
	for _, name := range rule.Names {
		if !seccompprofiles.Known(name) {
			return fmt.Errorf("unknown system call %q", name)
		}
		c.mux = c.mux || name == multiplexer
		native, err := libseccomp.GetSyscallFromName(name)
		byLibrary := err == nil && name != multiplexer
		for i, a := range c.abis {
			nr, libraryKnows, exists := a.number(name)
			if !exists {
				continue
			}
			c.last[i].saw(a, nr)
			if !byLibrary || !libraryKnows {
				c.own[i] = append(c.own[i], decision{nr: nr, action: ret, args: rule.Args})
			}
		}
		// The library refuses a rule that says what happens anyway.
		if byLibrary && ret != c.action {
			c.rules = append(c.rules, libraryRule{index, name, native, libraryAction(ret), conditions})
		}
	}
	return nil
}

func libraryConditions(args []specs.LinuxSeccompArg) ([]libseccomp.ScmpCondition, error) {
	var conditions []libseccomp.ScmpCondition
	var seen [6]bool
	for i, arg := range args {
		if arg.Index > 5 {
			return nil, fmt.Errorf("args[%d]: there is no argument %d", i, arg.Index)
		}
		if seen[arg.Index] {
			return nil, fmt.Errorf("args[%d]: one rule can test argument %d only once", i, arg.Index)
		}
		seen[arg.Index] = true
		condition := libseccomp.ScmpCondition{Argument: arg.Index, Operand1: arg.Value, Operand2: arg.ValueTwo}
		switch arg.Op {
		case specs.OpNotEqual:
			condition.Op = libseccomp.CompareNotEqual
		case specs.OpLessThan:
			condition.Op = libseccomp.CompareLess
		case specs.OpLessEqual:
			condition.Op = libseccomp.CompareLessOrEqual
		case specs.OpEqualTo:
			condition.Op = libseccomp.CompareEqual
		case specs.OpGreaterEqual:
			condition.Op = libseccomp.CompareGreaterEqual
		case specs.OpGreaterThan:
			condition.Op = libseccomp.CompareGreater
		case specs.OpMaskedEqual:
			condition.Op = libseccomp.CompareMaskedEqual
		default:
			return nil, fmt.Errorf("args[%d]: unknown operator %q", i, arg.Op)
		}
		conditions = append(conditions, condition)
	}
	return conditions, nil
}

// library lets libseccomp build its part of the program.
func (c *compilation) library() ([]byte, error) {
	filter, err := libseccomp.NewFilter(libraryAction(c.action))
	if err != nil {
		return nil, err
	}
	defer filter.Release()
	if err := c.setArches(filter); err != nil {
		return nil, err
	}
	// A 32-bit program under a profile that doesn't list its ABI: ending the
	// whole process is the one outcome that can't be mistaken.
	if err := filter.SetBadArchAction(libseccomp.ActKillProcess); err != nil {
		return nil, fmt.Errorf("set the action for other architectures: %w", err)
	}
	// 2: a binary tree over the numbers instead of a list (libseccomp 2.5).
	if err := filter.SetOptimize(2); err != nil {
		return nil, fmt.Errorf("ask for a tree: %w", err)
	}
	if err := c.shadowMultiplexer(filter); err != nil {
		return nil, err
	}
	for _, r := range c.rules {
		if len(r.conditions) == 0 {
			err = filter.AddRule(r.call, r.action)
		} else {
			err = filter.AddRuleConditional(r.call, r.action, r.conditions)
		}
		if errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("syscalls[%d]: %s: contradicts an earlier rule, by itself or in what it means for %s: %w", r.index, r.name, multiplexer, err)
		}
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %s: %w", r.index, r.name, err)
		}
	}
	return export(filter)
}

// shadowMultiplexer keeps the library from adding rules for the multiplexer,
// which might contradict each other: a rule without conditions comes before all
// of them. It is never reached, the prelude having decided.
func (c *compilation) shadowMultiplexer(filter *libseccomp.ScmpFilter) error {
	if !c.mux {
		return nil
	}
	call, err := libseccomp.GetSyscallFromName(multiplexer)
	if err != nil {
		return fmt.Errorf("%s: %w", multiplexer, err)
	}
	action := libseccomp.ActKillProcess
	if c.action == unix.SECCOMP_RET_KILL_PROCESS {
		action = libseccomp.ActKillThread
	}
	if err := filter.AddRule(call, action); err != nil {
		return fmt.Errorf("%s: %w", multiplexer, err)
	}
	return nil
}

// setArches makes the filter's architectures exactly the wanted ones; a new
// filter has the host's.
func (c *compilation) setArches(filter *libseccomp.ScmpFilter) error {
	for _, a := range c.abis {
		if err := filter.AddArch(a.library); err != nil {
			return fmt.Errorf("add architecture %s: %w", a.arch, err)
		}
	}
	if c.arch == runtime.GOARCH {
		return nil
	}
	host, err := libseccomp.GetNativeArch()
	if err != nil {
		return err
	}
	return filter.RemoveArch(host)
}

// export reads the program through a pipe, libseccomp 2.5 having no other way
// that memfd_noexec doesn't forbid. The goroutine is ours: it ends with the
// write end, which is closed before we wait for it.
func export(filter *libseccomp.ScmpFilter) ([]byte, error) {
	readEnd, writeEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer readEnd.Close()
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		data, err := io.ReadAll(readEnd)
		done <- result{data, err}
	}()
	exportErr := filter.ExportBPF(writeEnd)
	writeEnd.Close()
	r := <-done
	if err := errors.Join(exportErr, r.err); err != nil {
		return nil, fmt.Errorf("export the program: %w", err)
	}
	if len(r.data) == 0 || len(r.data)%instructionBytes != 0 {
		return nil, fmt.Errorf("export the program: %d bytes are no program", len(r.data))
	}
	return r.data, nil
}
