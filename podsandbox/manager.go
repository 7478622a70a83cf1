// Package podsandbox owns the life cycle of sandboxes and of the containers in them: the order of steps, the
// operation locks, the one teardown, and recovery after a restart. It knows CRI messages and calls mechanisms
// (namespaces, cgroups, mounts, CNI, keeper); it is none itself: every system call beyond plain files is below.
// Lists and statuses answer from memory and wait for nothing.
// Source: cri-api api.proto, docs/architecture.md.
package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	imagev1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/podwright/podwright/cni"
	"github.com/podwright/podwright/podsandbox/podfiles"
	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/apparmor"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/keeper"
	"github.com/podwright/podwright/runtime/mounts"
	"github.com/podwright/podwright/runtime/namespace"
	"github.com/podwright/podwright/runtime/seccomp"
	"github.com/podwright/podwright/runtime/selinux"
)

// Image is what a container needs of its image.
type Image struct {
	ID     string // config digest
	Ref    string // what ContainerStatus reports as image_ref: a repository digest where there is one, else ID
	Config imagev1.ImageConfig
}

// Images is what podsandbox needs of the image store, which stands on the same floor.
type Images interface {
	// Image finds an image by any reference to it; absent is ErrNotFound.
	Image(ref string) (Image, error)
	// Layers gives the directories of an unpacked image, topmost first.
	Layers(ctx context.Context, imageID string) ([]string, error)
	// Hold keeps an image's layers for holder, whatever happens to the image, until Release.
	Hold(imageID, holder string) error
	Release(ctx context.Context, holder string) error
}

// Config carries everything a Manager works with; all fields are required unless said otherwise.
type Config struct {
	StateDir string // writable layers are in StateDir/containers/<id>
	RunDir   string // FIFOs are in RunDir/containers/<id>
	Node     spec.Node

	CgroupParent   string // for pods that name none
	SeccompDefault []byte // the RuntimeDefault profile
	UnsetSeccomp   spec.SeccompKind
	UnsetAppArmor  spec.AppArmorKind
	// RefuseWeakIsolation ends a container at its start of which the kernel enforces less than was asked.
	RefuseWeakIsolation bool
	// IsolationInterval is between two looks at what isolates a running container, for Counts; 0: nobody looks.
	IsolationInterval time.Duration

	BootID     string
	Records    *record.Store
	Files      *podfiles.Files
	Namespaces *namespace.Pins
	Cgroups    *cgroup.Manager
	Mounts     *mounts.Opener
	Seccomp    *seccomp.Compiler
	Network    *cni.Network
	Images     Images
	AppArmor   *apparmor.Policy // nil where the kernel has none
	Labels     *selinux.Labels  // nil where containers are not labelled

	// Observe is told of every operation that ended, with the context it ran in. It may not wait. Optional.
	Observe func(ctx context.Context, op *Operation, err error)
}

// Manager runs sandboxes and containers. Its verbs come from the parts it is made of.
type Manager struct {
	*core
	*sandboxManager
	*containerManager
	*execManager
	*updateManager
	*streamManager
	*statsManager

	watch *isolationWatch
}

// core is what the parts share: the configuration, the objects in memory and how they are recorded.
type core struct {
	cfg    Config
	keeper atomic.Pointer[keeper.Client] // nil until Start

	sandboxes     table[sandbox]
	containers    table[container]
	sandboxKeys   sync.Map // identity -> sandbox id, of finished sandboxes
	containerKeys sync.Map // identity -> container id
	creating      sync.Map // ids of sandboxes that are being made
	waiters       sync.Map // keeper id -> chan wire.Exit, of processes that are no containers
	unreadable    unreadable
	events        events

	exits     sync.WaitGroup // exits being processed, and what else goes on after its caller has an answer
	ops       operations
	relabels  *relabels
	clock     clock
	recovered chan struct{} // closed once Start has recovered every record
	leaving   chan struct{} // closed by Leave
}

// sandboxManager has the verbs of sandboxes; it stops and removes their containers.
type sandboxManager struct {
	*core
	containerVerbs *containerManager
}

// containerManager has the verbs of containers, and what follows their exit.
type containerManager struct {
	*core
	accounts accountCache
}

// execManager runs commands in containers.
type execManager struct {
	*core
	starting chan struct{} // a slot for each command that is being started
	kept     atomic.Int64  // bytes of output in execPool
}

