package seccomp

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/seccompprofiles"
)

// childOrder makes a copy of the test binary the filtered process: it loads the
// filter on one thread and tries calls there, or executes a program.
type childOrder struct {
	Program    string // base64; "" is unconfined
	Flags      uint32
	NoNewPrivs bool
	Calls      []childCall
	Exec       string
}

type childCall struct {
	Number uintptr
	Args   [6]uintptr
}

type childAnswer struct {
	Errnos []int
	Load   time.Duration
	Fault  string
}

const childVariable = "PODWRIGHT_SECCOMP_CHILD"

func TestMain(m *testing.M) {
	if order := os.Getenv(childVariable); order != "" {
		answer := child(order)
		json.NewEncoder(os.Stdout).Encode(answer)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(text string) childAnswer {
	var order childOrder
	if err := json.Unmarshal([]byte(text), &order); err != nil {
		return childAnswer{Fault: err.Error()}
	}
	// Never unlocked: the filter stays with the thread.
	runtime.LockOSThread()
	if order.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return childAnswer{Fault: "no_new_privs: " + err.Error()}
		}
	}
	var answer childAnswer
	if order.Program != "" {
		program, err := base64.StdEncoding.DecodeString(order.Program)
		if err != nil {
			return childAnswer{Fault: err.Error()}
		}
		begin := time.Now()
		if errno := load(decode(program), order.Flags); errno != 0 {
			return childAnswer{Fault: "seccomp: " + errno.Error()}
		}
		answer.Load = time.Since(begin)
	}
	if order.Exec != "" {
		return childAnswer{Fault: "execve: " + unix.Exec(order.Exec, []string{order.Exec}, nil).Error()}
	}
	for _, c := range order.Calls {
		_, _, errno := unix.RawSyscall6(c.Number, c.Args[0], c.Args[1], c.Args[2], c.Args[3], c.Args[4], c.Args[5])
		answer.Errnos = append(answer.Errnos, int(errno))
	}
	return answer
}

func load(program []unix.SockFilter, flags uint32) unix.Errno {
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(program)
	return errno
}

func (o childOrder) under(f *Filter) childOrder {
	o.Program, o.Flags = base64.StdEncoding.EncodeToString(f.Program), f.Flags
	return o
}

func command(t *testing.T, order childOrder) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVariable+"="+string(text))
	return cmd
}

func ask(t *testing.T, order childOrder) childAnswer {
	t.Helper()
	out, err := command(t, order).Output()
	if err != nil {
		t.Fatalf("filtered process: %v", err)
	}
	var answer childAnswer
	if err := json.Unmarshal(out, &answer); err != nil || answer.Fault != "" {
		t.Fatalf("filtered process said %q: %v %s", out, err, answer.Fault)
	}
	return answer
}

// hostFilter is the default profile compiled for the machine the test runs on.
func hostFilter(t *testing.T, caps ...string) *Filter {
	t.Helper()
	c, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	filter, _, err := c.CompileProfile(seccompprofiles.Default(), caps)
	if err != nil {
		t.Fatal(err)
	}
	return filter
}

// The calls are all harmless where they are let through: they have invalid
// arguments or ask for information.
var tried = []struct {
	name     string
	call     childCall
	confined unix.Errno
}{
	{"keyctl(KEYCTL_GET_KEYRING_ID)", childCall{unix.SYS_KEYCTL, [6]uintptr{0, ^uintptr(2), 0}}, unix.EPERM},
	{"socket(AF_ALG)", childCall{unix.SYS_SOCKET, [6]uintptr{unix.AF_ALG, unix.SOCK_SEQPACKET}}, unix.EPERM},
	{"socket(AF_VSOCK)", childCall{unix.SYS_SOCKET, [6]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM}}, unix.EPERM},
	{"io_uring_setup", childCall{unix.SYS_IO_URING_SETUP, [6]uintptr{1, 0}}, unix.EPERM},
	{"userfaultfd", childCall{unix.SYS_USERFAULTFD, [6]uintptr{0xffff}}, unix.EPERM},
	{"bpf", childCall{unix.SYS_BPF, [6]uintptr{0xffff, 0, 0}}, unix.EPERM},
	{"unshare(CLONE_NEWUSER)", childCall{unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWUSER}}, unix.EPERM},
	{"clock_settime", childCall{unix.SYS_CLOCK_SETTIME, [6]uintptr{unix.CLOCK_REALTIME, 0}}, unix.EPERM},
	{"init_module", childCall{unix.SYS_INIT_MODULE, [6]uintptr{0, 0, 0}}, unix.EPERM},
	{"clone3", childCall{unix.SYS_CLONE3, [6]uintptr{0, 1}}, unix.ENOSYS},
	{"socket(AF_INET)", childCall{unix.SYS_SOCKET, [6]uintptr{unix.AF_INET, unix.SOCK_STREAM}}, 0},
	{"mseal of nothing", childCall{unix.SYS_MSEAL, [6]uintptr{0, 0, 1}}, unix.EINVAL},
	{"number 9999", childCall{9999, [6]uintptr{}}, unix.ENOSYS},
}

