package wire

import (
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (int, int) {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { CloseAll(ends[:]) })
	return ends[0], ends[1]
}

// receive reads packets until a message or an error.
func receive(in *Inbox, fd int) (*Message, []int, error) {
	var s Scratch
	for {
		if m, fds, err := in.Receive(fd, &s, 0); m != nil || err != nil {
			return m, fds, err
		}
	}
}

func TestMessageSurvivesTheSocket(t *testing.T) {
	a, b := pair(t)
	want := &Message{Seq: 7, Op: OpExit, ID: "c1", Exit: &Exit{Code: 137, Signal: 9, Time: time.Unix(1, 2).UTC()}}
	if err := Send(a, want); err != nil {
		t.Fatal(err)
	}
	got, fds, err := receive(new(Inbox), b)
	if err != nil || len(fds) != 0 || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v, %v, want %+v", got, fds, err, want)
	}
	unix.Close(a)
	if _, _, err := receive(new(Inbox), b); err != io.EOF {
		t.Errorf("closed peer: got %v, want EOF", err)
	}
}

func TestMessageLargerThanAPacketAndMoreThan253Descriptors(t *testing.T) {
	a, b := pair(t)
	const count = 600
	want := &Message{Op: OpLaunch, ID: "c1", Error: &Error{Text: strings.Repeat("x", 100<<10)}}
	var fds []int
	for range count {
		want.Roles, fds = append(want.Roles, RoleTable), append(fds, a)
	}
	sent := make(chan error, 1)
	go func() { sent <- Send(a, want, fds...) }() // ends with Send; waited for below
	got, arrived, err := receive(new(Inbox), b)
	defer CloseAll(arrived)
	if err != nil || !reflect.DeepEqual(got, want) || len(arrived) != count {
		t.Fatalf("got %d descriptors, %v, want %d", len(arrived), err, count)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	for _, fd := range arrived {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Fatalf("descriptor %d: flags %x, %v, want close-on-exec", fd, flags, err)
		}
	}
}

func TestMalformedPacketsAreRefusedAndTheirDescriptorsClosed(t *testing.T) {
	before := openFds(t)
	for name, packet := range map[string][]byte{
		"short":           {'p'},
		"magic":           []byte("XX\x01\x00{\"op\":\"list\"}"),
		"version":         []byte("pw\x09\x00{\"op\":\"list\"}"),
		"more flag":       []byte("pw\x01\x07{\"op\":\"list\"}"),
		"no JSON":         []byte("pw\x01\x00rubbish"),
		"no op":           []byte("pw\x01\x00{}"),
		"roles too many":  []byte(`pw` + "\x01\x00" + `{"op":"list","roles":["log","log"]}`),
		"roles too few":   []byte(`pw` + "\x01\x00" + `{"op":"list"}`),
		"longer than one": append([]byte("pw\x01\x00"), make([]byte, packetBytes+1)...),
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			if err := (Packet{Bytes: packet, Fds: []int{a}}).Send(a, 0); err != nil {
				t.Fatal(err)
			}
			if m, _, err := receive(new(Inbox), b); !errors.Is(err, ErrMalformed) {
				t.Errorf("got %+v, %v, want ErrMalformed", m, err)
			}
		})
	}
	if after := openFds(t); after != before {
		t.Errorf("got %d open descriptors afterwards, want %d", after, before)
	}
}

func TestEndlessMessageIsRefused(t *testing.T) {
	in, packet := new(Inbox), append([]byte{magic0, magic1, Version, 1}, make([]byte, packetBytes)...)
	for i := 0; ; i++ {
		if _, _, err := in.add(packet, nil); errors.Is(err, ErrMalformed) {
			break
		}
		if i > maxMessageBytes/packetBytes {
			t.Fatalf("%d packets of one message taken, limit is %d bytes", i, maxMessageBytes)
		}
	}
}

func TestCheckID(t *testing.T) {
	for id, good := range map[string]bool{
		"c1": true, "exec-0Ab_9": true, strings.Repeat("f", 64): true, strings.Repeat("f", 129): false,
		"": false, ".": false, "..": false, "a/b": false, "-a": false, "_a": false, "a.tmp": false, "a\x00": false, "a b": false,
	} {
		if err := CheckID(id); (err == nil) != good {
			t.Errorf("id %q: got %v, want good %v", id, err, good)
		}
	}
}

func FuzzInbox(f *testing.F) {
	f.Add([]byte("pw\x01\x00{\"op\":\"list\"}"), []byte("pw\x01\x01{\"op\":"))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		in := new(Inbox)
		for _, packet := range [][]byte{one, two} {
			m, _, err := in.add(packet, nil)
			if m != nil && err != nil {
				t.Fatalf("%q: message %+v and error %v", packet, m, err)
			}
			if m != nil {
				if _, err := Pack(m, nil); err != nil && len(m.Roles) == 0 {
					t.Fatalf("repack %+v: %v", m, err)
				}
			}
		}
	})
}

func openFds(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