// New checks cfg and makes the directories. Nothing works before Start.
func New(cfg Config) (*Manager, error) {
	if cfg.Records == nil || cfg.Files == nil || cfg.Namespaces == nil || cfg.Cgroups == nil || cfg.Mounts == nil ||
		cfg.Seccomp == nil || cfg.Network == nil || cfg.Images == nil || cfg.BootID == "" || cfg.CgroupParent == "" {
		return nil, errors.New("podsandbox: a required part of the configuration is missing")
	}
	shared := &core{cfg: cfg, recovered: make(chan struct{}), leaving: make(chan struct{}), ops: operations{observe: cfg.Observe}}
	shared.relabels = newRelabels(&shared.ops, shared.leaving)
	containers := &containerManager{core: shared}
	m := &Manager{
		core: shared, containerManager: containers, execManager: &execManager{core: shared, starting: make(chan struct{}, maxExecs)},
		sandboxManager: &sandboxManager{core: shared, containerVerbs: containers}, updateManager: &updateManager{shared}, streamManager: &streamManager{shared},
		statsManager: newStatsManager(shared), watch: newIsolationWatch(shared),
	}
	for _, dir := range []string{m.stateDir(""), m.runDir("")} {
		// A user of the host must not reach a set-user-ID file in a layer, or a log's FIFO, by its path (CVE-2021-41103).
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
			return nil, fmt.Errorf("make %s: %w", dir, err)
		}
	}
	return m, nil
}

// Ready says why nothing can be started now, or nil. It reads memory only.
func (m *core) Ready() error {
	if err := m.Recovered(); err != nil {
		return err
	}
	if !m.keeper.Load().Connected() {
		return kindf(ErrUnavailable, "the keeper is unreachable: nothing can be started or stopped until it answers again")
	}
	return nil
}

// Recovered says why nothing can be changed, or nil: before recovery is done, a record may say of its object what holds no
// more. It reads memory only.
func (m *core) Recovered() error {
	select {
	case <-m.recovered:
		return nil
	default:
	}
	client := m.keeper.Load()
	if client == nil || client.Connected() {
		return kindf(ErrUnavailable, "%w", ErrRecovering)
	}
	cause := ""
	if err := client.Trouble(); err != nil {
		cause = " (" + err.Error() + ")"
	}
	return kindf(ErrUnavailable, "the keeper has not answered since podwright was started%s: until it does, lists say what was recorded last and nothing can be changed", cause)
}

// SandboxIDs gives every sandbox there is, those with unreadable records too: what CNI GC must not take for leftovers.
func (m *Manager) SandboxIDs() []string {
	var ids []string
	m.sandboxes.each(func(s *sandbox) { ids = append(ids, s.id) })
	m.creating.Range(func(id, _ any) bool { ids = append(ids, id.(string)); return true })
	for _, b := range m.unreadable.all(kindSandbox) {
		ids = append(ids, b.ID)
	}
	return ids
}

// Operations lists what is under way, oldest first.
func (m *Manager) Operations() []*Operation { return m.ops.list() }

// Leave ends what may take hours, stops that wait for a container's own end and streams of events: their callers ask the
// next daemon. It is called once, before Shutdown.
func (m *core) Leave() { close(m.leaving) }

// RecursiveReadOnly says whether mounts can be read-only with what is mounted below them here.
func (m *Manager) RecursiveReadOnly() bool { return m.cfg.Node.RecursiveReadOnly }

// Leaving is closed by Leave.
func (m *Manager) Leaving() <-chan struct{} { return m.leaving }

// Shutdown waits for running creates and exits to be recorded. Containers keep running.
func (m *Manager) Shutdown(ctx context.Context) error {
	err := m.ops.drain(ctx)
	if client := m.keeper.Load(); client != nil {
		client.Close()
	}
	done := make(chan struct{})
	// Owner: this call; ends with the last exit being processed.
	go func() {
		m.exits.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		err = errors.Join(err, ctx.Err())
	}
	return err
}

// stateDir is where a container's writable layer and volumes are; with "" the directory of all.
func (m *core) stateDir(id string) string { return filepath.Join(m.cfg.StateDir, "containers", id) }

// runDir is where a container's FIFOs are; with "" the directory of all.
func (m *core) runDir(id string) string { return filepath.Join(m.cfg.RunDir, "containers", id) }

// How long things may take that outlive the call that asked for them.
const (
	createDeadline   = 4 * time.Minute  // the kubelet's own for RunPodSandbox
	teardownDeadline = 2 * time.Minute  // CNI DEL has its own, shorter one
	killDeadline     = 15 * time.Second // after it a process is stuck in the kernel
)

// teardownContext is for the way back: it outlives the call that failed or was cancelled, and ends by itself.
func teardownContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), teardownDeadline)
}

// clock gives creation times that strictly increase, across restarts and steps of the system clock (B7).
type clock struct{ last atomic.Int64 }

func (c *clock) now() int64 {
	for {
		last := c.last.Load()
		next := max(time.Now().UnixNano(), last+1)
		if c.last.CompareAndSwap(last, next) {
			return next
		}
	}
}

// seen makes later times come after nanos.
func (c *clock) seen(nanos int64) {
	for {
		last := c.last.Load()
		if nanos <= last || c.last.CompareAndSwap(last, nanos) {
			return
		}
	}
}
