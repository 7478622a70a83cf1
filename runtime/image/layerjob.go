package image

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/podwright/podwright/runtime/seccomp"
)

// layerJob is one layer to unpack, as the daemon tells it to an unpacker (unpackers.go, serve.go).
type layerJob struct {
	Blob    string // the packed layer, a file of the content store
	Dir     string // the snapshot's directory
	Stacked bool   // there are layers below

	Filter *seccomp.Filter // see refuse
}

// layerResult is what came of it.
type layerResult struct {
	Digest  digest.Digest // of the tar
	Size    int64         // of the tar, in bytes
	Implied []string      // of a stacked layer: directories that it uses without listing them

	Error string        // "" if it is unpacked
	Errno syscall.Errno // what the kernel had against it; 0 if the layer itself is to blame
}

// maxFrameBytes bounds a message: a layer may imply a million directories.
const maxFrameBytes = 64 << 20

var errFrameSize = errors.New("message is larger than 64 MiB")

// writeFrame writes the length of v's JSON in four bytes, and the JSON.
func writeFrame(to io.Writer, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) > maxFrameBytes {
		return errFrameSize
	}
	_, err = to.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...))
	return err
}

// readFrame reads what writeFrame wrote.
func readFrame(from io.Reader, v any) error {
	var size [4]byte
	if _, err := io.ReadFull(from, size[:]); err != nil {
		return err
	}
	length := binary.BigEndian.Uint32(size[:])
	if length > maxFrameBytes {
		return errFrameSize
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(from, data); err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// failedLayer tells a layer that can't be read from a disk that can't be written: the second is not the image's fault.
func failedLayer(err error) layerResult {
	text := printable(err.Error())
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return layerResult{Error: text, Errno: errno}
	}
	return layerResult{Error: text}
}

func (r layerResult) err() error {
	switch {
	case r.Error == "":
		return nil
	case r.Errno != 0:
		return &diskError{text: r.Error, errno: r.Errno}
	}
	return fmt.Errorf("%w: %s", ErrInvalidImage, printable(r.Error))
}

// diskError is what an unpacker's system call answered.
type diskError struct {
	text  string
	errno syscall.Errno
}

func (e *diskError) Error() string { return printable(e.text) }
func (e *diskError) Unwrap() error { return e.errno }
