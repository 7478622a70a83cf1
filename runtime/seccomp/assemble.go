package seccomp

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// label is a place in a program that is being written. next is the instruction
// that follows; jumps lead forward only, as in all of classic BPF.
type label int

const next label = 0

type instruction struct {
	code    uint16
	k       uint32
	yes, no label
}

// assembler writes classic BPF with labels. Conditional jumps reach 255
// instructions; where a target is further, a plain jump is put in between.
type assembler struct {
	instructions []instruction
	places       []int // label -> index in instructions; 0 is next and unused
}

func newAssembler() *assembler { return &assembler{places: make([]int, 1)} }

func (a *assembler) label() label {
	a.places = append(a.places, -1)
	return label(len(a.places) - 1)
}

func (a *assembler) mark(l label) { a.places[l] = len(a.instructions) }

// load loads a 32-bit word of struct seccomp_data.
func (a *assembler) load(offset uint32) {
	a.instructions = append(a.instructions, instruction{code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, k: offset})
}

func (a *assembler) and(mask uint32) {
	a.instructions = append(a.instructions, instruction{code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, k: mask})
}

func (a *assembler) ret(action uint32) {
	a.instructions = append(a.instructions, instruction{code: unix.BPF_RET | unix.BPF_K, k: action})
}

func (a *assembler) jump(to label) {
	a.instructions = append(a.instructions, instruction{code: unix.BPF_JMP | unix.BPF_JA, yes: to})
}

// when compares with k; op is BPF_JEQ, BPF_JGT or BPF_JGE, unsigned.
func (a *assembler) when(op uint16, k uint32, yes, no label) {
	a.instructions = append(a.instructions, instruction{code: unix.BPF_JMP | op | unix.BPF_K, k: k, yes: yes, no: no})
}

// maxShort is the reach of a conditional jump.
const maxShort = 255

func (in instruction) conditional() bool {
	return in.code&7 == unix.BPF_JMP && in.code != unix.BPF_JMP|unix.BPF_JA
}

// program resolves the labels. Making one jump long moves others apart, so it
// widens until nothing changes.
func (a *assembler) program() []unix.SockFilter {
	farYes := make([]bool, len(a.instructions))
	farNo := make([]bool, len(a.instructions))
	for {
		at := a.layout(farYes, farNo)
		changed := false
		for i, in := range a.instructions {
			if !in.conditional() {
				continue
			}
			if !farYes[i] && a.target(at, i, in.yes)-at[i]-1 > maxShort {
				farYes[i], changed = true, true
			}
			if !farNo[i] && a.target(at, i, in.no)-at[i]-1 > maxShort {
				farNo[i], changed = true, true
			}
		}
		if !changed {
			return a.emit(at, farYes, farNo)
		}
	}
}

// layout is where each instruction begins; the last element is the end.
func (a *assembler) layout(farYes, farNo []bool) []int {
	at := make([]int, len(a.instructions)+1)
	for i := range a.instructions {
		size := 1
		if farYes[i] {
			size++
		}
		if farNo[i] {
			size++
		}
		at[i+1] = at[i] + size
	}
	return at
}

func (a *assembler) target(at []int, i int, l label) int {
	if l == next {
		return at[i+1]
	}
	return at[a.places[l]]
}

func (a *assembler) emit(at []int, farYes, farNo []bool) []unix.SockFilter {
	var out []unix.SockFilter
	jump := func(to int) {
		out = append(out, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(to - len(out) - 1)})
	}
	for i, in := range a.instructions {
		if in.code == unix.BPF_JMP|unix.BPF_JA {
			jump(a.target(at, i, in.yes))
			continue
		}
		raw := unix.SockFilter{Code: in.code, K: in.k}
		if !in.conditional() {
			out = append(out, raw)
			continue
		}
		yes, no := a.target(at, i, in.yes), a.target(at, i, in.no)
		slot := at[i] + 1
		var far []int
		if farYes[i] {
			yes, far, slot = slot, append(far, yes), slot+1
		}
		if farNo[i] {
			no, far = slot, append(far, no)
		}
		raw.Jt, raw.Jf = uint8(yes-at[i]-1), uint8(no-at[i]-1)
		out = append(out, raw)
		for _, to := range far {
			jump(to)
		}
	}
	return out
}

func encode(program []unix.SockFilter) []byte {
	out := make([]byte, 0, len(program)*instructionBytes)
	for _, in := range program {
		out = binary.NativeEndian.AppendUint16(out, in.Code)
		out = append(out, in.Jt, in.Jf)
		out = binary.NativeEndian.AppendUint32(out, in.K)
	}
	return out
}
