package spawn

import "unsafe"

// Images
//
// The Go runtime takes longer to start than an exec has work to do. Therefore the calls of an exec can be prepared by
// who asks for it: as bytes that hold them as they will be in the memory of podwright-init, at a fixed address. The
// program's entry point (entry_amd64.s) finds them in its plan file, maps them there and walks them; Go's runtime is
// started only where there is no image, or no room at that address.

const (
	// imageBase is far from the executable, stacks and mappings. The heap of brk(2) may begin anywhere up to 1 GiB above
	// the executable (Linux 6.9) and is empty: neither the walk nor Go's runtime uses it.
	imageBase = 0x20000000
	// imageMagic begins the file. The last byte is the layout's version: what follows magic and size belongs to it.
	imageMagic     = 0x01454d4947414d49
	imageMagicMask = 1<<56 - 1
)

// imageHeader is what the file begins with.
type imageHeader struct {
	magic   uint64
	size    uint64 // of the image; the rest of the file is for who can't walk it
	program rawProgram
}

const imageHeaderSize = unsafe.Sizeof(imageHeader{})

// NewImage makes an empty program that is to become an image.
func NewImage(status int) *Program {
	return &Program{status: status, isImage: true, image: make([]byte, imageHeaderSize, 16<<10)}
}

// place copies b into the image and gives its address there.
func (p *Program) place(b []byte) uintptr {
	const align = 8
	p.image = append(p.image, make([]byte, -len(p.image)&(align-1))...)
	at := len(p.image)
	p.image = append(p.image, b...)
	return imageBase + uintptr(at)
}

// Image gives the program's bytes, for a process of the same architecture.
func (p *Program) Image() []byte {
	failures := words(p, p.steps)
	at := imageBase + uintptr(len(p.image)+(-len(p.image)&7))
	raws := make([]rawCall, len(p.calls))
	program := p.link(raws, at, failures)
	words(p, raws)
	header := imageHeader{magic: imageMagic, size: uint64(len(p.image)), program: program}
	copy(p.image, unsafe.Slice((*byte)(unsafe.Pointer(&header)), imageHeaderSize))
	return p.image
}

// AfterImage gives what follows the image in a file, whatever the image's version; all of it where there is none.
func AfterImage(file []byte) []byte {
	if len(file) < 16 {
		return file
	}
	header := [2]uint64{}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&header)), 16), file)
	if (header[0]^imageMagic)&imageMagicMask != 0 || header[1] > uint64(len(file)) {
		return file
	}
	return file[header[1]:]
}
