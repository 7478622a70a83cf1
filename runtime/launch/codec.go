package launch

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrEncoding reports bytes that are no plan or status of this version.
var ErrEncoding = errors.New("malformed launch encoding")

// The encoding is a run of little-endian integers and length-prefixed strings in field order. It is
// written by hand because init decodes it on every exec, and reflection costs more there than the rest of it.

type encoder struct{ b []byte }

func (e *encoder) number(v uint64) { e.b = binary.LittleEndian.AppendUint64(e.b, v) }
func (e *encoder) short(v uint32)  { e.b = binary.LittleEndian.AppendUint32(e.b, v) }
func (e *encoder) text(s string)   { e.short(uint32(len(s))); e.b = append(e.b, s...) }
func (e *encoder) texts(list []string) {
	e.short(uint32(len(list)))
	for _, s := range list {
		e.text(s)
	}
}

// decoder reads what encoder wrote; the first short read makes it bad, and everything after it zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || n < 0 || n > len(d.b) {
		d.bad = true
		return nil
	}
	out := d.b[:n:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) number() uint64 {
	if raw := d.take(8); raw != nil {
		return binary.LittleEndian.Uint64(raw)
	}
	return 0
}

func (d *decoder) short() uint32 {
	if raw := d.take(4); raw != nil {
		return binary.LittleEndian.Uint32(raw)
	}
	return 0
}

func (d *decoder) text() string { return string(d.take(int(d.short()))) }

// count reads a list length; every element takes at least min bytes, so a lying one is caught before allocation.
func (d *decoder) count(min int) int {
	n := int(d.short())
	if d.bad || n < 0 || n > len(d.b)/min {
		d.bad = true
		return 0
	}
	return n
}

func (d *decoder) texts() []string {
	n := d.count(4)
	if n == 0 {
		return nil
	}
	list := make([]string, n)
	for i := range list {
		list[i] = d.text()
	}
	return list
}

const opMinBytes = 2 + 4 + 4 + 4 + 4 + 8 + 8 + 4 + 4

// Encode gives the bytes that go into init's plan memfd.
func (p *Plan) Encode() []byte {
	e := &encoder{b: make([]byte, 0, 4096)}
	e.short(Version)
	e.texts(p.Fds)
	e.texts(p.Args)
	e.texts(p.Env)
	e.short(uint32(len(p.Ops)))
	for i := range p.Ops {
		op := &p.Ops[i]
		e.b = binary.LittleEndian.AppendUint16(e.b, uint16(op.Code))
		e.text(op.Step)
		e.short(uint32(int32(op.Fd)))
		e.text(op.Path)
		e.text(op.Arg)
		e.number(op.Flags)
		e.number(uint64(op.Number))
		e.texts(op.Strings)
		e.text(string(op.Data))
	}
	return e.b
}

// Decode reads an encoded plan and checks what can be checked without the kernel: the version, known
// codes, and fd indexes within the table.
func Decode(b []byte) (*Plan, error) {
	d := &decoder{b: b}
	if v := d.short(); d.bad || v != Version {
		return nil, fmt.Errorf("plan version %d, want %d: %w", v, Version, ErrEncoding)
	}
	p := &Plan{Fds: d.texts(), Args: d.texts(), Env: d.texts()}
	p.Ops = make([]Op, d.count(opMinBytes))
	for i := range p.Ops {
		op := &p.Ops[i]
		if raw := d.take(2); raw != nil {
			op.Code = Code(binary.LittleEndian.Uint16(raw))
		}
		op.Step = d.text()
		op.Fd = int(int32(d.short()))
		op.Path, op.Arg = d.text(), d.text()
		op.Flags, op.Number = d.number(), int64(d.number())
		op.Strings = d.texts()
		op.Data = d.take(int(d.short()))
		if op.Code == 0 || op.Code >= codeEnd || op.Fd < -1 || op.Fd >= len(p.Fds) {
			return nil, fmt.Errorf("plan op %d (%s, fd %d): %w", i, op.Code, op.Fd, ErrEncoding)
		}
	}
	if d.bad || len(d.b) != 0 {
		return nil, fmt.Errorf("plan of %d bytes: %w", len(b), ErrEncoding)
	}
	return p, nil
}
