package seccomp

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/seccompprofiles"
)

func allow(name string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow, Args: args}
}

// TestConditionsMeanTheSameInLibraryAndPrelude puts one random set of argument
// tests on a call libseccomp compiles (ioctl) and on calls the prelude
// compiles (mseal, socketcall), and asks both and the model.
func TestConditionsMeanTheSameInLibraryAndPrelude(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	ops := []specs.LinuxSeccompOperator{
		specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual,
	}
	value := func() uint64 {
		edges := []uint64{0, 1, 2, 7, 0xffffffff, 1 << 32, 1<<32 + 1, 1<<32 + 7, 7 << 32, ^uint64(0)}
		return edges[random.IntN(len(edges))]
	}
	for range 300 {
		var args []specs.LinuxSeccompArg
		for _, index := range random.Perm(6)[:random.IntN(3)] {
			arg := specs.LinuxSeccompArg{Index: uint(index), Value: value(), Op: ops[random.IntN(len(ops))]}
			if arg.Op == specs.OpMaskedEqual {
				arg.ValueTwo = value()
			}
			args = append(args, arg)
		}
		spec := &specs.LinuxSeccomp{DefaultAction: specs.ActTrap, Syscalls: []specs.LinuxSyscall{
			allow("read"), allow("ioctl", args...), allow("mseal", args...), allow("listns"),
		}}
		filter, err := newCompiler(t, "amd64").Compile(spec)
		if err != nil {
			t.Fatalf("%+v: %v", args, err)
		}
		program := decode(filter.Program)
		m := newModel(spec, abi{specs.ArchX86_64, libseccomp.ArchAMD64, unix.AUDIT_ARCH_X86_64})
		for range 100 {
			data := seccompData{arch: unix.AUDIT_ARCH_X86_64}
			for i := range data.args {
				data.args[i] = value()
			}
			for _, nr := range []uint32{unix.SYS_IOCTL, unix.SYS_MSEAL} {
				data.nr = nr
				if got, _ := run(t, program, data); got != m.decide(nr, data.args) {
					t.Fatalf("%s with %#x under %+v: got %s, want %s", m.name(nr), data.args, args, actionName(got), actionName(m.decide(nr, data.args)))
				}
			}
		}
	}
}

func TestNewerCallsOutsideTheSpecsHorizon(t *testing.T) {
	errno := uint(unix.ENOSYS)
	cases := []struct {
		name string
		spec specs.LinuxSeccomp
		nr   uint32
		want string
	}{
		{"above a refusing profile's last call", specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{allow("read"), allow("openat2")}}, unix.SYS_OPENAT2 + 1, "ENOSYS"},
		{"below it", specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{allow("read"), allow("openat2")}}, unix.SYS_OPENAT2 - 1, "EPERM"},
		{"a killing profile spares new calls too", specs.LinuxSeccomp{DefaultAction: specs.ActKillProcess, Syscalls: []specs.LinuxSyscall{allow("openat2")}}, 470, "ENOSYS"},
		{"and kills for the others", specs.LinuxSeccomp{DefaultAction: specs.ActKillProcess, Syscalls: []specs.LinuxSyscall{allow("openat2")}}, 1, "KILL_PROCESS"},
		{"a deny list lets new calls through", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno}}}, 9999, "ALLOW"},
		{"a logging one logs them", specs.LinuxSeccomp{DefaultAction: specs.ActLog}, 9999, "LOG"},
		{"a profile without calls has no horizon", specs.LinuxSeccomp{DefaultAction: specs.ActErrno}, 9999, "EPERM"},
		{"a newer call denied by name", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mseal"}, Action: specs.ActErrno}}}, unix.SYS_MSEAL, "EPERM"},
		{"default errno", specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &errno, Syscalls: []specs.LinuxSyscall{allow("openat2")}}, 1, "ENOSYS"},
		{"a denial that is the default still moves the horizon", specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{allow("read"), {Names: []string{"listns"}, Action: specs.ActErrno}}}, 470, "EPERM"},
		{"x32 is another architecture where it isn't listed", specs.LinuxSeccomp{DefaultAction: specs.ActAllow}, x32Bit | 1, "KILL_PROCESS"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			filter, err := newCompiler(t, "amd64").Compile(&c.spec)
			if err != nil {
				t.Fatal(err)
			}
			got, _ := run(t, decode(filter.Program), seccompData{nr: c.nr, arch: unix.AUDIT_ARCH_X86_64})
			if actionName(got) != c.want {
				t.Errorf("number %d: got %s, want %s", c.nr, actionName(got), c.want)
			}
		})
	}
}

