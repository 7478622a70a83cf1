package seccompprofiles

import (
	"fmt"
	"strconv"
	"strings"
)

// Version is a kernel version as profiles compare them: the first two numbers.
type Version struct {
	Major, Minor int
}

// Before says whether v is older than other.
func (v Version) Before(other Version) bool {
	return v.Major < other.Major || v.Major == other.Major && v.Minor < other.Minor
}

// KernelVersion reads a release as uname(2) gives it: 6.1.0-13-amd64,
// 5.15-rc1, 6.18+.
func KernelVersion(release string) (Version, error) {
	major, rest, found := strings.Cut(release, ".")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end >= 0 {
		rest = rest[:end]
	}
	v, err := parseVersion(major + "." + rest)
	if !found || err != nil {
		return Version{}, fmt.Errorf("kernel release %s: no version", quote(release))
	}
	return v, nil
}

// parseVersion reads minKernel: two numbers with a dot between.
func parseVersion(s string) (Version, error) {
	major, minor, found := strings.Cut(s, ".")
	a, errMajor := strconv.ParseUint(major, 10, 16)
	b, errMinor := strconv.ParseUint(minor, 10, 16)
	if !found || errMajor != nil || errMinor != nil {
		return Version{}, fmt.Errorf("want a kernel version such as 4.8, got %s", quote(s))
	}
	return Version{Major: int(a), Minor: int(b)}, nil
}
