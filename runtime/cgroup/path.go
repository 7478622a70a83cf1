package cgroup

import (
	"path"
	"slices"
	"strings"
	"unicode"
)

// checkPath accepts the absolute, clean path of a group below the root. It is
// joined with mount points as a string, so nothing in it may walk anywhere else,
// and no component may be a name that the kernel uses for a file of its own:
// mkdir would say EEXIST and the file would pass for the group.
func checkPath(p string) error {
	if !strings.HasPrefix(p, "/") || p == "/" || path.Clean(p) != p {
		return invalid("cgroup path", p, "want an absolute, clean path below the root")
	}
	if len(p) > 4000 {
		return invalid("cgroup path", p[:40]+"...", "longer than 4000 bytes")
	}
	if strings.ContainsFunc(p, unicode.IsControl) {
		return invalid("cgroup path", p, "control characters")
	}
	for _, name := range strings.Split(p[1:], "/") {
		if len(name) > 255 {
			return invalid("cgroup path", name[:40]+"...", "a component is longer than 255 bytes")
		}
		prefix, _, dotted := strings.Cut(name, ".")
		isFile := dotted && (prefix == "cgroup" || prefix == "io" || slices.Contains(v1Controllers, prefix))
		if isFile || name == "tasks" || name == "notify_on_release" || name == "release_agent" {
			return invalid("cgroup path", p, "%q is the name of a kernel file", name)
		}
	}
	return nil
}

// ancestors are the paths from the first component down to p itself.
func ancestors(p string) []string {
	var out []string
	for i := 1; i < len(p); i++ {
		if p[i] == '/' {
			out = append(out, p[:i])
		}
	}
	return append(out, p)
}
