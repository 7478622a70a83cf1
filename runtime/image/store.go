// Package image keeps container images: it pulls them from registries, unpacks
// them, answers what is there and removes what nobody needs.
//
// It owns one directory tree (Config.Root) with containerd's content store,
// metadata database and overlay snapshotter in it, all embedded; nothing else
// writes there. It knows no CRI types, and starts no container: it hands out
// the lower directories and is told who holds them.
//
// Sources: OCI image and distribution specifications v1.1; containerd v2.4
// (core/metadata, core/unpack, core/remotes/docker).
//
// Life of an image:
//
//	pull ──▶ lease "pull-*" ──▶ content, snapshots ──▶ lease "image-*" + View ──▶ record ──▶ visible
//	                                                                               │ Remove
//	                         gone ◀── lease dropped ◀── last holder released ◀── detached
//
// The record is written last and in one transaction, so that after a crash an
// image is there or it is not. What a crash leaves behind has a "pull-*" lease
// or none; Open drops these leases and StartGC collects the rest. Packed
// layers are kept beside the unpacked ones, for export.
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/semaphore"
	"k8s.io/klog/v2"
)

const (
	// containerd's libraries keep everything under a namespace; there is one.
	metadataNamespace = "podwright"
	// Layer directories are <root>/layers/snapshots/<number>/fs, and one
	// fsconfig(2) string ends at 255 bytes.
	maxRootLen             = 200
	defaultProgressTimeout = 5 * time.Minute
	defaultDownloads       = 3
	lockTimeout            = time.Second
)

// Config is what a store is made from.
type Config struct {
	// Root is the store's own directory, made if absent, mode 0700.
	Root string
	// Unpacker is a program, with its arguments, that calls ServeLayers with
	// its standard input and output. Layers are unpacked by it.
	Unpacker []string
	// CertsDirs hold hosts.toml and certificates per registry, in the layout
	// of /etc/containerd/certs.d; the first that knows a registry wins.
	CertsDirs []string
	// ProgressTimeout aborts a pull whose registry sends nothing for so long;
	// 0 is 5 minutes, negative is never.
	ProgressTimeout time.Duration
	// MaxConcurrentDownloads is how many layers of one image are fetched at
	// once; 0 is 3.
	MaxConcurrentDownloads int
	// Platform is what images must be for, "os/arch[/variant]"; "" is this
	// machine.
	Platform string
	// Pinned names images that are reported as pinned. Remove obeys anyway.
	Pinned []string
	// Observe is told of every pull that ended, with the context it ran in,
	// before its callers are. It may not wait. Optional.
	Observe func(context.Context, Pulled)

	collectDelay time.Duration // tests don't want to wait
	bootID       string        // tests don't want to reboot
}

// Store is the node's images. Its reads answer from memory and never wait.
type Store struct {
	root      string
	unpacker  []string
	certsDirs []string
	downloads int
	platform  platforms.MatchComparer
	wanted    string // the platform as text

	disk     *disk
	table    *table
	unsynced *unsynced
	flights  *flights
	locks    *keyLocks
	slots    *semaphore.Weighted
	// changes is a 1-slot lock: names, image leases and views change under it.
	changes chan struct{}
	imports chan struct{} // 1-slot lock: archives share ingest names

	usage        atomic.Pointer[FsInfo]
	collectDelay time.Duration
	gcAllowed    atomic.Bool
	wake         chan struct{} // 1-slot: something became garbage or came
	stop         context.CancelFunc
	running      sync.WaitGroup
}

// Open makes or opens the store and loads what is in it. Nothing is collected
// before StartGC, so that holders can be restored first.
func Open(ctx context.Context, config Config) (*Store, error) {
	s, err := newStore(config)
	if err != nil {
		return nil, fmt.Errorf("open image store %s: %w", config.Root, err)
	}
	if s.disk, err = openDisk(s.root); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", config.Root, err)
	}
	ctx = libraryContext(ctx)
	if err := s.load(ctx); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", config.Root, errors.Join(err, s.disk.close()))
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.running.Add(1)
	// Owned by s, ended by stop, waited for by Close.
	go func() {
		defer s.running.Done()
		s.maintain(background)
	}()
	s.collectSoon() // what a killed daemon had not synced yet
	return s, nil
}

