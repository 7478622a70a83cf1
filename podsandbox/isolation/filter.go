package isolation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// FilterDigest names a seccomp program, an array of struct sock_filter, by its SHA-256; "" for none.
func FilterDigest(program []byte) string {
	if len(program) == 0 {
		return ""
	}
	sum := sha256.Sum256(program)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// seccomp compares the mode, and the number of filters: those of the process's parent, podwright's keeper or anchor, are under
// every container's and no container's own. Which programs they are is seen by ReadFilters only.
func seccomp(p *process, s *specs.Spec, filter []byte) (Finding, error) {
	f := Finding{Aspect: "seccomp", Asked: "unconfined", Enforced: "unconfined"}
	if s.Linux.Seccomp != nil {
		f.Asked = "a filter"
	}
	if digest := FilterDigest(filter); digest != "" {
		f.Asked = "filter " + digest
	}
	inherited, err := p.parentFilters()
	if err != nil {
		return f, err
	}
	count, err := strconv.Atoi(p.status["Seccomp_filters"])
	if err != nil { // before Linux 5.9
		count = inherited + 1
	}
	switch mode := p.status["Seccomp"]; {
	case mode == "1":
		f.Enforced = "strict mode"
	case mode == "2" && count <= inherited:
		f.Enforced = fmt.Sprintf("unconfined but for the %d filters that podwright itself is under", inherited)
		f.Differs = s.Linux.Seccomp != nil
	case mode == "2" && count-inherited == 1:
		f.Enforced = "a filter"
	case mode == "2":
		f.Enforced = strconv.Itoa(count-inherited) + " filters"
	default:
		f.Differs = s.Linux.Seccomp != nil
	}
	return f, nil
}

// parentFilters counts the filters that the process's parent is under.
func (p *process) parentFilters() (int, error) {
	text, err := sys.ReadKernelFile("/proc/"+p.status["PPid"]+"/status", smallFile)
	if err != nil {
		return 0, fmt.Errorf("parent of process %d: %w", p.pid, err)
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "Seccomp_filters:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, nil
}

// Confirm replaces what a report says of the filter by what ReadFilters found. What is in force may be more than was
// asked, by the workload's own doing: filters only take away.
func (r *Report) Confirm(inForce []string) {
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.Aspect != "seccomp" || r.FilterDigest == "" {
			continue
		}
		f.Enforced, f.Differs = "no filter", true
		if len(inForce) > 0 {
			f.Enforced = "filter " + strings.Join(inForce, ", ")
		}
		for _, digest := range inForce {
			f.Differs = f.Differs && digest != r.FilterDigest
		}
	}
}

// ErrNotStopped: the process did not stop in time for its filters to be read; it goes on as before.
var ErrNotStopped = errors.New("the process did not stop: it may be waiting in the kernel")

const (
	stopPatience = time.Second
	mostFilters  = 64
	// From linux/ptrace.h and linux/bpf_common.h, where x/sys has no names.
	ptraceGetFilter     = 0x420c
	mostInstructions    = 4096
	bytesPerInstruction = 8
	ptraceEventStop     = 128
)

// ReadFilters gives the digests of the seccomp programs in force for a process's first thread, oldest first, as the kernel
// gives them back (ptrace(2), PTRACE_SECCOMP_GET_FILTER, which needs CONFIG_CHECKPOINT_RESTORE). It stops that thread
// for a moment, as a debugger does: a system call that it waits in may return EINTR. Should this process die meanwhile,
// the kernel lets the thread go on. A process that somebody else traces can't be read (EPERM).
func ReadFilters(ctx context.Context, pid int, startTime uint64) ([]string, error) {
	type answer struct {
		digests []string
		err     error
	}
	done := make(chan answer, 1)
	// Owner: this call; ends by stopPatience. With the thread ends whatever it still traces.
	go func() {
		var a answer
		a.err = sys.OnThread(func() (err error) {
			a.digests, err = readFilters(pid, startTime)
			return err
		})
		done <- a
	}()
	select {
	case a := <-done:
		if a.err != nil {
			return nil, fmt.Errorf("read seccomp filters of process %d: %w", pid, a.err)
		}
		return a.digests, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func readFilters(pid int, startTime uint64) (digests []string, err error) {
	p, err := openProcess(pid, startTime)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if err := unix.PtraceSeize(pid); err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	if err := p.check(); err != nil { // seized by number: it is still the one that was meant
		return nil, err
	}
	if err := unix.PtraceInterrupt(pid); err != nil {
		return nil, fmt.Errorf("stop: %w", err)
	}
	pending, err := awaitStop(pid)
	if err != nil {
		return nil, err
	}
	defer func() {
		// A signal that came instead of the stop is delivered now.
		_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(pid), 0, uintptr(pending), 0, 0)
		if errno != 0 && errno != unix.ESRCH { // ESRCH: it was killed
			err = errors.Join(err, fmt.Errorf("let it go on: %w", errno))
		}
	}()
	for index := range mostFilters {
		program, err := getFilter(pid, index)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL) && p.status["Seccomp"] != "2": // no more, or none at all
			return digests, nil
		case errors.Is(err, unix.EINVAL):
			return nil, fmt.Errorf("the kernel can't give filters back (CONFIG_CHECKPOINT_RESTORE): %w", err)
		case err != nil:
			return nil, fmt.Errorf("filter %d: %w", index, err)
		}
		digests = append(digests, FilterDigest(program))
	}
	return digests, nil
}

// awaitStop waits for a traced process to stop, and gives the signal that stopped it, 0 if it is none of its own.
func awaitStop(pid int) (unix.Signal, error) {
	for end := time.Now().Add(stopPatience); time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
		var status unix.WaitStatus
		got, err := unix.Wait4(pid, &status, unix.WNOHANG|unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR) || err == nil && got == 0:
			continue
		case err != nil:
			return 0, err
		case !status.Stopped():
			return 0, ErrGone
		case int(status)>>16 == ptraceEventStop:
			return 0, nil
		}
		return status.StopSignal(), nil
	}
	return 0, ErrNotStopped
}

func getFilter(pid, index int) ([]byte, error) {
	program := make([]byte, mostInstructions*bytesPerInstruction)
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, ptraceGetFilter, uintptr(pid), uintptr(index), uintptr(unsafe.Pointer(&program[0])), 0, 0)
	if errno != 0 {
		return nil, errno
	}
	return program[:n*bytesPerInstruction], nil
}
