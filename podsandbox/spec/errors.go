package spec

import (
	"errors"
	"fmt"
)

// ErrInvalid is wrapped by every error that a better request would avoid.
var ErrInvalid = errors.New("invalid configuration")

// FieldError names the field of a request that cannot be obeyed.
type FieldError struct {
	Field   string // proto path below the configuration, e.g. linux.security_context.run_as_group
	Value   string // what it held, shortened; "" where the value says nothing
	Problem string
}

func (e *FieldError) Error() string {
	if e.Value == "" {
		return e.Field + ": " + e.Problem
	}
	return fmt.Sprintf("%s %q: %s", e.Field, e.Value, e.Problem)
}

// Unwrap makes errors.Is(err, ErrInvalid) hold.
func (e *FieldError) Unwrap() error { return ErrInvalid }

const shownValueBytes = 128

func invalid(field, value, problem string, args ...any) error {
	if len(value) > shownValueBytes {
		value = value[:shownValueBytes] + "..."
	}
	return &FieldError{Field: field, Value: value, Problem: fmt.Sprintf(problem, args...)}
}

// ErrUnsupported is wrapped where a spec asks for something OCI knows and the native runtime does not do.
var ErrUnsupported = errors.New("not supported by the native runtime")
