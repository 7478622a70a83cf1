package initproc

import (
	"syscall"

	"github.com/podwright/podwright/runtime/launch"
)

// allowsClone tells whether init can clone and report under the filter, and the clone do its own calls before
// execve: those are what the filter would meet before the workload does.
func allowsClone(filter []byte) bool {
	return allows(filter, syscall.SYS_CLONE, cloneFlagParent) && allows(filter, syscall.SYS_WRITE, launch.StatusFd) &&
		allows(filter, syscall.SYS_CLOSE, launch.StatusFd) && allows(filter, syscall.SYS_EXIT_GROUP, 0) && allows(filter, syscall.SYS_SETSID) &&
		allows(filter, syscall.SYS_IOCTL, 0, ioctlControllingTty)
}

// Classes and modes of classic BPF as seccomp(2) takes it (linux/bpf_common.h).
const (
	bpfClass = 0x07
	bpfLd    = 0x00
	bpfLdx   = 0x01
	bpfSt    = 0x02
	bpfStx   = 0x03
	bpfAlu   = 0x04
	bpfJmp   = 0x05
	bpfRet   = 0x06
	bpfMisc  = 0x07

	bpfOp  = 0xf0
	bpfSrc = 0x08 // X instead of the constant

	retAllow = 0x7fff0000
	retLog   = 0x7ffc0000
)

// allows runs the filter over one call, as the kernel would. Whatever it doesn't understand it takes for a
// refusal: the caller then does without.
func allows(filter []byte, nr uint32, args ...uint64) bool {
	var data [16]uint32 // struct seccomp_data: nr, arch, instruction pointer, six arguments, as 32-bit words
	data[0], data[1] = nr, auditArch
	for i, a := range args {
		data[4+2*i], data[5+2*i] = uint32(a), uint32(a>>32)
	}
	m := machine{data: &data}
	for pc := 0; pc >= 0 && pc < len(filter)/8; pc++ {
		i := filter[8*pc : 8*pc+8]
		code, k := uint16(i[0])|uint16(i[1])<<8, uint32(i[4])|uint32(i[5])<<8|uint32(i[6])<<16|uint32(i[7])<<24
		switch {
		case code == bpfRet:
			return k&^0xffff == retAllow || k&^0xffff == retLog
		case code == bpfJmp: // always
			pc += int(k)
		case code&bpfClass == bpfJmp:
			taken, known := m.compare(code, k)
			if !known {
				return false
			}
			if taken {
				pc += int(i[2])
			} else {
				pc += int(i[3])
			}
		case !m.step(code, k):
			return false
		}
	}
	return false
}

// machine is the state of classic BPF.
type machine struct {
	a, x   uint32
	memory [16]uint32
	data   *[16]uint32
}

func (m *machine) compare(code uint16, k uint32) (taken, known bool) {
	if code&bpfSrc != 0 {
		k = m.x
	}
	switch code & bpfOp {
	case 0x10:
		return m.a == k, true
	case 0x20:
		return m.a > k, true
	case 0x30:
		return m.a >= k, true
	case 0x40:
		return m.a&k != 0, true
	}
	return false, false
}

// step does an instruction that neither jumps nor returns; false for one it doesn't know.
func (m *machine) step(code uint16, k uint32) bool {
	slot := k & 15
	switch code {
	case bpfLd | 0x20: // a word of seccomp_data; the instruction pointer isn't known here
		if k%4 != 0 || k >= 64 || k == 8 || k == 12 {
			return false
		}
		m.a = m.data[k/4]
	case bpfLd:
		m.a = k
	case bpfLd | 0x60:
		m.a = m.memory[slot]
	case bpfLdx:
		m.x = k
	case bpfLdx | 0x60:
		m.x = m.memory[slot]
	case bpfSt:
		m.memory[slot] = m.a
	case bpfStx:
		m.memory[slot] = m.x
	case bpfMisc:
		m.x = m.a
	case bpfMisc | 0x80:
		m.a = m.x
	case bpfAlu | 0x50:
		m.a &= k
	case bpfAlu | 0x40:
		m.a |= k
	case bpfAlu | 0xa0:
		m.a ^= k
	case bpfAlu | 0x60:
		m.a <<= k & 31
	case bpfAlu | 0x70:
		m.a >>= k & 31
	default:
		return false
	}
	return true
}
