package spawn

import (
	"errors"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/podwright/podwright/runtime/launch"
)

// Errnos that execvp(3) goes on after: the next directory of PATH may have the program.
const tolerateSearch = 1<<syscall.ENOENT | 1<<syscall.EACCES | 1<<syscall.ENOTDIR | 1<<syscall.ENODEV

// Program is a prepared list of raw system calls. It is built in ordinary Go and then walked in assembly, by
// a clone of the process, by the calling thread itself, or by a process that is yet to be (Image): no Go code,
// allocation or signal handler runs once the walk began, so it is safe after a raw clone and under any seccomp filter
// that allows the calls.
type Program struct {
	calls   []call
	steps   []rawFailure
	status  int
	keep    []unsafe.Pointer // what raw arguments point to, for the garbage collector
	image   []byte           // of an image: the data so far
	isImage bool
	started bool
}

type call struct {
	rawCall
	step          int // index in steps, -1 for none
	into, intoArg int // the later call whose argument is this one's result; into -1 for none
}

// NewProgram makes an empty program whose failures are written to the descriptor status as launch.StatusError
// messages; -1 for none.
func NewProgram(status int) *Program { return &Program{status: status} }

// Step names the calls that are added next, for the message of a failure among them.
func (p *Program) Step(step, path string) {
	if p.status < 0 {
		return
	}
	message := (&launch.Status{Kind: launch.StatusError, Step: step, Path: path}).Encode()
	at := p.Bytes(message)
	p.steps = append(p.steps, rawFailure{message: at, length: uintptr(len(message)), errno: at + uintptr(launch.StatusErrnoOffset(step))})
}

// Call adds one system call and gives its index.
func (p *Program) Call(nr uintptr, args ...uintptr) int {
	c := call{step: len(p.steps) - 1, into: -1}
	c.nr = nr
	copy(c.args[:], args)
	p.calls = append(p.calls, c)
	return len(p.calls) - 1
}

// Tolerate lets the walk go on when call index fails with one of the errnos.
func (p *Program) Tolerate(index int, errnos ...syscall.Errno) {
	for _, errno := range errnos {
		p.calls[index].tolerate |= 1 << errno
	}
}

// EndMiss ends what is passed over when call index fails and that is tolerated: all that was added since.
func (p *Program) EndMiss(index int) { p.calls[index].miss = uintptr(len(p.calls) - index - 1) }

// Feed makes the result of call from the argument arg of the later call to. Where from fails, and that is tolerated,
// the argument stays what it was.
func (p *Program) Feed(from, to, arg int) { p.calls[from].into, p.calls[from].intoArg = to, arg }

// StoreResult makes the walk write the result of call index into the eight bytes at address.
func (p *Program) StoreResult(index int, address uintptr) { p.calls[index].store = address }

// Fork adds a clone of the walking process with a memory of its own. What is added until EndChild is the
// child's, and has to end it; what is added after it is the parent's.
func (p *Program) Fork(flags uintptr) int { return p.Call(syscall.SYS_CLONE, flags) }

// EndChild ends the child's part of the Fork with that index.
func (p *Program) EndChild(fork int) { p.endSkip(fork) }

// Unless begins what is done only if call from, which needs a result other than 0 for that, was not reached or failed.
func (p *Program) Unless(from int) int {
	index := p.Call(value)
	p.Feed(from, index, 0)
	return index
}

// EndUnless ends what the Unless with that index began.
func (p *Program) EndUnless(index int) { p.endSkip(index) }

func (p *Program) endSkip(index int) { p.calls[index].skip = uintptr(len(p.calls) - index - 1) }

// Expect lets the walk fail with errno unless the word at address, masked, is want.
func (p *Program) Expect(address, mask, want uintptr, errno syscall.Errno) {
	p.Call(expect, address, mask, want, uintptr(errno))
}

// Bytes gives the address of b, or of a copy, and keeps it as long as the program.
func (p *Program) Bytes(b []byte) uintptr {
	if len(b) == 0 {
		return 0
	}
	if p.isImage {
		return p.place(b)
	}
	return p.pointer(unsafe.Pointer(&b[0]))
}

// Text gives the address of s as a C string. A zero inside s ends it early, which callers exclude.
func (p *Program) Text(s string) uintptr {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return p.Bytes(b)
}

