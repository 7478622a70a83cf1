package cgroup

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// ErrInvalid: a value that no kernel would take, or that this one refused.
	ErrInvalid = errors.New("invalid value")
	// ErrNotSupported: this host lacks the controller, file or version asked for.
	ErrNotSupported = errors.New("not supported")
	// ErrBelowUsage: a memory limit under what is in use and can't be reclaimed.
	ErrBelowUsage = errors.New("limit below current usage")
	// ErrBusy: the group still has processes or children.
	ErrBusy = errors.New("group is busy")
)

// ValueError names the file (or field) and the value that can't be set.
type ValueError struct {
	File   string // "cpu.max", or the field where no file is meant yet
	Value  string
	Reason string // may be empty if Err says it
	Err    error  // the kernel's error, or nil if it was never asked
}

func (e *ValueError) Error() string {
	s := fmt.Sprintf("set %s to %q", e.File, e.Value)
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *ValueError) Unwrap() error { return e.Err }

// Is makes every ValueError an ErrInvalid, whatever errno is behind it.
func (e *ValueError) Is(target error) bool { return target == ErrInvalid }

func invalid(file string, value any, reason string, args ...any) error {
	return &ValueError{File: file, Value: fmt.Sprint(value), Reason: fmt.Sprintf(reason, args...)}
}

// writeError turns what the kernel answered to one write into what it means.
func writeError(w write, err error) error {
	switch {
	case w.File == "memory.limit_in_bytes" || w.File == "memory.memsw.limit_in_bytes":
		// v1 reclaims first, and EBUSY says that it was not enough.
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("set %s to %q: %w: %w", w.File, w.Value, ErrBelowUsage, err)
		}
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("set %s to %q: this kernel has no such file, or controller %s is not enabled here: %w: %w",
			w.File, w.Value, w.Controller, ErrNotSupported, err)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) || errors.Is(err, unix.EACCES) {
		return &ValueError{File: w.File, Value: w.Value, Err: err}
	}
	return fmt.Errorf("set %s to %q: %w", w.File, w.Value, err)
}
