package seccomp

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/seccompprofiles"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// defaultCaps is the set Kubernetes containers get from runtimes by default.
var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

var capSets = []struct {
	name string
	caps []string
}{
	{"none", nil},
	{"default", defaultCaps},
	{"sysadmin", []string{"CAP_SYS_ADMIN"}},
	{"bpf+perfmon+syslog", []string{"CAP_BPF", "CAP_PERFMON", "CAP_SYSLOG"}},
	{"module+time+boot+rawio", []string{"CAP_SYS_MODULE", "CAP_SYS_TIME", "CAP_SYS_BOOT", "CAP_SYS_RAWIO"}},
	{"ptrace+nice+pacct+tty+search", []string{"CAP_SYS_PTRACE", "CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_TTY_CONFIG", "CAP_DAC_READ_SEARCH"}},
}

var kernel618 = seccompprofiles.Version{Major: 6, Minor: 18}

func newCompiler(t testing.TB, arch string) *Compiler {
	t.Helper()
	c, err := New(Config{Arch: arch, Kernel: kernel618})
	if err != nil {
		t.Fatal(err)
	}
	// The same results on every kernel.
	c.noX32 = false
	return c
}

// model says what a resolved profile means for one call, straight from its
// text and by libseccomp's names for numbers: no BPF, no compiler.
type model struct {
	spec    *specs.LinuxSeccomp
	abi     abi
	byName  map[string][]specs.LinuxSyscall
	horizon uint32
}

func newModel(spec *specs.LinuxSeccomp, a abi) *model {
	m := &model{spec: spec, abi: a, byName: map[string][]specs.LinuxSyscall{}}
	for _, rule := range spec.Syscalls {
		for _, name := range rule.Names {
			m.byName[name] = append(m.byName[name], rule)
		}
	}
	for nr := range uint32(512) {
		if m.byName[m.name(nr|m.bit())] != nil {
			m.horizon = nr | m.bit()
		}
	}
	return m
}

func (m *model) bit() uint32 {
	if m.abi.arch == specs.ArchX32 {
		return x32Bit
	}
	return 0
}

func (m *model) name(nr uint32) string {
	if name, err := libseccomp.ScmpSyscall(int32(nr)).GetNameByArch(m.abi.library); err == nil {
		return name
	}
	for _, table := range []map[string]uint32{newer, newerX86_64} {
		for name, number := range table {
			if n, ok := newerNumber(name, m.abi.arch); ok && n == nr && number == nr&^x32Bit {
				return name
			}
		}
	}
	return ""
}

func (m *model) decide(nr uint32, args [6]uint64) uint32 {
	for _, rule := range m.byName[m.name(nr)] {
		if !slices.ContainsFunc(rule.Args, func(a specs.LinuxSeccompArg) bool { return !argHolds(a, args[a.Index]) }) {
			ret, _ := outcome(rule.Action, rule.ErrnoRet)
			return ret
		}
	}
	ret, _ := outcome(m.spec.DefaultAction, m.spec.DefaultErrnoRet)
	inner := m.abi.arch == specs.ArchARM && nr >= armPrivate || m.abi.arch == specs.ArchX32 && nr >= x32OwnFirst && nr <= x32OwnLast
	if nr > m.horizon && !inner && m.horizon > 0 && ret != unix.SECCOMP_RET_ALLOW && ret != unix.SECCOMP_RET_LOG {
		return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	return ret
}

func argHolds(a specs.LinuxSeccompArg, v uint64) bool {
	switch a.Op {
	case specs.OpEqualTo:
		return v == a.Value
	case specs.OpNotEqual:
		return v != a.Value
	case specs.OpLessThan:
		return v < a.Value
	case specs.OpLessEqual:
		return v <= a.Value
	case specs.OpGreaterThan:
		return v > a.Value
	case specs.OpGreaterEqual:
		return v >= a.Value
	}
	return v&a.Value == a.ValueTwo&a.Value
}

// TestDefaultProfileDecidesAsWritten compares the compiled program with the
// profile's text for every number of every ABI, under every set of
// capabilities and with argument values around each value the profile tests.
func TestDefaultProfileDecidesAsWritten(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		for _, set := range capSets {
			t.Run(arch+"/"+set.name, func(t *testing.T) {
				filter, spec, err := newCompiler(t, arch).CompileProfile(seccompprofiles.Default(), set.caps)
				if err != nil {
					t.Fatal(err)
				}
				for _, a := range spec.Architectures {
					one, err := abiOf(a)
					if err != nil {
						t.Fatal(err)
					}
					compareAll(t, decode(filter.Program), newModel(spec, one))
				}
			})
		}
	}
}

