package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// disk is what is below the store's root, containerd's libraries opened on it:
//
//	unpacking          locked by the daemon and its unpackers, so that none is left when another daemon begins
//	meta.db            names, leases, what refers to what; its lock is the store's
//	content/blobs      documents and packed layers, by digest
//	content/ingest     blobs on their way
//	layers/metadata.db snapshots and their parents
//	layers/snapshots   unpacked layers, <number>/fs
type disk struct {
	root      string
	unpacking *os.File // empty
	database  *bolt.DB
	backend   snapshots.Snapshotter // the overlay snapshotter below snapshot
	blobs     content.Store         // the directory of blobs below content
	metadata  *metadata.DB
	content   content.Store
	snapshot  snapshots.Snapshotter
	images    images.Store
	leases    leases.Manager
}

// openDisk makes what is absent.
func openDisk(root string) (*disk, error) {
	d := &disk{root: root}
	if err := d.open(); err != nil {
		return nil, errors.Join(err, d.close())
	}
	d.content = d.metadata.ContentStore()
	d.snapshot = d.metadata.Snapshotter(snapshotterName)
	d.images = metadata.NewImageStore(d.metadata)
	d.leases = metadata.NewLeaseManager(d.metadata)
	return d, nil
}

func (d *disk) open() error {
	if err := os.MkdirAll(d.root, 0o700); err != nil {
		return err
	}
	// Layers hold set-user-id files of images (CVE-2021-41103).
	if err := os.Chmod(d.root, 0o700); err != nil {
		return err
	}
	var err error
	d.database, err = bolt.Open(filepath.Join(d.root, "meta.db"), 0o600, &bolt.Options{Timeout: lockTimeout})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return fmt.Errorf("in use by another process")
	}
	if err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	if d.unpacking, err = lockUnpacking(filepath.Join(d.root, "unpacking")); err != nil {
		return err
	}
	// Under the database's lock: blobs that came in part belong to a process
	// that is gone. A kill can leave them in ways the library doesn't list.
	if err := os.RemoveAll(filepath.Join(d.root, "content", "ingest")); err != nil {
		return fmt.Errorf("content: %w", err)
	}
	d.blobs, err = local.NewStore(filepath.Join(d.root, "content"))
	if err != nil {
		return fmt.Errorf("content: %w", err)
	}
	if d.backend, err = openLayers(filepath.Join(d.root, "layers")); err != nil {
		return fmt.Errorf("snapshots: %w", err)
	}
	d.metadata = metadata.NewDB(d.database, d.blobs, map[string]snapshots.Snapshotter{snapshotterName: d.backend})
	if err := d.metadata.Init(context.Background()); err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	return nil
}

func (d *disk) close() error {
	var errs []error
	if d.backend != nil {
		errs = append(errs, d.backend.Close())
	}
	if d.unpacking != nil {
		errs = append(errs, d.unpacking.Close())
	}
	if d.database != nil {
		errs = append(errs, d.database.Close())
	}
	return errors.Join(errs...)
}

// unpackerTimeout is for unpackers of a daemon that was killed to notice it.
const unpackerTimeout = 10 * time.Second

// lockUnpacking waits for the unpackers that a killed daemon left: they have the lock of this file as long as they are.
func lockUnpacking(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(unpackerTimeout); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case err == unix.EWOULDBLOCK && time.Now().Before(deadline), err == unix.EINTR:
			continue
		case err == unix.EWOULDBLOCK:
			err = fmt.Errorf("a process of an earlier daemon still unpacks layers after %v", unpackerTimeout)
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
}

// blobPath is where the content store has a blob.
func (d *disk) blobPath(of digest.Digest) string {
	return filepath.Join(d.root, "content", "blobs", of.Algorithm().String(), of.Encoded())
}

// openLayers opens the overlay snapshotter. A directory that its database
// doesn't know has a number that the database gives out again, and would be in
// the way (a kill between rename and commit); it is moved aside at once and
// deleted when the collector comes round.
func openLayers(dir string) (snapshots.Snapshotter, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	meta, err := storage.NewMetaStore(filepath.Join(dir, "metadata.db"))
	if err != nil {
		return nil, err
	}
	var known map[string]string
	err = meta.WithTransaction(context.Background(), false, func(ctx context.Context) (err error) {
		known, err = storage.IDMap(ctx)
		return err
	})
	if err != nil && !errdefs.IsNotFound(err) { // a new database has no map yet
		return nil, errors.Join(err, meta.Close())
	}
	found, err := os.ReadDir(filepath.Join(dir, "snapshots"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(err, meta.Close())
	}
	for _, entry := range found {
		if _, ok := known[entry.Name()]; ok {
			continue
		}
		path := filepath.Join(dir, "snapshots", entry.Name())
		if err := os.Rename(path, filepath.Join(dir, "snapshots", "old-"+rand.Text())); err != nil {
			return nil, errors.Join(err, meta.Close())
		}
	}
	snapshotter, err := overlay.NewSnapshotter(dir, overlay.WithMetaStore(meta), overlay.AsynchronousRemove, overlay.WithUpperdirLabel)
	if err != nil {
		return nil, errors.Join(err, meta.Close())
	}
	return snapshotter, nil
}
