package wire

// A client of a container's streams has two descriptors, whose other ends come to the keeper with OpAttach.
//
// What it sends goes through a SOCK_SEQPACKET socket, a frame in each packet: a byte that says what it is, and up to
// InputBytes. The socket's end is the client's.
const (
	FrameStdin    = 'i'
	FrameStdinEnd = 'x' // nothing more comes from this client
	FrameResize   = 'r' // columns and rows of a terminal, two bytes each, big-endian
)

// What it gets comes through a pipe, where small pieces share pages: the byte, two of length, big-endian, and up to
// OutputBytes, together no more than is written at once or not at all (PIPE_BUF, pipe(7)). The pipe's end without FrameEnd or
// FrameDropped says that the keeper was replaced.
const (
	FrameStdout  = 'o'
	FrameStderr  = 'e'
	FrameEnd     = 'q' // the container has ended, and this was all of its output
	FrameDropped = 'd' // the client took less than the container wrote
)

// Bytes of frames.
const (
	InputBytes   = 16 << 10
	OutputHeader = 3
	OutputBytes  = 4<<10 - OutputHeader
)

// What one container, and all of a node's, may have in clients: each has a pipe of up to a mebibyte.
const (
	MaxAttachedOne = 64
	MaxAttached    = 256
)
