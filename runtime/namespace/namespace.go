// Package namespace makes, pins, opens and removes the user, network, IPC and UTS
// namespaces that the containers of one sandbox share.
//
// Owns: the pins, which are bind mounts of nsfs files (net at /run/netns/<id>,
// where Cilium, Istio, Multus and `ip netns` look; the others in a private
// directory of podwright's own), and every locked thread of the daemon: setns
// and unshare are called here and nowhere else on the daemon's side.
//
// May not: know CRI objects, decide which sandbox gets which namespace, or hold
// PID namespaces (they live with their reaper process, not with a pin).
//
// Source: namespaces(7), user_namespaces(7), setns(2), unshare(2), ip-netns(8), proc_sys(5).
package namespace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

// Kind is one of the namespace kinds that can be pinned. A user namespace changes
// who owns the others, not how a pin is kept.
type Kind int

const (
	Net Kind = iota + 1
	IPC
	UTS
	User
)

// kinds is the order in which namespaces are pinned; they are removed in reverse.
var kinds = [...]Kind{User, Net, IPC, UTS}

// String is the name of the kind's file in /proc/<pid>/ns.
func (k Kind) String() string {
	switch k {
	case Net:
		return "net"
	case IPC:
		return "ipc"
	case UTS:
		return "uts"
	case User:
		return "user"
	}
	return fmt.Sprintf("kind(%d)", int(k))
}

// cloneFlag is both the flag of unshare(2) and what NS_GET_NSTYPE answers.
func (k Kind) cloneFlag() int {
	switch k {
	case Net:
		return unix.CLONE_NEWNET
	case IPC:
		return unix.CLONE_NEWIPC
	case UTS:
		return unix.CLONE_NEWUTS
	case User:
		return unix.CLONE_NEWUSER
	}
	return 0
}

// Config says where the pins are. Both directories are absolute paths in the
// mount namespace that the daemon runs in.
type Config struct {
	NetnsDir string // "/run/netns"; shared with every other tool of the node
	RunDir   string // "/run/podwright/ns"; nobody else's

	// Holder is a program, with its arguments, that waits for the end of its standard
	// input: user namespaces are made around it. Without one they are refused.
	Holder []string
}

// Pins is the set of pinned namespaces. What is pinned is kept by the kernel,
// not by this struct: any Pins on the same directories sees the same namespaces,
// which is how they outlive the daemon. All methods may be called concurrently;
// calls for one id are serialised by the caller (the sandbox's op lock).
//
//	Create ──> pinned ──Open, Run, Alive──> pinned ──Remove──> absent
//	   └─ any failure ──────────────────────────────Remove──> absent
type Pins struct {
	netnsDir string
	runDir   string
	holder   []string
	procFile *os.File // the root of a procfs that nothing can be mounted over
}

// New makes the two directories into the mounts they have to be. It may be
// called again at any time: what is already right is left alone.
func New(cfg Config) (*Pins, error) {
	for _, dir := range []string{cfg.NetnsDir, cfg.RunDir} {
		if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
			return nil, fmt.Errorf("namespace directory %q: not an absolute path", dir)
		}
	}
	p := &Pins{netnsDir: filepath.Clean(cfg.NetnsDir), runDir: filepath.Clean(cfg.RunDir), holder: cfg.Holder}
	if err := makeNetnsDir(p.netnsDir); err != nil {
		return nil, err
	}
	if err := makeRunDir(p.runDir); err != nil {
		return nil, err
	}
	procFile, err := openProc()
	if err != nil {
		return nil, err
	}
	p.procFile = procFile
	return p, nil
}

// Close gives back the procfs handle. The pins stay.
func (p *Pins) Close() error { return p.procFile.Close() }

// Create makes the namespaces that spec asks for, sets them up and pins them.
// On an error nothing is left. An id that has pins already is fs.ErrExist.
// A spec that asks for no namespace makes nothing.
//
// The caller's deadline is looked at between steps only; each is a short call
// into the kernel.
func (p *Pins) Create(ctx context.Context, id string, spec Spec) error {
	if err := checkID(id); err != nil {
		return err
	}
	sysctls, err := spec.check()
	if err != nil {
		return err
	}
	if len(spec.kinds()) == 0 {
		return nil
	}
	// The directory is the claim to the id, and what List finds: it comes
	// before the first pin and goes after the last.
	if err := os.Mkdir(p.claim(id), 0o700); err != nil {
		return fmt.Errorf("claim namespaces: %w", err)
	}
	if spec.Net {
		if _, err := os.Lstat(p.Path(id, Net)); err == nil {
			// Someone else's network namespace of that name: not ours to remove.
			_ = os.Remove(p.claim(id))
			return fmt.Errorf("pin net namespace %s: %w", p.Path(id, Net), fs.ErrExist)
		}
	}
	if spec.User != nil {
		err = p.populateOwned(ctx, id, spec, sysctls)
	} else {
		err = sys.OnThread(func() error { return p.populate(ctx, id, spec, sysctls) })
	}
	if err != nil {
		// The caller's context may be why it failed, and what was made must go.
		return errors.Join(err, p.Remove(context.WithoutCancel(ctx), id))
	}
	return nil
}