// TestDefaultProfileInTheKernel tries the same calls with the same rights with
// and without the filter, and the filter with and without no_new_privs.
func TestDefaultProfileInTheKernel(t *testing.T) {
	var order childOrder
	for _, c := range tried {
		order.Calls = append(order.Calls, c.call)
	}
	free := ask(t, order)
	for _, noNewPrivs := range []bool{true, false} {
		if !noNewPrivs && os.Geteuid() != 0 {
			t.Log("not root: seccomp(2) without no_new_privs needs CAP_SYS_ADMIN")
			continue
		}
		order.NoNewPrivs = noNewPrivs
		confined := ask(t, order.under(hostFilter(t, defaultCaps...)))
		t.Logf("no_new_privs %v: %d instructions loaded in %v", noNewPrivs, hostFilter(t, defaultCaps...).Instructions(), confined.Load)
		for i, c := range tried {
			got, without := unix.Errno(confined.Errnos[i]), unix.Errno(free.Errnos[i])
			t.Logf("%-32s unconfined %-14q RuntimeDefault %q", c.name, without, got)
			switch {
			case c.name == "mseal of nothing" && without == unix.ENOSYS:
				// The kernel is older than mseal (6.10).
			case got != c.confined:
				t.Errorf("%s: got %v, want %v", c.name, got, c.confined)
			case c.confined == unix.EPERM && without == unix.EPERM && os.Geteuid() == 0:
				t.Errorf("%s: EPERM without a filter as well, so this shows nothing", c.name)
			}
		}
	}
}

func TestCapabilityOpensTheCall(t *testing.T) {
	order := childOrder{NoNewPrivs: true, Calls: []childCall{{unix.SYS_BPF, [6]uintptr{0xffff, 0, 0}}, {unix.SYS_CLOCK_SETTIME, [6]uintptr{unix.CLOCK_REALTIME, 0}}}}
	free := ask(t, order)
	with := ask(t, order.under(hostFilter(t, "CAP_BPF", "CAP_SYS_TIME")))
	for i := range order.Calls {
		if with.Errnos[i] != free.Errnos[i] {
			t.Errorf("call %d: got %v, unconfined %v", order.Calls[i].Number, unix.Errno(with.Errnos[i]), unix.Errno(free.Errnos[i]))
		}
	}
}

// TestThirtyTwoBitPrograms executes i386 programs under the filter: the
// personality works, and neither its socket nor its socketcall makes AF_ALG.
func TestThirtyTwoBitPrograms(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("needs an x86 machine")
	}
	const getpid, socketcall, socket, data = 20, 102, 359, elfDataAddress
	cases := []struct {
		name string
		code []byte
		want int // errno, 0 for success
	}{
		{"getpid", elf32(t, getpid, 0, 0, 0, nil), 0},
		{"socket(AF_UNIX)", elf32(t, socket, unix.AF_UNIX, unix.SOCK_STREAM, 0, nil), 0},
		{"socket(AF_ALG)", elf32(t, socket, unix.AF_ALG, unix.SOCK_SEQPACKET, 0, nil), int(unix.EPERM)},
		{"socket(AF_VSOCK)", elf32(t, socket, unix.AF_VSOCK, unix.SOCK_STREAM, 0, nil), int(unix.EPERM)},
		{"socketcall(SYS_SOCKET, AF_ALG)", elf32(t, socketcall, 1, data, 0, []uint32{unix.AF_ALG, unix.SOCK_SEQPACKET, 0}), int(unix.EPERM)},
		{"socketcall(SYS_SOCKET, AF_VSOCK)", elf32(t, socketcall, 1, data, 0, []uint32{unix.AF_VSOCK, unix.SOCK_STREAM, 0}), int(unix.EPERM)},
		{"socketcall(SYS_GETSOCKNAME, -1)", elf32(t, socketcall, 6, data, 0, []uint32{0xffffffff, 0, 0}), int(unix.EBADF)},
		{"number 9999", elf32(t, 9999, 0, 0, 0, nil), int(unix.ENOSYS)},
	}
	filter := hostFilter(t, defaultCaps...)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "program")
			if err := os.WriteFile(path, c.code, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := exec.Command(path).Run(); errors.Is(err, unix.ENOEXEC) {
				t.Skip("the kernel runs no 32-bit programs (CONFIG_IA32_EMULATION)")
			}
			cmd := command(t, childOrder{NoNewPrivs: true, Exec: path}.under(filter))
			out, err := cmd.Output()
			if cmd.ProcessState == nil || !cmd.ProcessState.Exited() || len(out) > 0 {
				t.Fatalf("got %v, output %q", err, out)
			}
			if got := cmd.ProcessState.ExitCode(); got != c.want {
				t.Errorf("got %v, want %v", unix.Errno(got), unix.Errno(c.want))
			}
		})
	}
}

