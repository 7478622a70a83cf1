package initproc

import (
	"testing"

	"golang.org/x/sys/unix"
)

// program assembles classic BPF.
func program(instructions ...unix.SockFilter) (b []byte) {
	for _, i := range instructions {
		b = append(b, byte(i.Code), byte(i.Code>>8), i.Jt, i.Jf, byte(i.K), byte(i.K>>8), byte(i.K>>16), byte(i.K>>24))
	}
	return b
}

func TestFilterIsJudgedAsTheKernelDoes(t *testing.T) {
	allow, kill := unix.SockFilter{Code: 0x06, K: 0x7fff0000}, unix.SockFilter{Code: 0x06}
	number := unix.SockFilter{Code: 0x20, K: 0}
	argument := unix.SockFilter{Code: 0x20, K: 24} // low word of the second
	for _, c := range []struct {
		name   string
		filter []byte
		want   bool
	}{
		{"allows all", program(allow), true},
		{"logs and allows", program(unix.SockFilter{Code: 0x06, K: 0x7ffc0000}), true},
		{"kills all", program(kill), false},
		{"refuses with an errno", program(unix.SockFilter{Code: 0x06, K: 0x50001}), false},
		{"traps", program(unix.SockFilter{Code: 0x06, K: 0x30000}), false},
		{"equal, taken", program(number, unix.SockFilter{Code: 0x15, Jt: 1, K: 7}, kill, allow), true},
		{"equal, not taken", program(number, unix.SockFilter{Code: 0x15, Jf: 1, K: 8}, allow, kill), false},
		{"greater", program(number, unix.SockFilter{Code: 0x25, Jt: 1, K: 6}, kill, allow), true},
		{"greater or equal", program(number, unix.SockFilter{Code: 0x35, Jt: 1, K: 7}, kill, allow), true},
		{"some bit", program(number, unix.SockFilter{Code: 0x45, Jt: 1, K: 4}, kill, allow), true},
		{"always", program(unix.SockFilter{Code: 0x05, K: 1}, kill, allow), true},
		{"architecture", program(unix.SockFilter{Code: 0x20, K: 4}, unix.SockFilter{Code: 0x15, Jt: 1, K: auditArch}, kill, allow), true},
		{"masked argument", program(argument, unix.SockFilter{Code: 0x54, K: 0xf0}, unix.SockFilter{Code: 0x15, Jt: 1, K: 0x50}, kill, allow), true},
		{"through memory and X", program(argument, unix.SockFilter{Code: 0x02, K: 3}, unix.SockFilter{Code: 0x00}, unix.SockFilter{Code: 0x61, K: 3}, unix.SockFilter{Code: 0x87}, unix.SockFilter{Code: 0x15, Jt: 1, K: 0x5c}, kill, allow), true},
		{"compared with X", program(unix.SockFilter{Code: 0x01, K: 7}, number, unix.SockFilter{Code: 0x1d, Jt: 1}, kill, allow), true},
		{"instruction pointer", program(unix.SockFilter{Code: 0x20, K: 8}, allow), false},
		{"beyond the data", program(unix.SockFilter{Code: 0x20, K: 64}, allow), false},
		{"returns the accumulator", program(unix.SockFilter{Code: 0x00, K: 0x7fff0000}, unix.SockFilter{Code: 0x16}), false},
		{"runs off the end", program(number), false},
		{"jumps off the end", program(unix.SockFilter{Code: 0x05, K: 1 << 31}, allow), false},
		{"empty", nil, false},
	} {
		if got := allows(c.filter, 7, 1, 0x5c); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func FuzzFilter(f *testing.F) {
	f.Add(filter(1, 2))
	f.Fuzz(func(t *testing.T, b []byte) { allows(b, 7, 1, 2, 3, 4, 5, 6) }) // ends and stays inside its data
}
