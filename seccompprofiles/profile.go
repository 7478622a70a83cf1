// Package seccompprofiles owns seccomp profiles as documents: the default one,
// the strict reader of the JSON format that container engines share, its
// resolution for one container (architecture, kernel, capabilities) into the
// OCI form, and the look-up of Localhost profiles.
// It compiles and loads nothing; runtime/seccomp does. It knows no system call
// numbers, only names.
// Sources: the OCI runtime specification's config-linux.md (seccomp), and the
// archMap, includes and excludes fields the engines' profiles add to it.
package seccompprofiles

import (
	_ "embed"
	"slices"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

//go:embed default.json
var defaultProfile string

//go:embed syscalls.txt
var syscallNames string

// maxProfileBytes bounds a profile; the default one has 13 KB.
const maxProfileBytes = 1 << 20

// maxRules is the kernel's BPF_MAXINSNS: more rules have no room in a filter.
const maxRules = 4096

// maxErrno is the kernel's MAX_ERRNO: greater values could not be told from a
// result.
const maxErrno = 4095

// Profile is a parsed profile, before it is resolved for a container.
type Profile struct {
	data            []byte // for the places in errors
	defaultAction   specs.LinuxSeccompAction
	defaultErrnoRet *uint
	archMap         []architecture
	architectures   []specs.Arch
	flags           []specs.LinuxSeccompFlag // nil where the profile is silent, which is not the same as []
	rules           []rule
}

// architecture is an entry of archMap: a native ABI and the personalities its
// kernel also runs.
type architecture struct {
	native specs.Arch
	subs   []specs.Arch
}

// rule is one entry of syscalls.
type rule struct {
	offset   int
	names    []string
	action   specs.LinuxSeccompAction
	errnoRet *uint
	args     []specs.LinuxSeccompArg
	includes condition
	excludes condition
}

// condition decides whether a rule is for a container. As includes all of it
// must hold, as excludes none of it may.
type condition struct {
	caps      []string
	arches    []string // GOARCH names; the engines' x86, x32 and the like are known and never match
	minKernel *Version
}

// Default is the RuntimeDefault profile. The caller may keep and change it.
func Default() []byte { return []byte(defaultProfile) }

// Parse reads a profile. Whatever it doesn't know it refuses with an *Error:
// a misspelt key, action or system call would otherwise silently protect less
// than the profile says.
func Parse(data []byte) (*Profile, error) {
	if len(data) > maxProfileBytes {
		return nil, errorAt(data, 0, "", "larger than 1 MiB")
	}
	root, err := readTree(data)
	if err != nil {
		return nil, err
	}
	d := &decoder{data: data}
	p := d.profile(root)
	if d.err != nil {
		return nil, d.err
	}
	return p, nil
}

// Known says whether name is a system call of Linux on some architecture.
func Known(name string) bool {
	_, known := knownNames()[name]
	return known
}

var knownNames = sync.OnceValue(func() map[string]struct{} {
	names := make(map[string]struct{})
	for line := range strings.Lines(syscallNames) {
		if !strings.HasPrefix(line, "#") {
			names[strings.TrimSpace(line)] = struct{}{}
		}
	}
	return names
})

// actions are the OCI specification's. TRACE and NOTIFY are known, so that they
// are refused by name: both need a supervisor process that podwright doesn't run.
var actions = []specs.LinuxSeccompAction{
	specs.ActAllow, specs.ActErrno, specs.ActKill, specs.ActKillProcess,
	specs.ActKillThread, specs.ActTrap, specs.ActLog, specs.ActTrace, specs.ActNotify,
}

// CheckAction says why an action can't be enforced, or returns "".
func CheckAction(action specs.LinuxSeccompAction) string {
	switch {
	case action == specs.ActTrace || action == specs.ActNotify:
		return string(action) + " is not supported: it needs a supervisor process"
	case !slices.Contains(actions, action):
		return "unknown action " + quote(string(action))
	}
	return ""
}
