package image

import (
	"errors"
	"strings"
	"testing"
)

const someDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// B41.
func TestParseReference(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"busybox", "docker.io/library/busybox:latest"},
		{"busybox:1.36", "docker.io/library/busybox:1.36"},
		{"index.docker.io/library/busybox", "docker.io/library/busybox:latest"},
		{"user/app", "docker.io/user/app:latest"},
		{"localhost:5000/a/b", "localhost:5000/a/b:latest"},
		{"registry.example.com/a@" + someDigest, "registry.example.com/a@" + someDigest},
		{"registry.example.com/a:v1@" + someDigest, "registry.example.com/a@" + someDigest},
		{"[::1]:5000/a:v1", "[::1]:5000/a:v1"},
	} {
		ref, err := ParseReference(c.in)
		if err != nil || ref.String() != c.want {
			t.Errorf("%q: got %q, %v; want %q", c.in, ref, err, c.want)
		}
	}
}

func TestParseReferenceRefusesMalformedText(t *testing.T) {
	for _, in := range []string{
		"", " ", "Upper/Case", "a b", "a:", "a@", "a@sha256:abc", "a:b:c", "/a", "a//b", "http://a/b", "a\n", "a\x00b",
		"a@sha512:" + strings.Repeat("0", 128), "a@sha256:" + strings.Repeat("A", 64),
		"a@sha256:../../" + strings.Repeat("a", 64), strings.Repeat("a", 600), "a:" + strings.Repeat("b", 129),
		strings.Repeat("0", 64), "docker.io/" + strings.Repeat("a/", 200) + "b",
	} {
		if ref, err := ParseReference(in); !errors.Is(err, ErrInvalidReference) {
			t.Errorf("%q: got %q, %v; want ErrInvalidReference", in, ref, err)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, seed := range []string{"busybox", "a/b:c", "h:1/a@" + someDigest, "h:1/a:t@" + someDigest, "sha256:abcd", "[::1]:5/a"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ref, err := ParseReference(text)
		if err != nil {
			if !errors.Is(err, ErrInvalidReference) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if (ref.Tag == "") == (ref.Digest == "") {
			t.Fatalf("%q: tag %q, digest %q", text, ref.Tag, ref.Digest)
		}
		again, err := ParseReference(ref.String())
		if err != nil || again != ref {
			t.Fatalf("%q: %q parses to %q, %v", text, ref, again, err)
		}
		if strings.ContainsAny(ref.String(), " \n\t\\\x00") || strings.Contains(ref.String(), "..") && strings.Contains(ref.Name, "/../") {
			t.Fatalf("%q: %q", text, ref)
		}
	})
}
