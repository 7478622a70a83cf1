package seccomp

import (
	"encoding/binary"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// seccompData is struct seccomp_data of one system call.
type seccompData struct {
	nr   uint32
	arch uint32
	args [6]uint64
}

func (d seccompData) word(offset uint32) (uint32, error) {
	switch {
	case offset%4 != 0 || offset >= 64:
		return 0, fmt.Errorf("load at %d", offset)
	case offset == offsetNumber:
		return d.nr, nil
	case offset == offsetArch:
		return d.arch, nil
	case offset < offsetArgs:
		return 0, nil // the instruction pointer
	}
	arg := d.args[(offset-offsetArgs)/8]
	if offset%8 == 4 {
		arg >>= 32
	}
	return uint32(arg), nil
}

func decode(program []byte) []unix.SockFilter {
	var out []unix.SockFilter
	for ; len(program) > 0; program = program[instructionBytes:] {
		out = append(out, unix.SockFilter{
			Code: binary.NativeEndian.Uint16(program), Jt: program[2], Jf: program[3], K: binary.NativeEndian.Uint32(program[4:]),
		})
	}
	return out
}

// run interprets classic BPF as the kernel does for seccomp, and counts the
// instructions it took. It knows what compilers of seccomp filters use.
func run(t *testing.T, program []unix.SockFilter, data seccompData) (action uint32, steps int) {
	t.Helper()
	var acc uint32
	for pc := 0; pc < len(program); pc++ {
		steps++
		in := program[pc]
		branch := func(yes bool) {
			if yes {
				pc += int(in.Jt)
			} else {
				pc += int(in.Jf)
			}
		}
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			word, err := data.word(in.K)
			if err != nil {
				t.Fatalf("instruction %d: %v", pc, err)
			}
			acc = word
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= in.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(in.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			branch(acc == in.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			branch(acc > in.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			branch(acc >= in.K)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			branch(acc&in.K != 0)
		case unix.BPF_RET | unix.BPF_K:
			return in.K, steps
		default:
			t.Fatalf("instruction %d: code %#x", pc, in.Code)
		}
	}
	t.Fatalf("the program ends without a return")
	return 0, 0
}

func actionName(action uint32) string {
	errno := unix.Errno(action & unix.SECCOMP_RET_DATA)
	switch action & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_ALLOW:
		return "ALLOW"
	case unix.SECCOMP_RET_LOG:
		return "LOG"
	case unix.SECCOMP_RET_TRAP:
		return "TRAP"
	case unix.SECCOMP_RET_KILL_PROCESS:
		return "KILL_PROCESS"
	case unix.SECCOMP_RET_KILL_THREAD:
		return "KILL_THREAD"
	case unix.SECCOMP_RET_ERRNO:
		if name := unix.ErrnoName(errno); name != "" {
			return name
		}
	}
	return fmt.Sprintf("%#x", action)
}
