package selinux

import (
	"errors"
	"fmt"

	"github.com/opencontainers/selinux/go-selinux"
)

// privilegedType is the type of privileged containers in every policy that knows containers: it is confined by nothing.
// The policies reach it by a rule for what an engine executes without saying as what; here it is always said.
const privilegedType = "spc_t"

// labelBytes is the longest label that a mount can be made with (fsconfig(2)).
const labelBytes = 255

// Options are the parts of a label that a request gives; "" leaves a part to podwright.
type Options struct{ User, Role, Type, Level string }

// Pair are the labels of one container, or of a sandbox.
type Pair struct {
	Process string // of its processes
	Mount   string // of the files they may use
}

// OptionError names the part of a label that the policy doesn't know.
type OptionError struct {
	Option string // "user", "role", "type" or "level"; "" where only all together make no label
	Value  string // what it holds; the whole label where Option is ""
}

func (e *OptionError) Error() string {
	if e.Option == "" {
		return fmt.Sprintf("label %q: %v", e.Value, ErrLabel)
	}
	return fmt.Sprintf("%s %q: %v", e.Option, e.Value, ErrLabel)
}

// Unwrap makes errors.Is(err, ErrLabel) hold.
func (e *OptionError) Unwrap() error { return ErrLabel }

// Config says what labels are made of.
type Config struct {
	// Categories is how many of the policy's categories, from c0 on, pairs are made of; 0 is all of them, 1024.
	Categories int
}

// Labels gives sandboxes and containers their labels. Its methods may be called concurrently.
//
//	Sandbox ──> taken ──Release──> free
//	Hold (recovery) ──^
type Labels struct {
	process, mount parts // of the policy, without categories
	known          func(label string) (string, error)
	pairs          *pairs
}

// parts is a label in its parts; level is "" where the policy has none.
type parts struct{ user, role, kind, level string }

func (p parts) String() string {
	text := p.user + ":" + p.role + ":" + p.kind
	if p.level != "" {
		text += ":" + p.level
	}
	return text
}

func split(label string) (parts, error) {
	c, err := selinux.NewContext(label)
	if err != nil {
		return parts{}, fmt.Errorf("label %q: %w", label, err)
	}
	return parts{c["user"], c["role"], c["type"], c["level"]}, nil
}

// with replaces what o gives.
func (p parts) with(o Options) parts {
	for _, f := range []struct {
		value string
		into  *string
	}{{o.User, &p.user}, {o.Role, &p.role}, {o.Type, &p.kind}, {o.Level, &p.level}} {
		if f.value != "" {
			*f.into = f.value
		}
	}
	return p
}

// New reads what the policy says of containers and asks the kernel whether it knows that. It is for a host where Enabled.
func New(cfg Config) (*Labels, error) {
	// The library gives the types with a pair of its own, which nobody uses.
	process, mount := selinux.ContainerLabels() //nolint:staticcheck // the only way to both types; the library has no other yet
	selinux.ReleaseLabel(mount)
	if process == "" || mount == "" {
		return nil, fmt.Errorf("contexts/lxc_contexts in the policy's directory below /etc/selinux: %w", ErrNoPolicy)
	}
	l, err := newLabels(process, mount, cfg, canonical)
	if err != nil {
		return nil, err
	}
	for _, p := range []parts{l.process, l.mount} {
		if _, err := l.known(p.String()); err != nil {
			return nil, fmt.Errorf("contexts/lxc_contexts in the policy's directory below /etc/selinux: %w: %w", ErrNoPolicy, err)
		}
	}
	return l, nil
}

func newLabels(process, mount string, cfg Config, known func(string) (string, error)) (*Labels, error) {
	l := &Labels{known: known, pairs: newPairs(cfg.Categories)}
	var errs [2]error
	l.process, errs[0] = split(process)
	l.mount, errs[1] = split(mount)
	l.process.level, l.mount.level = sensitivity(l.process.level), sensitivity(l.mount.level)
	return l, errors.Join(errs[:]...)
}

// Type is the type of containers that ask for none.
func (l *Labels) Type() string { return l.process.kind }

// Sandbox gives sandbox id the labels it asks for. Without a level it gets a pair of categories that is no other sandbox's
// until Release; an error leaves nothing taken.
func (l *Labels) Sandbox(id string, o Options) (Pair, error) {
	given := o
	if o.Level == "" && l.process.level != "" {
		p, err := l.pairs.take(id)
		if err != nil {
			return Pair{}, err
		}
		o.Level = l.process.level + ":" + p.String()
	}
	pair, err := l.pair(l.process.with(o), l.mount, given)
	if err != nil {
		l.Release(id)
		return Pair{}, err
	}
	l.Hold(id, o.Level)
	return pair, nil
}

// Container gives a container of a sandbox its labels: the sandbox's, with what the container asks for itself. Privileged
// is as unconfined as the policy knows, whatever is asked for; its files are labelled all the same.
func (l *Labels) Container(sandbox Pair, o Options, privileged bool) (Pair, error) {
	process, err := split(sandbox.Process)
	if err != nil {
		return Pair{}, err
	}
	pair, err := l.pair(process.with(o), l.mount, o)
	if err != nil || !privileged {
		return pair, err
	}
	// Of the sandbox's user and role nothing is left either: not every one of them may have this type.
	all := l.process
	all.kind = privilegedType
	pair.Process, err = l.known(all.String())
	return pair, err
}

// pair checks a process's label with the kernel and derives that of its files, which have user and level in common with it.
func (l *Labels) pair(process, mount parts, given Options) (Pair, error) {
	mount.user, mount.level = process.user, process.level
	var out Pair
	var err error
	if out.Process, err = l.known(process.String()); err == nil {
		out.Mount, err = l.known(mount.String())
	}
	if err == nil && len(out.Mount) > labelBytes {
		return Pair{}, &OptionError{"level", given.Level}
	}
	if errors.Is(err, ErrLabel) {
		return Pair{}, l.blame(process, given)
	}
	return out, err
}

// blame finds the part that makes a label unknown: the one that the policy's own label doesn't go with.
func (l *Labels) blame(process parts, given Options) error {
	for _, f := range []struct {
		name, value string
		alone       Options
	}{
		{"type", given.Type, Options{Type: given.Type}}, {"level", given.Level, Options{Level: given.Level}},
		{"role", given.Role, Options{Role: given.Role}}, {"user", given.User, Options{User: given.User}},
	} {
		if f.value == "" {
			continue
		}
		if _, err := l.known(l.process.with(f.alone).String()); errors.Is(err, ErrLabel) {
			return &OptionError{f.name, f.value}
		}
	}
	return &OptionError{"", process.String()}
}

// Hold notes that owner has level, so that nobody is given its categories. It may be called again.
func (l *Labels) Hold(owner, level string) {
	if p, ok := pairOf(level); ok {
		l.pairs.hold(owner, p)
	}
}

// HoldLabel is Hold for the level of a whole label.
func (l *Labels) HoldLabel(owner, label string) {
	if p, err := split(label); err == nil {
		l.Hold(owner, p.level)
	}
}

// Release frees what owner holds; nothing is fine.
func (l *Labels) Release(owner string) { l.pairs.release(owner) }
