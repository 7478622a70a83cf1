package podsandbox

import (
	"errors"
	"fmt"
)

// The kinds of failure that callers branch on; cri maps each to one gRPC code.
var (
	ErrNotFound      = errors.New("not found")
	ErrInvalid       = errors.New("invalid")
	ErrExists        = errors.New("already exists")
	ErrPrecondition  = errors.New("failed precondition")
	ErrUnavailable   = errors.New("unavailable")
	ErrTimeout       = errors.New("timed out")
	ErrNotSupported  = errors.New("not supported")
	ErrResourceLimit = errors.New("limit reached")
)

// ErrRecovering is why nothing can be changed while Start works, of kind ErrUnavailable.
var ErrRecovering = errors.New("podwright is still recovering its records")

// Error is a failure with its kind: its text names operation, object and cause, and errors.Is finds the kind.
type Error struct {
	Kind error
	Err  error
}

func (e *Error) Error() string   { return e.Err.Error() }
func (e *Error) Unwrap() []error { return []error{e.Kind, e.Err} }

// kindf makes an Error; %w in format works as in fmt.Errorf.
func kindf(kind error, format string, args ...any) error {
	return &Error{Kind: kind, Err: fmt.Errorf(format, args...)}
}
