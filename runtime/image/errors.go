package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"unicode"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

// What callers branch on. ErrUnavailable's text is part of the contract with
// the kubelet: it matches the beginning of PullImage's error
// (k8s.io/cri-api/pkg/errors, ErrRegistryUnavailable).
var (
	ErrNotFound         = errors.New("image not found")
	ErrInvalidReference = errors.New("invalid image reference")
	ErrAmbiguous        = errors.New("ambiguous image id prefix")
	ErrInvalidImage     = errors.New("invalid image")
	ErrDigestMismatch   = errors.New("content does not match its digest")
	ErrNoPlatform       = errors.New("no image for this platform")
	ErrInvalidAuth      = errors.New("invalid registry credentials")
	ErrUnauthorized     = errors.New("registry refused authorization")
	ErrUnavailable      = errors.New("RegistryUnavailable")
	ErrNoProgress       = errors.New("no progress")
	ErrClosed           = errors.New("image store is closed")
)

const maxErrorLen = 2048

// pullError carries a finished text, so that ErrUnavailable can lead it and
// signed URLs never reach a log, and still answers errors.Is for its causes.
type pullError struct {
	text   string
	causes []error
}

func (e *pullError) Error() string   { return e.text }
func (e *pullError) Unwrap() []error { return e.causes }

// Query strings of redirect targets are often signatures (S3, GCS, Azure).
var urlQuery = regexp.MustCompile(`(https?://[^\s"?]+)\?[^\s"]*`)

// pullFailure names the reference, chooses the sentinel and removes secrets
// from the text. cause is the reason the pull was cancelled, if it was.
func pullFailure(ref string, err, cause error) error {
	if cause != nil {
		err = cause // what cancelled the work says more than how it broke off
	}
	text := printable(err.Error())
	kind := classify(err)
	switch kind {
	case nil: // said already, or unknown
		text = fmt.Sprintf("pull image %q: %s", ref, text)
	case ErrUnavailable:
		text = fmt.Sprintf("%v: pull image %q: %s", kind, ref, text)
	default: // the libraries' own words differ from registry to registry
		text = fmt.Sprintf("pull image %q: %v: %s", ref, kind, text)
	}
	switch {
	case kind == nil:
		return &pullError{text: text, causes: []error{err}}
	case errors.Is(err, ErrNoProgress):
		return &pullError{text: text, causes: []error{kind, ErrNoProgress}}
	}
	// Without err: a dial that timed out says that it is the caller's
	// context.DeadlineExceeded, which it isn't.
	return &pullError{text: text, causes: []error{kind}}
}

// printable removes signatures and what a hostile registry's message could do
// to a log: line breaks, control characters, length.
func printable(text string) string {
	text = urlQuery.ReplaceAllString(text, "$1?...")
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
	if len(text) > maxErrorLen {
		text = strings.ToValidUTF8(text[:maxErrorLen], "") + "..."
	}
	return text
}

// classify returns the sentinel for an error of the libraries, nil when err
// already carries one or nothing is known about it.
func classify(err error) error {
	for _, known := range []error{
		ErrInvalidReference, ErrInvalidImage, ErrDigestMismatch, ErrNoPlatform, ErrInvalidAuth, ErrClosed,
	} {
		if errors.Is(err, known) {
			return nil
		}
	}
	if errors.Is(err, ErrNoProgress) {
		return ErrUnavailable
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	if kind := classifyStatus(err); kind != nil {
		return kind
	}
	switch {
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return ErrUnauthorized
	case errdefs.IsNotFound(err):
		return ErrNotFound
	case errdefs.IsFailedPrecondition(err):
		// The content store's answer to a blob with another size or digest.
		return ErrDigestMismatch
	case isNetwork(err):
		return ErrUnavailable
	}
	return nil
}

func classifyStatus(err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	if !errors.As(err, &status) {
		return nil
	}
	switch {
	case status.StatusCode == http.StatusUnauthorized, status.StatusCode == http.StatusForbidden:
		return ErrUnauthorized
	case status.StatusCode == http.StatusNotFound:
		return ErrNotFound
	case status.StatusCode == http.StatusTooManyRequests, status.StatusCode >= http.StatusInternalServerError:
		return ErrUnavailable
	}
	return nil
}

func isNetwork(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	var timeout net.Error
	return errors.As(err, &op) || errors.As(err, &dns) || errors.As(err, &timeout) && timeout.Timeout()
}
