package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// ErrMalformed reports bytes that are no message of this protocol. Whoever sent them is disconnected.
var ErrMalformed = errors.New("malformed keeper message")

// A message is a run of packets, so that neither the socket buffer nor SCM_RIGHTS bounds it: each packet
// starts with four bytes (two of magic, the version, whether more follow), then its part of the JSON text.
const (
	headerBytes = 4
	magic0      = 'p'
	magic1      = 'w'

	packetBytes = 32 << 10 // of text; well below the smallest useful socket buffer
	packetFds   = 250      // the kernel takes 253 (SCM_MAX_FD)

	// A peer can make the other side hold this much, no more.
	maxMessageBytes = 4 << 20
	maxMessageFds   = 4096
)

// Packet is a part of a message, as large as one sendmsg takes.
type Packet struct {
	Bytes []byte
	Fds   []int
}

// Pack splits a message and its descriptors, which stay the caller's, into packets.
func Pack(m *Message, fds []int) ([]Packet, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode message %s: %w", m.Op, err)
	}
	if len(text) > maxMessageBytes || len(fds) > maxMessageFds || len(fds) != len(m.Roles) {
		return nil, fmt.Errorf("message %s: %d bytes, %d descriptors, %d roles: %w", m.Op, len(text), len(fds), len(m.Roles), ErrMalformed)
	}
	var packets []Packet
	for {
		n, f := min(len(text), packetBytes), min(len(fds), packetFds)
		p := Packet{Bytes: append([]byte{magic0, magic1, Version, 1}, text[:n]...), Fds: fds[:f]}
		text, fds = text[n:], fds[f:]
		packets = append(packets, p)
		if len(text) == 0 && len(fds) == 0 {
			p.Bytes[3] = 0
			return packets, nil
		}
	}
}

// Send writes the packet to the socket. EAGAIN is the caller's to handle on a non-blocking one.
func (p Packet) Send(socket int, flags int) error {
	var oob []byte
	if len(p.Fds) > 0 {
		oob = unix.UnixRights(p.Fds...)
	}
	for {
		err := unix.Sendmsg(socket, p.Bytes, oob, nil, flags|unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

// Send packs and sends a message to a blocking socket.
func Send(socket int, m *Message, fds ...int) error {
	packets, err := Pack(m, fds)
	for i := 0; i < len(packets) && err == nil; i++ {
		err = packets[i].Send(socket, 0)
	}
	if err != nil {
		return fmt.Errorf("send %s %s: %w", m.Op, m.ID, err)
	}
	return nil
}

// Scratch is what receiving needs; one serves any number of inboxes that are read by one goroutine.
type Scratch struct {
	bytes [headerBytes + packetBytes]byte
	oob   [1056]byte // CmsgSpace of 253 descriptors is 1,032
}

// Inbox puts the packets of one socket together to messages.
type Inbox struct {
	text []byte
	fds  []int
}

// Receive reads one packet. It gives the message that it completes, with descriptors that are the caller's
// from then on, or nil if more packets are to come; io.EOF when the peer is gone, EAGAIN from a
// non-blocking socket, ErrMalformed for what no sound peer sends.
func (in *Inbox) Receive(socket int, s *Scratch, flags int) (*Message, []int, error) {
	n, oobn, rflags, _, err := unix.Recvmsg(socket, s.bytes[:], s.oob[:], flags|unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, oobn, rflags, _, err = unix.Recvmsg(socket, s.bytes[:], s.oob[:], flags|unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return nil, nil, err
	}
	fds, err := rights(s.oob[:oobn])
	switch {
	case err != nil || rflags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		CloseAll(fds)
		return nil, nil, fmt.Errorf("packet of more than %d bytes or %d descriptors, or with one that a security module refuses: %w", packetBytes, packetFds, ErrMalformed)
	case n == 0:
		return nil, nil, io.EOF
	}
	return in.add(s.bytes[:n], fds)
}

// Partial tells whether a message has begun and not ended.
func (in *Inbox) Partial() bool { return len(in.text) > 0 || len(in.fds) > 0 }

// Drop forgets an unfinished message and closes its descriptors.
func (in *Inbox) Drop() {
	CloseAll(in.fds)
	in.text, in.fds = nil, nil
}

// add takes ownership of fds.
func (in *Inbox) add(packet []byte, fds []int) (*Message, []int, error) {
	in.fds = append(in.fds, fds...)
	if len(packet) < headerBytes || packet[0] != magic0 || packet[1] != magic1 || packet[2] != Version || packet[3] > 1 {
		in.Drop()
		return nil, nil, fmt.Errorf("packet header % x: %w", packet[:min(len(packet), headerBytes)], ErrMalformed)
	}
	more := packet[3] == 1
	if len(in.text)+len(packet) > maxMessageBytes+headerBytes || len(in.fds) > maxMessageFds || more && len(packet) == headerBytes && len(fds) == 0 {
		in.Drop()
		return nil, nil, fmt.Errorf("message above %d bytes or %d descriptors: %w", maxMessageBytes, maxMessageFds, ErrMalformed)
	}
	text := packet[headerBytes:]
	if more || len(in.text) > 0 {
		in.text = append(in.text, text...)
		text = in.text
	}
	if more {
		return nil, nil, nil
	}
	m := new(Message)
	if err := json.Unmarshal(text, m); err != nil || m.Op == "" || len(m.Roles) != len(in.fds) {
		in.Drop()
		return nil, nil, fmt.Errorf("message of %d bytes, %d roles: %w", len(text), len(m.Roles), ErrMalformed)
	}
	fds, in.text, in.fds = in.fds, nil, nil
	return m, fds, nil
}

func rights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	for i := range messages {
		got, rightsErr := unix.ParseUnixRights(&messages[i])
		fds = append(fds, got...)
		err = errors.Join(err, rightsErr)
	}
	return fds, err
}

// CloseAll closes descriptors; negative ones are none.
func CloseAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
