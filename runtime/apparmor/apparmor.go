// Package apparmor owns what podwright knows of AppArmor on this node: whether the kernel has it, which profiles are
// loaded, and the default profile, whose text is podwright's own and which it loads itself. It confines nobody: init
// asks the kernel for a profile, by its name. It may not change or remove another's profile.
// Source: apparmor.d(5), apparmor_parser(8), Linux Documentation/admin-guide/LSM/apparmor.rst, security/apparmor/apparmorfs.c.
package apparmor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// DefaultName is the name of podwright's own profile.
const DefaultName = "podwright-default"

// ErrNotLoaded reports a profile that the kernel does not have.
var ErrNotLoaded = errors.New("the profile is not loaded")

// Where the kernel shows AppArmor.
const (
	enabledFile   = "/sys/module/apparmor/parameters/enabled"
	securityFS    = "/sys/kernel/security/apparmor"
	ownLabelFile  = "/proc/self/attr/apparmor/current" // Linux 5.8
	policyABI     = "/etc/apparmor.d/abi/3.0"
	unconfined    = "unconfined"
	retryInterval = 10 * time.Second // between attempts to load the default profile that fail
)

// Enabled says whether the kernel has AppArmor and uses it.
func Enabled() bool {
	raw, err := os.ReadFile(enabledFile)
	return err == nil && strings.HasPrefix(string(raw), "Y")
}

// Config is what a Policy works with.
type Config struct {
	// Default is the profile that RuntimeDefault means: DefaultName, which is loaded where it is missing, or one that the
	// node loads. Empty: there is none.
	Default string
	// StateFile remembers what was loaded. It belongs where it dies with the boot, as the kernel's profiles do.
	StateFile string
}

// Policy answers for the profiles of this node. Its methods may be called at the same time.
type Policy struct {
	cfg    Config
	kernel string // securityFS
	own    string // the label of this process, without its mode
	parser func() (string, error)

	loading chan struct{} // a slot: what follows is whose who has it
	failed  error         // of the last attempt
	again   time.Time     // when the next one may be made
}

// New looks at the kernel's side of AppArmor, which is Enabled.
func New(cfg Config) (*Policy, error) {
	raw, err := os.ReadFile(ownLabelFile)
	if err != nil {
		return nil, fmt.Errorf("read own AppArmor label: %w", err)
	}
	own, _ := splitMode(strings.TrimRight(string(raw), "\x00\n"))
	return &Policy{cfg: cfg, kernel: securityFS, own: own, parser: Parser, loading: make(chan struct{}, 1)}, nil
}

// Confined says whether a profile confines this process: what it starts is then not unconfined by itself.
func (p *Policy) Confined() bool { return p.own != unconfined }

// Load loads the default profile, where that is podwright's own, unless what the kernel has is what would be loaded.
func (p *Policy) Load(ctx context.Context) error {
	if p.cfg.Default != DefaultName {
		return nil
	}
	return p.locked(ctx, func() error { return p.load(ctx, false) })
}

// Default gives the profile that RuntimeDefault means, loaded. Podwright's own is loaded again where somebody removed it
// or keeps it from enforcing. An error says why there is none.
func (p *Policy) Default(ctx context.Context) (string, error) {
	name := p.cfg.Default
	if name == "" {
		return "", errors.New("no AppArmor profile is configured as the default (runtime.apparmor_default_profile)")
	}
	mode, err := p.Loaded(name)
	if name != DefaultName || err == nil && enforces(mode) || err != nil && !errors.Is(err, ErrNotLoaded) {
		return name, err
	}
	return name, p.locked(ctx, func() error {
		if mode, err := p.Loaded(name); err == nil && enforces(mode) { // by whoever had the slot
			return nil
		}
		return p.load(ctx, true)
	})
}

// Loaded gives the mode of a loaded profile: "enforce", "complain", "kill", "unconfined". It fails with ErrNotLoaded for
// one that the kernel does not have.
func (p *Policy) Loaded(name string) (mode string, err error) {
	file := filepath.Join(p.kernel, "profiles")
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("AppArmor profile %q: cannot tell whether it is loaded: %s is missing; mount -t securityfs securityfs /sys/kernel/security", name, file)
	}
	if err != nil {
		return "", fmt.Errorf("AppArmor profile %q: %w", name, err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if loaded, mode := splitMode(lines.Text()); loaded == name && mode != "" {
			return mode, nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("AppArmor profile %q: %w", name, err)
	}
	return "", fmt.Errorf("AppArmor profile %q: %w on this node (%s lists those that are)", name, ErrNotLoaded, file)
}

// enforces says whether a mode refuses what the profile does not allow.
func enforces(mode string) bool { return mode == "enforce" || mode == "kill" }

// splitMode takes "name (mode)" apart. A name may hold anything, parentheses included.
func splitMode(text string) (name, mode string) {
	at := strings.LastIndex(text, " (")
	if at < 0 || !strings.HasSuffix(text, ")") {
		return text, ""
	}
	return text[:at], text[at+2 : len(text)-1]
}

// locked runs fn alone. Who waits for it leaves with ctx.
func (p *Policy) locked(ctx context.Context, fn func() error) error {
	select {
	case p.loading <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("AppArmor profile %q: wait for its loading: %w", p.cfg.Default, ctx.Err())
	}
	defer func() { <-p.loading }()
	return fn()
}

// load runs the parser, unless the profile of an earlier run is in force, or the last attempt failed a moment ago.
func (p *Policy) load(ctx context.Context, force bool) error {
	if p.failed != nil && time.Now().Before(p.again) {
		return p.failed
	}
	err := p.loadNow(ctx, force)
	if err != nil {
		err = fmt.Errorf("load AppArmor profile %q: %w", DefaultName, err)
	}
	p.failed, p.again = err, time.Now().Add(retryInterval)
	return err
}

func (p *Policy) loadNow(ctx context.Context, force bool) error {
	_, err := os.Stat(policyABI)
	text, err := profileText(p.own, err == nil)
	if err != nil {
		return err
	}
	if !force && p.isLoaded(text) {
		return nil
	}
	parser, err := p.parser()
	if err != nil {
		return err
	}
	if err := runParser(ctx, parser, text, "--replace"); err != nil {
		return err
	}
	// The parser has been seen to succeed without effect (a policy namespace that may not be changed).
	if _, err := p.Loaded(DefaultName); err != nil {
		return err
	}
	return p.remember(text)
}