func compareAll(t *testing.T, program []unix.SockFilter, m *model) {
	t.Helper()
	// Around every constant of the profile's tests, and garbage in the high half.
	values := []uint64{0, 1, 2, 7, 8, 9, 37, 38, 39, 40, 41, 45, 46, 0x20000, 0x20008, 0x10000000, 0x7e020000, 0x1200011, 0xffffffff, 1 << 32, 1<<32 | 2, 1<<32 | 38, ^uint64(0)}
	numbers := []uint32{9999, armPrivate - 1, armPrivate + 1, armPrivate + 2, armPrivate + 3, armPrivate + 5, armPrivate + 6, x32Bit - 1, 0x7fffffff}
	for nr := range uint32(700) {
		numbers = append(numbers, nr)
	}
	for _, nr := range numbers {
		nr |= m.bit()
		for _, v := range values {
			args := [6]uint64{v, ^v, v, v, v, v}
			// 32-bit ABIs pass nothing above 32 bits. x32 could, in numbers the
			// calls don't read: there only the low half counts.
			if m.abi.arch != specs.ArchX86_64 && m.abi.arch != specs.ArchAARCH64 {
				for i := range args {
					args[i] &= 0xffffffff
				}
			}
			data := seccompData{nr: nr, arch: m.abi.audit, args: args}
			if m.abi.arch == specs.ArchX32 {
				data.args = [6]uint64{v, ^v, v, v, v, v}
			}
			got, _ := run(t, program, data)
			if want := m.decide(nr, args); got != want {
				t.Fatalf("%s %s (%#x) first argument %#x: got %s, want %s", m.abi.arch, m.name(nr), nr, v, actionName(got), actionName(want))
			}
		}
	}
}

