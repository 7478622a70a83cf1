package crilog

import (
	"bytes"
	"strconv"

	"golang.org/x/sys/unix"
)

// mendBytes holds the longest chunk of each stream.
const mendBytes = 4 * lineBytes

// Mend ends what a killed keeper left unfinished: a line cut off in the middle of a write, and a logical line
// of which only 'P' chunks were written, whose rest died with the keeper's memory. Without the empty 'F' chunk
// a reader would join the stream's next line to it.
func (f *File) Mend(b *Buffers, streams ...*Stream) {
	tail, ok := f.tail()
	if !ok || len(tail) == 0 {
		return
	}
	if f.torn = tail[len(tail)-1] != '\n'; f.torn {
		if !f.newline() {
			return
		}
		tail = append(tail, '\n')
	}
	for _, s := range streams {
		if lastTag(tail, s.Name) == 'P' {
			w := s.begin(b)
			w.line(nil, 'F')
			w.flush()
		}
	}
}

// tail reads the file's end. The descriptor is usually write-only; the magic link gives a readable one without any
// path being resolved.
func (f *File) tail() ([]byte, bool) {
	if f.fd < 0 {
		return nil, false
	}
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(f.fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, false
	}
	tail := make([]byte, min(st.Size, mendBytes))
	n, err := unix.Pread(fd, tail, st.Size-int64(len(tail)))
	return tail[:max(n, 0)], err == nil
}

// lastTag finds the tag of the stream's last line: "<time> <stream> <tag> <text>".
func lastTag(tail []byte, stream string) byte {
	lines := bytes.Split(bytes.TrimSuffix(tail, []byte{'\n'}), []byte{'\n'})
	for i := len(lines) - 1; i >= 0; i-- {
		fields := bytes.SplitN(lines[i], []byte{' '}, 4)
		if len(fields) >= 3 && string(fields[1]) == stream && len(fields[2]) == 1 {
			return fields[2][0]
		}
	}
	return 0
}
