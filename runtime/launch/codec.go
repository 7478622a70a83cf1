package launch

import (
	"errors"
	"strconv"
)

// ErrEncoding reports bytes that are no plan or status of this version.
var ErrEncoding = errors.New("malformed launch encoding")

// malformed says what is wrong with the bytes; errors.Is finds ErrEncoding in it.
type malformed string

func (m malformed) Error() string { return string(m) + ": " + ErrEncoding.Error() }
func (m malformed) Unwrap() error { return ErrEncoding }

// The encoding is a run of little-endian integers and length-prefixed strings in field order. It is
// written by hand because init decodes it on every exec, and reflection costs more there than the rest of
// it. For the same reason this package imports neither fmt nor encoding/binary: together with what they
// import they add a tenth to init's start.

type encoder struct{ b []byte }

func (e *encoder) half(v uint16)   { e.b = append(e.b, byte(v), byte(v>>8)) }
func (e *encoder) short(v uint32)  { e.half(uint16(v)); e.half(uint16(v >> 16)) }
func (e *encoder) number(v uint64) { e.short(uint32(v)); e.short(uint32(v >> 32)) }
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

// integer reads n bytes, the lowest first.
func (d *decoder) integer(n int) (v uint64) {
	for i, b := range d.take(n) {
		v |= uint64(b) << (8 * i)
	}
	return v
}

func (d *decoder) half() uint16   { return uint16(d.integer(2)) }
func (d *decoder) short() uint32  { return uint32(d.integer(4)) }
func (d *decoder) number() uint64 { return d.integer(8) }

// text refuses zero bytes: the kernel would take the text to end there.
func (d *decoder) text() string {
	s := string(d.take(int(d.short())))
	for i := range len(s) {
		if s[i] == 0 {
			d.bad = true
			return ""
		}
	}
	return s
}

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
		e.half(uint16(op.Code))
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
		return nil, malformed("plan version " + strconv.Itoa(int(v)) + ", want " + strconv.Itoa(Version))
	}
	p := &Plan{Fds: d.texts(), Args: d.texts(), Env: d.texts()}
	p.Ops = make([]Op, d.count(opMinBytes))
	for i := range p.Ops {
		op := &p.Ops[i]
		op.Code, op.Step = Code(d.half()), d.text()
		op.Fd = int(int32(d.short()))
		op.Path, op.Arg = d.text(), d.text()
		op.Flags, op.Number = d.number(), int64(d.number())
		op.Strings = d.texts()
		op.Data = d.take(int(d.short()))
		if op.Code == 0 || op.Code >= codeEnd || op.Fd < -1 || op.Fd >= len(p.Fds) {
			return nil, malformed("plan op " + strconv.Itoa(i) + " (" + op.Code.String() + ", fd " + strconv.Itoa(op.Fd) + ")")
		}
	}
	if d.bad || len(d.b) != 0 {
		return nil, malformed("plan of " + strconv.Itoa(len(b)) + " bytes")
	}
	return p, nil
}
