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

// giveUp is the number of the pseudo call that fails with the errno kept from tolerated failures.
const giveUp = ^uintptr(0)

// Program is a prepared list of raw system calls. It is built in ordinary Go and then walked in assembly, by
// a clone of the process or by the calling thread itself: no Go code, allocation or signal handler runs once
// the walk began, so it is safe after a raw clone and under any seccomp filter that allows the calls.
type Program struct {
	calls   []call
	steps   []rawFailure
	status  int
	keep    []unsafe.Pointer // what raw arguments point to, for the garbage collector
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
	p.keep = append(p.keep, unsafe.Pointer(&message[0]))
	p.steps = append(p.steps, rawFailure{
		message: unsafe.Pointer(&message[0]),
		length:  uintptr(len(message)),
		errno:   unsafe.Pointer(&message[launch.StatusErrnoOffset(step)]),
	})
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

// Feed makes the result of call from the argument arg of the later call to.
func (p *Program) Feed(from, to, arg int) { p.calls[from].into, p.calls[from].intoArg = to, arg }

// StoreResult makes the walk write the result of call index into the first eight bytes of b.
func (p *Program) StoreResult(index int, b []byte) {
	p.keep = append(p.keep, unsafe.Pointer(&b[7]))
	p.calls[index].store = (*uintptr)(unsafe.Pointer(&b[0]))
}

// Fork adds a clone of the walking process with a memory of its own. What is added until EndChild is the
// child's, and has to end it; what is added after it is the parent's.
func (p *Program) Fork(flags uintptr) int { return p.Call(syscall.SYS_CLONE, flags) }

// EndChild ends the child's part of the Fork with that index.
func (p *Program) EndChild(fork int) { p.calls[fork].fork = uintptr(len(p.calls) - fork - 1) }

// Bytes gives b's address and keeps b alive as long as the program.
func (p *Program) Bytes(b []byte) uintptr {
	if len(b) == 0 {
		return 0
	}
	return p.Pointer(unsafe.Pointer(&b[0]))
}

// Text gives the address of s as a C string.
func (p *Program) Text(s string) uintptr { return p.Pointer(unsafe.Pointer(cstring(s))) }

// Texts gives the address of a null-terminated array of C strings, as execve(2) takes it.
func (p *Program) Texts(list []string) uintptr {
	array := make([]*byte, len(list)+1)
	for i, s := range list {
		array[i] = cstring(s)
	}
	return p.Pointer(unsafe.Pointer(&array[0]))
}

// Pointer gives v as a raw argument and keeps what it points to alive as long as the program. It must
// point into the heap: stacks move.
func (p *Program) Pointer(v unsafe.Pointer) uintptr {
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

// seal turns the calls into what the assembly reads. From here on no slice may be appended to.
func (p *Program) seal() *rawProgram {
	if p.started {
		panic(errStarted)
	}
	p.started = true
	raws := make([]rawCall, len(p.calls)+1) // one more: never an empty slice
	for i := range p.calls {
		c := &p.calls[i]
		raws[i] = c.rawCall
		if c.step >= 0 {
			raws[i].failure = &p.steps[c.step]
		}
		if c.into >= 0 {
			raws[i].store = &raws[c.into].args[c.intoArg]
		}
	}
	return &rawProgram{calls: &raws[0], count: uintptr(len(p.calls)), status: uintptr(p.status)}
}

// cstring copies s with a terminating zero; a zero inside s ends it early, which callers exclude.
func cstring(s string) *byte {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return &b[0]
}

// cloneErrno is the errno in a raw result, 0 for none: results from -4095 to -1 are errnos.
func cloneErrno(r uintptr) syscall.Errno {
	if r > ^uintptr(0)-4095 {
		return syscall.Errno(-r)
	}
	return 0
}
