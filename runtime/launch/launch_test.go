package launch

import (
	"errors"
	"reflect"
	"syscall"
	"testing"
)

func samplePlan() *Plan {
	return &Plan{
		Fds: []string{"root", "net"}, Args: []string{"/bin/sh", "-c", "true"}, Env: []string{"PATH=/bin"},
		Ops: []Op{
			{Code: OpSetns, Step: "join net", Fd: 1, Flags: syscall.CLONE_NEWNET},
			{Code: OpMountNew, Step: "mount /proc", Fd: -1, Path: "/proc", Arg: "proc", Strings: []string{"hidepid=2"}, Number: -1},
			{Code: OpSeccomp, Step: "seccomp", Fd: -1, Data: []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		},
	}
}

func TestPlanSurvivesItsEncoding(t *testing.T) {
	want := samplePlan()
	got, err := Decode(want.Encode())
	if err != nil {
		t.Fatal(err)
	}
	for i := range got.Ops {
		if len(got.Ops[i].Data) == 0 {
			got.Ops[i].Data = nil
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestDecodeRefusesEveryTruncation(t *testing.T) {
	whole := samplePlan().Encode()
	for n := range whole {
		if _, err := Decode(whole[:n]); !errors.Is(err, ErrEncoding) {
			t.Fatalf("first %d of %d bytes: got %v, want ErrEncoding", n, len(whole), err)
		}
	}
}

func TestDecodeRefusesFdOutsideTheTable(t *testing.T) {
	p := samplePlan()
	p.Ops[0].Fd = 2
	if _, err := Decode(p.Encode()); !errors.Is(err, ErrEncoding) {
		t.Errorf("fd 2 of 2: got %v, want ErrEncoding", err)
	}
}

func TestDecodeRefusesZeroBytesInTexts(t *testing.T) {
	p := samplePlan()
	p.Env = []string{"A=b\x00c"}
	if _, err := Decode(p.Encode()); !errors.Is(err, ErrEncoding) {
		t.Errorf("got %v, want ErrEncoding", err)
	}
}

func TestStatusSurvivesItsEncoding(t *testing.T) {
	want := Status{Kind: StatusError, Pid: 42, Step: "mount", Errno: syscall.ENOENT, Path: "/proc"}
	got, err := DecodeStatus(want.Encode())
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestOffsetsPointAtTheFields(t *testing.T) {
	s := Status{Kind: StatusError, Step: "mount", Path: "/proc"}
	raw := s.Encode()
	raw[StatusPidOffset], raw[StatusErrnoOffset(s.Step)] = 42, byte(syscall.ENOENT)
	s.Pid, s.Errno = 42, syscall.ENOENT
	if got, err := DecodeStatus(raw); err != nil || got != s {
		t.Errorf("got %+v, %v, want %+v", got, err, s)
	}
}

func TestEveryCodeHasAName(t *testing.T) {
	for c := Code(1); c < codeEnd; c++ {
		if c.String() == "" {
			t.Errorf("code %d has no name", c)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(samplePlan().Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Decode(b)
		if err != nil {
			return
		}
		if again, err := Decode(p.Encode()); err != nil || len(again.Ops) != len(p.Ops) {
			t.Fatalf("re-encoding: %v", err)
		}
	})
}