// Texts gives the address of a null-terminated array of C strings, as execve(2) takes it.
func (p *Program) Texts(list []string) uintptr {
	array := make([]uintptr, len(list)+1)
	for i, s := range list {
		array[i] = p.Text(s)
	}
	return p.Words(array...)
}

// Words gives the address of an array of 64-bit words.
func (p *Program) Words(list ...uintptr) uintptr { return words(p, list) }

// Halves gives the address of an array of 32-bit words.
func (p *Program) Halves(list ...uint32) uintptr { return words(p, list) }

func words[T any](p *Program, list []T) uintptr {
	if len(list) == 0 {
		return 0
	}
	return p.Bytes(unsafe.Slice((*byte)(unsafe.Pointer(&list[0])), len(list)*int(unsafe.Sizeof(list[0]))))
}

// pointer gives v as a raw argument and keeps what it points to alive as long as the program. It must
// point into the heap: stacks move.
func (p *Program) pointer(v unsafe.Pointer) uintptr {
	p.keep = append(p.keep, v)
	return uintptr(v)
}

// Execute adds the execution of the first of the candidate paths that can be executed, with the rules of
// execvp(3): a missing file lets the next be tried, and the errno of failure is EACCES if any candidate had it.
// It is the program's last step; whatever it fails with is reported under step: for a candidate that exists
// and is no program with its path, else with name.
func (p *Program) Execute(step, name string, candidates, argv, env []string) {
	args, environ := p.Texts(argv), p.Texts(env)
	for _, path := range candidates {
		p.Step(step, path)
		p.calls[p.Call(syscall.SYS_EXECVE, p.Text(path), args, environ)].tolerate = tolerateSearch
	}
	p.Step(step, name)
	p.Call(giveUp)
}

// Become walks the program in the calling thread. It never returns: a failure is written to the status
// descriptor and ends the process with 1, the end of the program ends it with 0.
func (p *Program) Become() {
	raw := p.seal()
	walk(raw)
	runtime.KeepAlive(p)
}

// Clone lets a child that is made with the clone3(2) flags and exit signal walk the program, and gives its
// process id. The child's memory is a copy.
func (p *Program) Clone(flags uint64, exitSignal syscall.Signal) (int, error) {
	raw := p.seal()
	args := &cloneArgs{flags: flags, exitSignal: uint64(exitSignal)}
	r := cloneAndWalk(args, unsafe.Sizeof(*args), raw)
	runtime.KeepAlive(p)
	if errno := cloneErrno(r); errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// errStarted is a bug of the caller: a sealed program's result slots have been used.
var errStarted = errors.New("spawn: program started twice")

// seal turns the calls into what the assembly reads.
func (p *Program) seal() *rawProgram {
	raws := make([]rawCall, len(p.calls)+1) // one more: never an empty slice
	steps := append([]rawFailure{}, p.steps...)
	failures := uintptr(0)
	if len(steps) > 0 {
		failures = p.pointer(unsafe.Pointer(&steps[0]))
	}
	raw := p.link(raws, p.pointer(unsafe.Pointer(&raws[0])), failures)
	return &raw
}

// link fills raws, which will be at address calls, and gives the program of them.
func (p *Program) link(raws []rawCall, calls, failures uintptr) rawProgram {
	if p.started {
		panic(errStarted)
	}
	p.started = true
	for i := range p.calls {
		c := &p.calls[i]
		raws[i] = c.rawCall
		if c.step >= 0 {
			raws[i].failure = failures + uintptr(c.step)*unsafe.Sizeof(rawFailure{})
		}
		if c.into >= 0 {
			raws[i].store = calls + uintptr(c.into)*unsafe.Sizeof(rawCall{}) + unsafe.Offsetof(raws[i].args) + uintptr(c.intoArg)*unsafe.Sizeof(uintptr(0))
		}
	}
	return rawProgram{calls: calls, count: uintptr(len(p.calls)), status: uintptr(p.status)}
}

// cloneErrno is the errno in a raw result, 0 for none: results from -4095 to -1 are errnos.
func cloneErrno(r uintptr) syscall.Errno {
	if r > ^uintptr(0)-4095 {
		return syscall.Errno(-r)
	}
	return 0
}