// TestUnlistedPersonalityDies: a profile for the native ABI only ends a 32-bit
// process rather than leave it unfiltered.
func TestUnlistedPersonalityDies(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("needs an x86 machine")
	}
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, elf32(t, 20, 0, 0, 0, nil), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(path).Run(); err != nil {
		t.Skipf("the kernel runs no 32-bit programs (CONFIG_IA32_EMULATION): %v", err)
	}
	c, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	filter, err := c.Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow})
	if err != nil {
		t.Fatal(err)
	}
	cmd := command(t, childOrder{NoNewPrivs: true, Exec: path}.under(filter))
	cmd.Run()
	status := cmd.ProcessState.Sys().(interface {
		Signaled() bool
		ExitStatus() int
	})
	if !status.Signaled() {
		t.Errorf("got exit code %d, want death by SIGSYS", status.ExitStatus())
	}
}

const elfBase, elfHeader, elfCode = 0x10000, 52 + 32, 40

const elfDataAddress = elfBase + elfHeader + elfCode

// elf32 is an i386 program that makes one system call and exits with its errno,
// or 0 if it succeeded.
func elf32(t *testing.T, nr, a, b, c uint32, data []uint32) []byte {
	t.Helper()
	le := binary.LittleEndian
	move := func(register byte, value uint32) []byte { return le.AppendUint32([]byte{0xb8 + register}, value) }
	code := bytes.Join([][]byte{
		move(0, nr), move(3, a), move(1, b), move(2, c), // eax, ebx, ecx, edx
		{0xcd, 0x80}, // int 0x80
		{0x31, 0xdb}, // xor ebx, ebx
		{0x85, 0xc0}, // test eax, eax
		{0x79, 0x04}, // jns +4
		{0xf7, 0xd8}, // neg eax
		{0x89, 0xc3}, // mov ebx, eax
		move(0, 1),   // exit
		{0xcd, 0x80}, // int 0x80
	}, nil)
	if len(code) > elfCode {
		t.Fatalf("the code has %d bytes", len(code))
	}
	size := uint32(elfHeader + elfCode + 4*len(data))
	var out bytes.Buffer
	out.Write([]byte{0x7f, 'E', 'L', 'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	for _, field := range []any{
		uint16(2), uint16(3), uint32(1), uint32(elfBase + elfHeader), uint32(52), uint32(0), uint32(0), // EXEC, 386, entry, phoff
		uint16(52), uint16(32), uint16(1), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(0), uint32(elfBase), uint32(elfBase), size, size, uint32(5), uint32(0x1000), // PT_LOAD, read and execute
		code, make([]byte, elfCode-len(code)), data,
	} {
		if err := binary.Write(&out, le, field); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

// TestStaticallyLinked: the daemon is one static binary, libseccomp included.
func TestStaticallyLinked(t *testing.T) {
	if testing.Short() {
		t.Skip("links a program")
	}
	dir := t.TempDir()
	source := `package main

import "github.com/podwright/podwright/runtime/seccomp"
import "github.com/podwright/podwright/seccompprofiles"

func main() {
	c, err := seccomp.New(seccomp.Config{})
	if err != nil {
		panic(err)
	}
	f, _, err := c.CompileProfile(seccompprofiles.Default(), nil)
	if err != nil {
		panic(err)
	}
	print(f.Instructions())
}
`
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "program")
	build := exec.Command("go", "build", "-ldflags", `-linkmode external -extldflags "-static"`, "-o", binary, filepath.Join(dir, "main.go"))
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	run := exec.Command(binary)
	run.Env = []string{}
	out, err := run.CombinedOutput()
	if want := fmt.Sprint(hostFilter(t).Instructions()); err != nil || string(out) != want {
		t.Errorf("got %q, %v, want %s", out, err, want)
	}
}