// Remove takes the pins away. The namespaces die when their last process, thread
// and open file are gone, the network one asynchronously: its CNI DEL comes
// before. What is absent is done already; what fails does not stop the rest.
func (p *Pins) Remove(_ context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	var errs []error
	for i := len(kinds) - 1; i >= 0; i-- {
		if err := unpin(p.Path(id, kinds[i])); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		if err := os.Remove(p.claim(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove namespace claim: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Path is where the namespace of that kind is pinned, whether it is or not.
// An impossible id or kind gives "", which no system call takes.
func (p *Pins) Path(id string, kind Kind) string {
	if checkID(id) != nil {
		return ""
	}
	return p.path(id, kind)
}

// path is Path of an id that checkID has seen.
func (p *Pins) path(id string, kind Kind) string {
	switch kind {
	case Net:
		return p.netnsDir + "/" + id
	case IPC, UTS, User:
		return p.runDir + "/" + id + "/" + kind.String()
	}
	return ""
}

// Open opens a pinned namespace for setns(2). What is there but is not a
// namespace of that kind is an error; what isn't there is fs.ErrNotExist.
// The caller owns the file, and closes it soon: it keeps the namespace alive.
func (p *Pins) Open(id string, kind Kind) (*os.File, error) {
	fd, err := p.open(id, kind)
	if err != nil {
		return nil, err
	}
	path := p.Path(id, kind)
	if err := checkNamespace(fd, kind); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open %s namespace %s: %w", kind, path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// open is Open of whatever is there.
func (p *Pins) open(id string, kind Kind) (fd int, err error) {
	if err := checkID(id); err != nil {
		return -1, err
	}
	path := p.path(id, kind)
	// O_NONBLOCK: something that is not a namespace must not hang the open.
	fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s namespace: %w", kind, &fs.PathError{Op: "open", Path: path, Err: err})
	}
	return fd, nil
}

// Alive says whether the namespace is pinned: after a reboot or behind the back
// of podwright a pin can be gone, or be the bare file that it was mounted on.
func (p *Pins) Alive(id string, kind Kind) bool {
	f, err := p.Open(id, kind)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

// List is every id that has or may have a pin, sorted, including what a crash
// in the middle of Create or Remove left: all that Remove has to be called for.
func (p *Pins) List() ([]string, error) {
	entries, err := os.ReadDir(p.runDir)
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	var ids []string
	for _, entry := range entries {
		if entry.IsDir() && checkID(entry.Name()) == nil {
			ids = append(ids, entry.Name())
		}
	}
	sort.Strings(ids)
	return ids, nil
}

// Run calls fn on a thread that is in the sandbox's network namespace and waits
// for it. Sockets that fn makes stay in that namespace wherever they are used
// later; goroutines that it starts do not run there. fn obeys ctx by itself.
func (p *Pins) Run(ctx context.Context, id string, fn func() error) error {
	return p.inside(ctx, id, []Kind{Net}, fn)
}

// inside runs fn on a thread that has joined the given namespaces of a sandbox.
func (p *Pins) inside(ctx context.Context, id string, join []Kind, fn func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	files := make([]*os.File, 0, len(join))
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	for _, kind := range join {
		f, err := p.Open(id, kind)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	return sys.OnThread(func() error {
		for i, kind := range join {
			if err := unix.Setns(int(files[i].Fd()), kind.cloneFlag()); err != nil {
				return fmt.Errorf("join %s namespace: %w", kind, err)
			}
		}
		return fn()
	})
}

func (p *Pins) claim(id string) string { return filepath.Join(p.runDir, id) }

// An id is one path component, and one that no tool takes for an option.
const (
	maxID        = 128
	idMarks      = "_.-" // not in front
	idCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789" + idMarks
)

func checkID(id string) error {
	if id == "" || len(id) > maxID || strings.ContainsAny(id[:1], idMarks) || strings.Trim(id, idCharacters) != "" {
		return fmt.Errorf("namespace id %.140q: not a file name of letters, digits and _.-", id)
	}
	return nil
}

// checkNamespace proves that an open file is a namespace of that kind.
func checkNamespace(fd int, kind Kind) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return err
	}
	if st.Type != unix.NSFS_MAGIC {
		return errors.New("not a namespace file")
	}
	got, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil {
		return err
	}
	if got != kind.cloneFlag() {
		return fmt.Errorf("a namespace of another kind (clone flag %#x)", got)
	}
	return nil
}
