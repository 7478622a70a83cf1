package selinux

import (
	"errors"
	"fmt"
	"os"
	"path"
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
// is one of those that the node itself needs: by its name, or because it is the same directory or file by another. It looks
// at the host's directories and can hang as they can.
func Relabelable(given string, top *os.File) error {
	clean := path.Clean(given)
	below := func(tree string) bool { return strings.HasPrefix(clean, tree) }
	if slices.Contains(protected, clean) || slices.ContainsFunc(kernelTrees, below) {
		return fmt.Errorf("%s: %w, the node needs its label", clean, ErrProtected)
	}
	var is unix.Stat_t
	if err := unix.Fstat(int(top.Fd()), &is); err != nil {
		return fmt.Errorf("look at %s: %w", clean, err)
	}
	for _, p := range protected {
		var st unix.Stat_t
		// No automount is triggered, and what isn't there can't be meant.
		if err := unix.Fstatat(unix.AT_FDCWD, p, &st, unix.AT_NO_AUTOMOUNT); err != nil {
			continue
		}
		if st.Dev == is.Dev && st.Ino == is.Ino {
			return fmt.Errorf("%s is %s: %w, the node needs its label", clean, p, ErrProtected)
		}
	}
	return nil
}
