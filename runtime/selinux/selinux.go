// Package selinux owns labels: which a sandbox and its containers get, which pairs of categories are taken, and how a label
// comes onto a file. It knows labels and files, neither sandboxes nor processes: a process's label is written by init.
// Types are the policy's own (contexts/lxc_contexts, found by the library); none is invented here but that of privileged
// containers, which no such file names.
// Source: selinux(8), mcs(8), Documentation/security/ of the kernel; github.com/opencontainers/selinux.
package selinux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"
)

// What callers branch on.
var (
	// ErrNoPolicy: the kernel has SELinux and the policy knows no containers.
	ErrNoPolicy = errors.New("the SELinux policy has no labels for containers")
	// ErrExhausted: every pair of categories is taken.
	ErrExhausted = errors.New("no pair of SELinux categories is free")
	// ErrLabel is wrapped by every error about a label that a better request would avoid.
	ErrLabel = errors.New("the SELinux policy knows no such label")
)

// Enabled says whether SELinux decides on this host, enforcing or permissive.
func Enabled() bool { return selinux.GetEnabled() }

// Enforcing says whether what the policy doesn't allow is refused, not only logged.
func Enforcing() bool { return selinux.EnforceMode() == selinux.Enforcing }

// Boolean is a switch of the loaded policy; known says whether it has one of that name.
func Boolean(name string) (on, known bool) {
	text, err := os.ReadFile(filepath.Join(booleans, name))
	if err != nil {
		return false, false
	}
	return strings.HasPrefix(string(text), "1"), true // what is, and what is pending
}

const booleans = "/sys/fs/selinux/booleans"

// canonical gives label as the kernel writes it, aliases resolved and categories sorted; an unknown one is ErrLabel. Where
// the policy doesn't let podwright ask, label is taken as it is: whoever uses it later hears of it then.
func canonical(label string) (string, error) {
	known, err := selinux.CanonicalizeContext(label)
	switch {
	case err == nil:
		return known, nil
	case errors.Is(err, unix.EINVAL):
		return "", fmt.Errorf("label %q: %w", label, ErrLabel)
	case errors.Is(err, fs.ErrPermission):
		return label, nil
	}
	return "", fmt.Errorf("ask the kernel for label %q: %w", label, err)
}

// SetFile gives path a label, following no link. An empty label changes nothing.
func SetFile(path, label string) error {
	if label == "" {
		return nil
	}
	if err := unix.Lsetxattr(path, xattr, []byte(label), 0); err != nil {
		return fmt.Errorf("label %s as %q: %w", path, label, err)
	}
	return nil
}

// SetTree gives dir and all that is in it a label, following no link. It is for trees that nobody else writes to yet. An
// empty label changes nothing.
func SetTree(dir, label string) error {
	if label == "" {
		return nil
	}
	if err := selinux.Chcon(dir, label, true); err != nil {
		return fmt.Errorf("label %s as %q: %w", dir, label, err)
	}
	return nil
}

const xattr = "security.selinux"