// TestKernelWithoutX32: a kernel that has no x32 gets a shorter filter that
// decides the same for the other ABIs, and ENOSYS for x32.
func TestKernelWithoutX32(t *testing.T) {
	with, without := newCompiler(t, "amd64"), newCompiler(t, "amd64")
	without.noX32 = true
	for _, spec := range []*specs.LinuxSeccomp{
		nil, // the default profile
		{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86, specs.ArchX32}, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActTrap}}},
	} {
		if spec == nil {
			_, resolved, err := with.CompileProfile(seccompprofiles.Default(), defaultCaps)
			if err != nil {
				t.Fatal(err)
			}
			spec = resolved
		}
		long, err := with.Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		short, err := without.Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		if short.Instructions() >= long.Instructions() && len(spec.Syscalls) > 1 {
			t.Errorf("%d instructions without x32, %d with it", short.Instructions(), long.Instructions())
		}
		a, b := decode(long.Program), decode(short.Program)
		for _, arch := range []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64} {
			for nr := range uint32(600) {
				data := seccompData{nr: nr, arch: arch, args: [6]uint64{2}}
				want, _ := run(t, a, data)
				if got, _ := run(t, b, data); got != want {
					t.Fatalf("%#x number %d: got %s, want %s", arch, nr, actionName(got), actionName(want))
				}
			}
		}
		for _, nr := range []uint32{0, 1, 39, 547, 548} {
			if got, _ := run(t, b, seccompData{nr: nr | x32Bit, arch: unix.AUDIT_ARCH_X86_64}); actionName(got) != "ENOSYS" {
				t.Errorf("x32 number %d: got %s, want ENOSYS", nr, actionName(got))
			}
		}
	}
}

// TestSocketcallRulesAreFinal holds the reason for the prelude's part on x86:
// libseccomp alone lets every socket through the multiplexer once the profile
// allows any.
func TestSocketcallRulesAreFinal(t *testing.T) {
	inet := specs.LinuxSeccompArg{Index: 0, Value: unix.AF_INET, Op: specs.OpEqualTo}
	above1 := specs.LinuxSeccompArg{Index: 0, Value: 1, Op: specs.OpGreaterThan}
	base := specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86}}
	silent, spoken := base, base
	silent.Syscalls = []specs.LinuxSyscall{allow("socket", inet), allow("listns")}
	spoken.Syscalls = []specs.LinuxSyscall{allow("socket", inet), allow("listns"), allow("socketcall", above1)}
	for _, c := range []struct {
		name string
		spec *specs.LinuxSeccomp
		want string
	}{{"silent about socketcall", &silent, "ALLOW"}, {"with a rule for it", &spoken, "EPERM"}} {
		filter, err := newCompiler(t, "amd64").Compile(c.spec)
		if err != nil {
			t.Fatal(err)
		}
		data := seccompData{nr: 102, arch: unix.AUDIT_ARCH_I386, args: [6]uint64{1}}
		if got, _ := run(t, decode(filter.Program), data); actionName(got) != c.want {
			t.Errorf("socketcall(SYS_SOCKET), profile %s: got %s, want %s", c.name, actionName(got), c.want)
		}
	}
}

