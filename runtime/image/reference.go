package image

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

const (
	// The grammar allows 255 bytes of name, 128 of tag and 71 of digest.
	maxReferenceLen = 512
	// Shorter prefixes than this are more likely a typo than an id.
	minIDPrefixLen = 4
	idPrefix       = "sha256:"
	idHexLen       = 64
)

var (
	digestGrammar = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)
	hexGrammar    = regexp.MustCompile(`^[a-f0-9]+$`)
)

// Reference is a normalised name of an image at a registry. Exactly one of
// Tag and Digest is set: a reference with both is kept by its digest, because
// the digest alone says which content is meant (B41).
type Reference struct {
	Name   string // registry and repository: "docker.io/library/busybox"
	Tag    string
	Digest digest.Digest
}

// ParseReference reads what a user writes: a short name, with a tag, with a
// digest, with both. Ids are no references; see parseID.
func ParseReference(text string) (Reference, error) {
	if len(text) > maxReferenceLen {
		return Reference{}, fmt.Errorf("%w: %d bytes, at most %d", ErrInvalidReference, len(text), maxReferenceLen)
	}
	named, err := reference.ParseDockerRef(text)
	if err != nil {
		return Reference{}, fmt.Errorf("%w: %q: %w", ErrInvalidReference, text, err)
	}
	ref := Reference{Name: named.Name()}
	switch named := named.(type) {
	case reference.Canonical:
		ref.Digest = named.Digest()
		if err := checkDigest(ref.Digest); err != nil {
			return Reference{}, fmt.Errorf("%w: %q: %w", ErrInvalidReference, text, err)
		}
	case reference.Tagged:
		ref.Tag = named.Tag()
	default:
		return Reference{}, fmt.Errorf("%w: %q: neither tag nor digest", ErrInvalidReference, text)
	}
	return ref, nil
}

// String is the name under which the image is kept and listed.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Name + "@" + r.Digest.String()
	}
	return r.Name + ":" + r.Tag
}

// Domain is the registry's host, with its port if the reference has one.
func (r Reference) Domain() string {
	domain, _, _ := strings.Cut(r.Name, "/")
	return domain
}

// checkDigest accepts sha256 only, by its whole grammar: a digest becomes a
// path in the content store (CVE-2024-3727).
func checkDigest(d digest.Digest) error {
	if !digestGrammar.MatchString(string(d)) {
		return fmt.Errorf("digest %.80q is not sha256 and 64 lower-case hex digits", string(d))
	}
	return nil
}

// parseID reads an image id or the beginning of one, with or without
// "sha256:". A text may be both an id prefix and a short name ("beef"); the
// caller tries the name first. Text that begins with "sha256:" is only an id.
func parseID(text string) (hex string, ok bool) {
	hex, explicit := strings.CutPrefix(text, idPrefix)
	if len(hex) > idHexLen || !hexGrammar.MatchString(hex) {
		return "", false
	}
	if !explicit && len(hex) < minIDPrefixLen {
		return "", false
	}
	return hex, true
}