func newStore(config Config) (*Store, error) {
	if !filepath.IsAbs(config.Root) || len(config.Root) > maxRootLen || strings.ContainsAny(config.Root, ":,\\") {
		return nil, fmt.Errorf("root must be absolute, at most %d bytes, without ':', ',' and '\\' (overlay options)", maxRootLen)
	}
	if len(config.Unpacker) == 0 {
		return nil, errors.New("no program to unpack layers with")
	}
	spec := platforms.DefaultSpec()
	if config.Platform != "" {
		var err error
		if spec, err = platforms.Parse(config.Platform); err != nil {
			return nil, fmt.Errorf("platform: %w", err)
		}
	}
	memory, err := newTable(config.Pinned)
	if err != nil {
		return nil, err
	}
	pending, err := newUnsynced(config.bootID)
	if err != nil {
		return nil, err
	}
	s := &Store{
		root: filepath.Clean(config.Root), unpacker: config.Unpacker, certsDirs: config.CertsDirs, downloads: config.MaxConcurrentDownloads,
		platform: platforms.Only(spec), wanted: platforms.Format(spec),
		table: memory, unsynced: pending, locks: newKeyLocks(),
		slots:   semaphore.NewWeighted(int64(runtime.NumCPU())),
		flights: &flights{progressTimeout: config.ProgressTimeout, observe: config.Observe, open: map[string]*flight{}},
		changes: make(chan struct{}, 1), imports: make(chan struct{}, 1), wake: make(chan struct{}, 1),
	}
	if s.collectDelay = config.collectDelay; s.collectDelay == 0 {
		s.collectDelay = collectDelay
	}
	if s.downloads <= 0 {
		s.downloads = defaultDownloads
	}
	if s.flights.progressTimeout == 0 {
		s.flights.progressTimeout = defaultProgressTimeout
	}
	return s, nil
}

// Close cancels what runs, waits for it and closes the databases.
func (s *Store) Close() error {
	s.flights.close()
	s.stop()
	s.running.Wait()
	s.sync(libraryContext(context.Background()))
	return s.disk.close()
}

// Get answers a reference, an id or the beginning of one (B41). It reads
// memory only, as do List and Held.
func (s *Store) Get(refOrID string) (Image, error) {
	return s.table.catalog.Load().find(refOrID)
}

// List returns all visible images, by id.
func (s *Store) List() []Image {
	known := s.table.catalog.Load().images
	list := make([]Image, len(known))
	for i, img := range known {
		list[i] = img.clone()
	}
	return list
}

// Held returns an image by its whole id even when it was removed and only
// containers hold it (B47); then it has no names.
func (s *Store) Held(imageID string) (Image, error) {
	if img, err := s.Get(imageID); err == nil && img.ID == imageID {
		return img, nil
	}
	e := s.table.entry(imageID)
	if e == nil {
		return Image{}, fmt.Errorf("%w: %s", ErrNotFound, imageID)
	}
	return s.table.describe(e, nil).clone(), nil
}

// libraryContext adds what containerd's libraries look for in a context: their
// namespace, and a logger, which passes warnings on to klog.
func libraryContext(ctx context.Context) context.Context {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.SetLevel(logrus.WarnLevel)
	logger.AddHook(klogHook{klog.FromContext(ctx)})
	return log.WithLogger(namespaces.WithNamespace(ctx, metadataNamespace), logrus.NewEntry(logger))
}

// klogHook prints what the libraries warn of.
type klogHook struct{ logger klog.Logger }

func (klogHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h klogHook) Fire(e *logrus.Entry) error {
	var err error
	if cause, ok := e.Data[logrus.ErrorKey].(error); ok {
		err = cause
	}
	h.logger.V(2).Info("Image library warns", "message", printable(e.Message), "err", err)
	return nil
}

// change takes the lock under which names and image leases change.
func (s *Store) change(ctx context.Context) (unlock func(), err error) {
	select {
	case s.changes <- struct{}{}:
		return func() { <-s.changes }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