// TestProfileThatTestsSocketArguments has the shape of containers/common's
// rules for the audit socket: different outcomes for one call, told apart by
// arguments, which the multiplexer hides.
func TestProfileThatTestsSocketArguments(t *testing.T) {
	arg := func(index uint, op specs.LinuxSeccompOperator, value uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: index, Op: op, Value: value}
	}
	errno := uint(unix.EINVAL)
	refused := specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActErrno, ErrnoRet: &errno, Args: []specs.LinuxSeccompArg{
		arg(0, specs.OpEqualTo, unix.AF_NETLINK), arg(2, specs.OpEqualTo, unix.NETLINK_AUDIT),
	}}
	spec := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86}, Syscalls: []specs.LinuxSyscall{
		refused, allow("socket", arg(2, specs.OpNotEqual, unix.NETLINK_AUDIT)), allow("socket", arg(0, specs.OpNotEqual, unix.AF_NETLINK)), allow("socketcall"),
	}}
	filter, err := newCompiler(t, "amd64").Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	program := decode(filter.Program)
	for _, c := range []struct {
		family, protocol uint64
		want             string
	}{{unix.AF_NETLINK, unix.NETLINK_AUDIT, "EINVAL"}, {unix.AF_NETLINK, 0, "ALLOW"}, {unix.AF_INET, unix.NETLINK_AUDIT, "ALLOW"}} {
		for nr, arch := range map[uint32]uint32{unix.SYS_SOCKET: unix.AUDIT_ARCH_X86_64, 359: unix.AUDIT_ARCH_I386} {
			got, _ := run(t, program, seccompData{nr: nr, arch: arch, args: [6]uint64{c.family, 0, c.protocol}})
			if actionName(got) != c.want {
				t.Errorf("%#x socket(%d, 0, %d): got %s, want %s", arch, c.family, c.protocol, actionName(got), c.want)
			}
		}
	}
	if got, _ := run(t, program, seccompData{nr: 102, arch: unix.AUDIT_ARCH_I386, args: [6]uint64{1}}); actionName(got) != "ALLOW" {
		t.Errorf("socketcall: got %s, want ALLOW", actionName(got))
	}
	spec.Syscalls = spec.Syscalls[:3]
	if _, err := newCompiler(t, "amd64").Compile(spec); err == nil || !strings.Contains(err.Error(), "socketcall") {
		t.Errorf("without a rule for socketcall: got %v, want an error that names it", err)
	}
}

func TestCompileRefuses(t *testing.T) {
	deny := specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno}
	big := uint(4096)
	twice := []specs.LinuxSeccompArg{{Index: 1, Value: 1, Op: specs.OpGreaterThan}, {Index: 1, Value: 9, Op: specs.OpLessThan}}
	cases := map[string]*specs.LinuxSeccomp{
		"no profile":                       nil,
		"SCMP_ACT_NOTIFY is not supported": {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActNotify}}},
		"SCMP_ACT_TRACE is not supported":  {DefaultAction: specs.ActTrace},
		"unknown action":                   {DefaultAction: "SCMP_ACT_MAYBE"},
		"listener":                         {DefaultAction: specs.ActAllow, ListenerPath: "/run/listener"},
		"WAIT_KILLABLE":                    {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}},
		"no personality":                   {DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchAARCH64}},
		"unknown system call":              {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{allow("reed")}},
		"contradicts":                      {DefaultAction: specs.ActTrap, Syscalls: []specs.LinuxSyscall{allow("read"), deny}},
		"errno 4096":                       {DefaultAction: specs.ActErrno, DefaultErrnoRet: &big},
		"has no errno":                     {DefaultAction: specs.ActAllow, DefaultErrnoRet: &big},
		"only once":                        {DefaultAction: specs.ActTrap, Syscalls: []specs.LinuxSyscall{allow("read", twice...)}},
		"no argument 6":                    {DefaultAction: specs.ActTrap, Syscalls: []specs.LinuxSyscall{allow("read", specs.LinuxSeccompArg{Index: 6, Op: specs.OpEqualTo})}},
		"unknown operator":                 {DefaultAction: specs.ActTrap, Syscalls: []specs.LinuxSyscall{allow("read", specs.LinuxSeccompArg{Op: "SCMP_CMP_ODD"})}},
	}
	for want, spec := range cases {
		if _, err := newCompiler(t, "amd64").Compile(spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want an error with %q", spec, err, want)
		}
	}
}

