package podsandbox

import "io"

// Session is what a client of a stream brings: where its input comes from and where output goes. Nil is a stream that the
// client did not ask for. The streams stay the caller's.
type Session struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Terminal       bool                // output is one stream, Stdout, and sizes count
	Resize         <-chan TerminalSize // of the client's window, from its first size on; nil or closed: no more will come
}

// TerminalSize is in characters (ioctl_tty(2), TIOCSWINSZ).
type TerminalSize struct{ Columns, Rows uint16 }
