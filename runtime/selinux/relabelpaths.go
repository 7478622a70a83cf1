package selinux

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrProtected: the node itself needs the labels of a path.
var ErrProtected = errors.New("relabelling is not allowed")

// protected are directories and files whose own label the node's services live by, the list of the field and
// what was added to it here: who relabels one of them locks services out. What is below most of them may be a volume.
var protected = []string{
	"/", "/bin", "/boot", "/dev", "/efi", "/etc", "/etc/passwd", "/etc/pki", "/etc/shadow", "/home", "/lib", "/lib64", "/media", "/opt",
	"/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log", "/var/run", "/var/tmp",
}

// kernelTrees are protected with all that is below.
var kernelTrees = []string{"/dev/", "/proc/", "/sys/"}

// Relabelable refuses with ErrProtected the host path given for a volume, whose top is open as top (O_PATH serves), where it
// is one of those that the node itself needs, by its name, by where symlinks lead, or because it is the same directory or
// file by another; and where it is in a tree of the kernel's or in one of own, the runtime's. It looks at the host's
// directories and can hang as they can.
func Relabelable(given string, top *os.File, own ...string) error {
	names := []string{path.Clean(given)}
	if real, err := filepath.EvalSymlinks(given); err == nil && real != names[0] {
		names = append(names, real)
	}
	for _, name := range names {
		in := func(tree string) bool { return strings.HasPrefix(name+"/", strings.TrimSuffix(tree, "/")+"/") }
		if slices.Contains(protected, name) || slices.ContainsFunc(kernelTrees, in) || slices.ContainsFunc(own, in) {
			return fmt.Errorf("%s: %w, the node needs its label", name, ErrProtected)
		}
	}
	var is unix.Stat_t
	if err := unix.Fstat(int(top.Fd()), &is); err != nil {
		return fmt.Errorf("look at %s: %w", names[0], err)
	}
	for _, p := range slices.Concat(protected, own) {
		var st unix.Stat_t
		// No automount is triggered, and what isn't there can't be meant.
		if err := unix.Fstatat(unix.AT_FDCWD, p, &st, unix.AT_NO_AUTOMOUNT); err != nil {
			continue
		}
		if st.Dev == is.Dev && st.Ino == is.Ino {
			return fmt.Errorf("%s is %s: %w, the node needs its label", names[0], p, ErrProtected)
		}
	}
	return nil
}