func TestFilterFlags(t *testing.T) {
	for _, c := range []struct {
		flags []specs.LinuxSeccompFlag
		want  uint32
	}{
		{nil, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
		{[]specs.LinuxSeccompFlag{}, 0},
		{[]specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, "SECCOMP_FILTER_FLAG_TSYNC"}, unix.SECCOMP_FILTER_FLAG_LOG},
	} {
		filter, err := newCompiler(t, "amd64").Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: c.flags})
		if err != nil {
			t.Fatal(err)
		}
		if filter.Flags != c.want {
			t.Errorf("%v: got %#x, want %#x", c.flags, filter.Flags, c.want)
		}
	}
}

// TestFarJumps makes a prelude whose conditional jumps can't reach.
func TestFarJumps(t *testing.T) {
	spec := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for i := range uint64(100) {
		spec.Syscalls = append(spec.Syscalls, allow("mseal", specs.LinuxSeccompArg{Index: 2, Value: i << 20, Op: specs.OpEqualTo}))
	}
	spec.Syscalls = append(spec.Syscalls, allow("read"), allow("setxattrat"))
	filter, err := newCompiler(t, "amd64").Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	program := decode(filter.Program)
	for _, c := range []struct {
		nr   uint32
		arg  uint64
		want string
	}{{unix.SYS_MSEAL, 99 << 20, "ALLOW"}, {unix.SYS_MSEAL, 100 << 20, "EPERM"}, {unix.SYS_READ, 0, "ALLOW"}, {463, 0, "ALLOW"}, {464, 0, "ENOSYS"}, {1, 0, "EPERM"}} {
		data := seccompData{nr: c.nr, arch: unix.AUDIT_ARCH_X86_64, args: [6]uint64{0, 0, c.arg}}
		if got, _ := run(t, program, data); actionName(got) != c.want {
			t.Errorf("number %d, third argument %#x: got %s, want %s", c.nr, c.arg, actionName(got), c.want)
		}
	}
}

// TestNumbersAgreeWithTheKernelTables reads golang.org/x/sys's tables, which
// are made from the kernel's, for all four ABIs it has.
func TestNumbersAgreeWithTheKernelTables(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		t.Skipf("the go command and the source of golang.org/x/sys are needed: %v", err)
	}
	for goarch, arch := range map[string]specs.Arch{"amd64": specs.ArchX86_64, "386": specs.ArchX86, "arm64": specs.ArchAARCH64, "arm": specs.ArchARM} {
		source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "unix", "zsysnum_linux_"+goarch+".go"))
		if err != nil {
			t.Fatal(err)
		}
		one, _ := abiOf(arch)
		checked := 0
		for line := range strings.Lines(string(source)) {
			fields := strings.Fields(line)
			if len(fields) != 3 || !strings.HasPrefix(fields[0], "SYS_") ||
				fields[0] == "SYS_SYSCALL_MASK" || fields[0] == "SYS_ARCH_SPECIFIC_SYSCALL" {
				continue
			}
			name := strings.ToLower(strings.TrimPrefix(fields[0], "SYS_"))
			want, err := strconv.ParseUint(fields[2], 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			if !seccompprofiles.Known(name) {
				t.Errorf("%s: %s is missing in the list of names", goarch, name)
			}
			if got, _, ok := one.number(name); ok {
				checked++
				if got != uint32(want) {
					t.Errorf("%s: %s: got %d, want %d", goarch, name, got, want)
				}
			} else {
				t.Errorf("%s: %s has no number, want %d", goarch, name, want)
			}
		}
		if checked < 250 {
			t.Errorf("%s: only %d numbers compared", goarch, checked)
		}
	}
}

// TestEveryLibraryNameIsKnown keeps the list of names from falling behind.
func TestEveryLibraryNameIsKnown(t *testing.T) {
	for _, library := range []libseccomp.ScmpArch{libseccomp.ArchAMD64, libseccomp.ArchX86, libseccomp.ArchX32, libseccomp.ArchARM, libseccomp.ArchARM64} {
		for nr := range int32(1100) {
			for _, n := range []int32{nr, nr | x32Bit, nr | armPrivate, -nr - 100, -nr - 10000} {
				name, err := libseccomp.ScmpSyscall(n).GetNameByArch(library)
				if err == nil && !seccompprofiles.Known(name) {
					t.Errorf("%s is missing in the list of names", name)
				}
			}
		}
	}
}
