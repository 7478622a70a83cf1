package isolation

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// filtersVariable makes the test binary a process under so many filters that says what it is told.
const filtersVariable = "PODWRIGHT_ISOLATION_TEST_FILTERS"

// innerVariable makes it only the parent of one, with so many more.
const innerVariable = "PODWRIGHT_ISOLATION_TEST_INNER"

func TestMain(m *testing.M) {
	if count := os.Getenv(filtersVariable); count != "" {
		beFiltered(count)
	}
	os.Exit(m.Run())
}

// programs are filters that let everything through.
var programs = [][]unix.SockFilter{
	{{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW}},
	{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, {Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW}},
}

func programBytes(program []unix.SockFilter) (out []byte) {
	for _, i := range program {
		out = binary.NativeEndian.AppendUint16(out, i.Code)
		out = append(out, i.Jt, i.Jf)
		out = binary.NativeEndian.AppendUint32(out, i.K)
	}
	return out
}

func beFiltered(count string) {
	for i := range programs[:int(count[0]-'0')] {
		runtime.LockOSThread()
		prog := unix.SockFprog{Len: uint16(len(programs[i])), Filter: &programs[i][0]}
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))); errno != 0 {
			fmt.Println(errno)
			os.Exit(1)
		}
	}
	if inner := os.Getenv(innerVariable); inner != "" {
		cmd := exec.Command(os.Args[0])
		cmd.Env, cmd.Stdin, cmd.Stdout = []string{filtersVariable + "=" + inner}, os.Stdin, os.Stdout
		if err := cmd.Run(); err != nil {
			fmt.Println(err)
		}
		os.Exit(0)
	}
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fmt.Println("heard " + lines.Text())
	}
	os.Exit(0)
}

// filtered starts one, and gives a way to talk to it.
func filtered(t *testing.T, count string) (Input, func(say string) string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), filtersVariable+"="+count)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewReader(out)
	hear := func() string {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(line)
	}
	if got := hear(); got != "ready" {
		t.Fatalf("got %q", got)
	}
	input := Input{PID: cmd.Process.Pid, StartTime: startTime(t, cmd.Process.Pid), Spec: plainSpec(t), Cgroup: "/"}
	return input, func(say string) string {
		if _, err := io.WriteString(in, say+"\n"); err != nil {
			t.Fatal(err)
		}
		return hear()
	}
}

func TestFiltersAreReadBackAndTheProcessGoesOn(t *testing.T) {
	needRoot(t)
	for count, want := range map[string][]string{
		"0": nil, "1": {FilterDigest(programBytes(programs[0]))}, "2": {FilterDigest(programBytes(programs[0])), FilterDigest(programBytes(programs[1]))},
	} {
		in, talk := filtered(t, count)
		for range 3 {
			got, err := ReadFilters(t.Context(), in.PID, in.StartTime)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s filters: got %q, %v, want %q", count, got, err, want)
			}
			if got := talk("hello"); got != "heard hello" {
				t.Errorf("afterwards: got %q", got)
			}
		}
		if _, err := ReadFilters(t.Context(), in.PID, in.StartTime+1); !errors.Is(err, ErrGone) {
			t.Errorf("another process with the number: got %v", err)
		}
	}
}

func TestAStoppedProcessStaysStopped(t *testing.T) {
	needRoot(t)
	in, talk := filtered(t, "1")
	state := func() string {
		p, err := openProcess(in.PID, in.StartTime)
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		return p.status["State"]
	}
	if err := unix.Kill(in.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	awaitState := func(want string) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); !strings.HasPrefix(state(), want); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("its state is %s, want %s", state(), want)
			}
		}
	}
	awaitState("T")
	if got, err := ReadFilters(t.Context(), in.PID, in.StartTime); err != nil || len(got) != 1 {
		t.Errorf("got %q, %v", got, err)
	}
	awaitState("T")
	if err := unix.Kill(in.PID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if got := talk("again"); got != "heard again" {
		t.Errorf("afterwards: got %q", got)
	}
}

func TestWhoIsTracedIsNotRead(t *testing.T) {
	needRoot(t)
	in, _ := filtered(t, "1")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(in.PID); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadFilters(t.Context(), in.PID, in.StartTime); !errors.Is(err, unix.EPERM) {
		t.Errorf("got %q, %v, want EPERM", got, err)
	}
}

func TestConfirmComparesFilters(t *testing.T) {
	for _, c := range []struct {
		asked   string
		inForce []string
		differs bool
	}{
		{"sha256:a", []string{"sha256:a"}, false}, {"sha256:a", []string{"sha256:a", "sha256:b"}, false}, {"sha256:a", []string{"sha256:x", "sha256:a"}, false},
		{"sha256:a", []string{"sha256:b"}, true}, {"sha256:a", nil, true},
	} {
		r := Report{FilterDigest: c.asked, Findings: []Finding{{Aspect: "no_new_privs"}, {Aspect: "seccomp", Asked: "filter " + c.asked}}}
		r.Confirm(c.inForce)
		if f := r.Findings[1]; f.Differs != c.differs || f.Enforced == "" || r.Findings[0].Differs {
			t.Errorf("asked %s, in force %q: got %+v", c.asked, c.inForce, r.Findings)
		}
	}
	r := Report{Findings: []Finding{{Aspect: "seccomp", Asked: "unconfined", Enforced: "unconfined"}}}
	if r.Confirm([]string{"sha256:a"}); r.Findings[0].Differs {
		t.Errorf("nothing was asked: got %+v", r.Findings)
	}
}

// Filters that the parent was born with, by a unit's settings, say, are not the container's.
func TestFiltersOfTheParentAreNotTheContainers(t *testing.T) {
	for inner, want := range map[string]string{"0": "unconfined but for the 1 filters that podwright itself is under", "1": "a filter"} {
		t.Setenv(innerVariable, inner)
		in, _ := filtered(t, "1")
		lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", in.PID))
		if err != nil {
			t.Fatal(err)
		}
		for _, list := range lists {
			text, _ := os.ReadFile(list)
			if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
				in.PID, in.StartTime = pid, startTime(t, pid)
			}
		}
		r := report(t, in)
		at := slices.IndexFunc(r.Findings, func(f Finding) bool { return f.Aspect == "seccomp" })
		if at < 0 || r.Findings[at].Enforced != want {
			t.Errorf("%s filters of its own: got %+v, want %s", inner, r.Findings, want)
		}
	}
}

func TestFilterDigestIsInTheReport(t *testing.T) {
	in, _ := filtered(t, "1")
	in.Spec.Linux.Seccomp, in.Filter = nil, programBytes(programs[0])
	r := report(t, in)
	at := slices.IndexFunc(r.Findings, func(f Finding) bool { return f.Aspect == "seccomp" })
	if want := "filter " + FilterDigest(in.Filter); at < 0 || r.Findings[at].Asked != want || r.Findings[at].Enforced != "a filter" || r.FilterDigest == "" {
		t.Errorf("got %+v, want asked %s", r.Findings[at], want)
	}
}
