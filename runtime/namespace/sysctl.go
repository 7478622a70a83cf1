package namespace

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// sysctl is one checked setting.
type sysctl struct {
	key   string // as it was asked for, for messages
	path  string // below /proc/sys
	kind  Kind   // the namespace it belongs to
	value string
}

const (
	maxSysctlKey   = 253  // bytes; the Kubernetes API's limit
	maxSysctlValue = 4095 // bytes; a page without its terminating zero
)

var (
	// A component never begins with a dot, so it is never "." or "..".
	sysctlComponent = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)
	// No '+', '=', ';', newline or quote: there is no second setting to be smuggled
	// into whatever a value is ever joined with (CVE-2022-0811).
	sysctlValue = regexp.MustCompile(`^[a-zA-Z0-9_.,:/-]+(?:[ \t]+[a-zA-Z0-9_.,:/-]+)*$`)
)

// SysctlError is a setting of good form that this kernel refuses: it lacks it, or the value means nothing to it.
type SysctlError struct {
	Key, Value string
	Err        error
}

func (e *SysctlError) Error() string {
	return fmt.Sprintf("sysctl %s: write %.100q: %v", e.Key, e.Value, e.Err)
}

func (e *SysctlError) Unwrap() error { return e.Err }

// ValidateSysctl says what is wrong with the form of a setting, or that it is
// none that a sandbox could have. It knows no policy about which are safe.
func ValidateSysctl(key, value string) error {
	_, err := parseSysctl(key, value)
	return err
}

// SysctlNamespace says which namespace a key belongs to, in either form:
// net.ipv4.ip_forward or net/ipv4/ip_forward. False is a setting of the whole
// node, or one that has a field of its own: the host and domain names.
func SysctlNamespace(key string) (Kind, bool) {
	path, err := sysctlPath(key)
	if err != nil {
		return 0, false
	}
	return pathNamespace(path)
}

// WriteSysctls sets sysctls in the sandbox's existing namespaces. It is for
// those that can't be set by Create because CNI makes what they belong to:
// net.ipv4.conf.eth0.* and the like.
func (p *Pins) WriteSysctls(ctx context.Context, id string, settings map[string]string) error {
	sysctls, err := sortSysctls(settings, func(Kind) bool { return true })
	if err != nil || len(sysctls) == 0 {
		return err
	}
	needed := map[Kind]bool{}
	for _, s := range sysctls {
		needed[s.kind] = true
	}
	var join []Kind
	for _, kind := range kinds {
		if needed[kind] {
			join = append(join, kind)
		}
	}
	// A namespace that is the host's has no pin, so inside refuses to write there.
	return p.inside(ctx, id, join, func() error { return p.writeSysctls(sysctls) })
}

// sortSysctls checks settings and orders them by key, so that what happens does
// not depend on the order of a map.
func sortSysctls(settings map[string]string, own func(Kind) bool) ([]sysctl, error) {
	sysctls := make([]sysctl, 0, len(settings))
	for key, value := range settings {
		s, err := parseSysctl(key, value)
		if err != nil {
			return nil, err
		}
		if !own(s.kind) {
			return nil, fmt.Errorf("sysctl %s: the %s namespace is the host's", key, s.kind)
		}
		sysctls = append(sysctls, s)
	}
	sort.Slice(sysctls, func(i, j int) bool { return sysctls[i].path < sysctls[j].path })
	for i := 1; i < len(sysctls); i++ {
		if sysctls[i].path == sysctls[i-1].path {
			return nil, fmt.Errorf("sysctl %s: given twice, as %s too", sysctls[i].key, sysctls[i-1].key)
		}
	}
	return sysctls, nil
}

func parseSysctl(key, value string) (sysctl, error) {
	path, err := sysctlPath(key)
	if err != nil {
		return sysctl{}, err
	}
	kind, ok := pathNamespace(path)
	if !ok {
		return sysctl{}, fmt.Errorf("sysctl %s: not a setting of a sandbox's namespaces", key)
	}
	if len(value) > maxSysctlValue || !sysctlValue.MatchString(value) {
		return sysctl{}, fmt.Errorf("sysctl %s: value %.100q: not words of letters, digits and _.,:/-", key, value)
	}
	return sysctl{key: key, path: path, kind: kind, value: value}, nil
}

// sysctlPath is the file of a key, relative to /proc/sys. As for sysctl(8), the
// first separator decides: in net/ipv4/conf/eth0.5/forwarding and in
// net.ipv4.conf.eth0/5.forwarding the interface is eth0.5.
func sysctlPath(key string) (string, error) {
	fail := func() (string, error) { return "", fmt.Errorf("sysctl %.260q: not the name of a setting", key) }
	if len(key) > maxSysctlKey {
		return fail()
	}
	path := key
	if i := strings.IndexAny(key, "./"); i < 0 {
		return fail()
	} else if key[i] == '.' {
		path = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, key)
	}
	for _, component := range strings.Split(path, "/") {
		if !sysctlComponent.MatchString(component) {
			return fail()
		}
	}
	return path, nil
}

// pathNamespace lists the IPC settings one by one (ipc/ipc_sysctl.c): a prefix
// would admit whatever a later kernel puts beside them.
func pathNamespace(path string) (Kind, bool) {
	switch path {
	case "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/msg_next_id", "kernel/auto_msgmni",
		"kernel/sem", "kernel/sem_next_id",
		"kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_next_id", "kernel/shm_rmid_forced":
		return IPC, true
	}
	switch {
	case strings.HasPrefix(path, "fs/mqueue/"):
		return IPC, true
	case strings.HasPrefix(path, "net/"):
		// Those of net that are not per namespace the kernel hides or makes
		// read-only in any but the first (net/sysctl_net.c).
		return Net, true
	}
	return 0, false
}

// writeSysctls runs on a thread inside the namespaces: which instance of a file
// in /proc/sys is seen depends on who looks it up.
func (p *Pins) writeSysctls(sysctls []sysctl) error {
	for _, s := range sysctls {
		if err := p.writeSysctl(s); err != nil {
			return &SysctlError{Key: s.key, Value: s.value, Err: err}
		}
	}
	return nil
}

func (p *Pins) writeSysctl(s sysctl) error {
	fd, err := unix.Openat2(int(p.procFile.Fd()), "sys/"+s.path, &unix.OpenHow{
		Flags:   unix.O_WRONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("this kernel has no such setting in a sandbox's namespaces: %w", err)
		}
		return err
	}
	defer unix.Close(fd)
	if err := checkProc(fd); err != nil {
		return err
	}
	// One write: procfs takes a setting whole or not at all.
	n, err := unix.Write(fd, []byte(s.value))
	if err == nil && n != len(s.value) {
		err = fmt.Errorf("only %d of %d bytes taken", n, len(s.value))
	}
	return err
}