// interesting are the calls of the golden table.
var interesting = []struct {
	name string
	args []uint64
	note string
}{
	{"read", nil, ""}, {"clock_gettime", nil, ""}, {"setxattrat", nil, "newer than libseccomp 2.5"}, {"mseal", nil, "newer than libseccomp 2.5"},
	{"statmount", nil, ""},
	{"keyctl", nil, ""}, {"add_key", nil, ""}, {"request_key", nil, ""},
	{"io_uring_setup", nil, ""}, {"io_uring_enter", nil, ""}, {"io_uring_register", nil, ""}, {"userfaultfd", nil, ""},
	{"bpf", nil, ""}, {"perf_event_open", nil, ""}, {"syslog", nil, ""},
	{"init_module", nil, ""}, {"finit_module", nil, ""}, {"delete_module", nil, ""}, {"kexec_load", nil, ""}, {"kexec_file_load", nil, ""},
	{"reboot", nil, ""}, {"swapon", nil, ""}, {"acct", nil, ""}, {"quotactl", nil, ""}, {"iopl", nil, ""}, {"ioperm", nil, ""}, {"vhangup", nil, ""},
	{"clock_settime", nil, ""}, {"settimeofday", nil, ""}, {"adjtimex", nil, ""},
	{"mount", nil, ""}, {"umount2", nil, ""}, {"pivot_root", nil, ""}, {"chroot", nil, ""}, {"open_tree", nil, ""}, {"move_mount", nil, ""},
	{"fsopen", nil, ""}, {"mount_setattr", nil, ""}, {"open_by_handle_at", nil, ""},
	{"unshare", nil, ""}, {"setns", nil, ""}, {"clone3", nil, ""},
	{"clone", []uint64{uint64(unix.SIGCHLD)}, "fork"},
	{"clone", []uint64{unix.CLONE_VM | unix.CLONE_THREAD | unix.CLONE_SIGHAND}, "thread"},
	{"clone", []uint64{unix.CLONE_NEWUSER}, "CLONE_NEWUSER"},
	{"clone", []uint64{unix.CLONE_NEWNS | uint64(unix.SIGCHLD)}, "CLONE_NEWNS"},
	{"ptrace", nil, ""}, {"process_vm_writev", nil, ""}, {"pidfd_getfd", nil, ""}, {"kcmp", nil, ""}, {"mbind", nil, ""}, {"move_pages", nil, ""},
	{"socket", []uint64{unix.AF_UNIX}, "AF_UNIX"}, {"socket", []uint64{unix.AF_INET6}, "AF_INET6"}, {"socket", []uint64{unix.AF_NETLINK}, "AF_NETLINK"},
	{"socket", []uint64{unix.AF_ALG}, "AF_ALG"}, {"socket", []uint64{unix.AF_NFC}, "AF_NFC"}, {"socket", []uint64{unix.AF_VSOCK}, "AF_VSOCK"},
	{"socket", []uint64{unix.AF_XDP}, "AF_XDP"}, {"socket", []uint64{1<<32 | unix.AF_ALG}, "AF_ALG with garbage above"}, {"socket", []uint64{99}, "99"},
	{"socketcall", []uint64{1}, "SYS_SOCKET"}, {"socketcall", []uint64{3}, "SYS_CONNECT"},
	{"personality", []uint64{0}, "PER_LINUX"}, {"personality", []uint64{8}, "PER_LINUX32"}, {"personality", []uint64{0xffffffff}, "query"},
	{"personality", []uint64{0x0040000}, "ADDR_NO_RANDOMIZE"},
	{"open_tree_attr", nil, "newer than the profile"}, {"file_setattr", nil, "newer than the profile"}, {"listns", nil, "newer than the profile"},
}

// TestDefaultProfileGolden fixes what the default profile decides, so that a
// change of it is seen in review.
func TestDefaultProfileGolden(t *testing.T) {
	var b strings.Builder
	for _, arch := range []string{"amd64", "arm64"} {
		compiler := newCompiler(t, arch)
		for _, a := range seccompprofiles.Personalities(arch) {
			one, err := abiOf(a)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "# %s on %s:", a, arch)
			var programs [][]unix.SockFilter
			for _, set := range capSets {
				fmt.Fprintf(&b, " %s", set.name)
				filter, _, err := compiler.CompileProfile(seccompprofiles.Default(), set.caps)
				if err != nil {
					t.Fatal(err)
				}
				programs = append(programs, decode(filter.Program))
			}
			b.WriteString("\n")
			for _, call := range interesting {
				goldenLine(t, &b, one, programs, call.name, call.args, call.note)
			}
		}
	}
	compareGolden(t, "decisions.golden", b.String())
}

func goldenLine(t *testing.T, b *strings.Builder, a abi, programs [][]unix.SockFilter, name string, args []uint64, note string) {
	t.Helper()
	nr, _, ok := a.number(name)
	if !ok {
		return
	}
	data := seccompData{nr: nr, arch: a.audit}
	copy(data.args[:], args)
	label := name
	if note != "" {
		label += " (" + note + ")"
	}
	fmt.Fprintf(b, "%-40s", label)
	for _, program := range programs {
		action, _ := run(t, program, data)
		fmt.Fprintf(b, " %s", actionName(action))
	}
	b.WriteString("\n")
}

func compareGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range min(len(gotLines), len(wantLines)) {
		if gotLines[i] != wantLines[i] {
			t.Fatalf("%s line %d:\n got %s\nwant %s", path, i+1, gotLines[i], wantLines[i])
		}
	}
	t.Fatalf("%s: got %d lines, want %d", path, len(gotLines), len(wantLines))
}
