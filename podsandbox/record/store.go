package record

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"
)

const (
	idBytes     = 32
	defaultSync = 2 * time.Second

	sandboxDir   = "sandboxes"
	containerDir = "containers"
	recordFile   = "record"
	specFile     = "spec"
)

// Store is the directory of all records: <root>/sandboxes/<id>/record.<generation>.json, <root>/containers/<id> with
// such records and spec.<generation>.json. One process uses it at a time; its methods may be called concurrently for different objects, and for one
// object in the order its owner decides.
type Store struct {
	root       *os.Root // our own tree: nothing in it is ever followed out of it
	sync       *syncer
	generation atomic.Uint64 // of the newest file in the store; never goes back
}

// Open prepares the directories and starts the background sync.
func Open(config Config) (*Store, error) {
	if config.Root == "" || config.SyncEvery < 0 {
		return nil, fmt.Errorf("open records in %q: %w", config.Root, ErrInvalid)
	}
	if config.SyncEvery == 0 {
		config.SyncEvery = defaultSync
	}
	for _, dir := range []string{"", sandboxDir, containerDir} {
		if err := os.MkdirAll(filepath.Join(config.Root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("open records: %w", err)
		}
	}
	root, err := os.OpenRoot(config.Root)
	if err != nil {
		return nil, fmt.Errorf("open records: %w", err)
	}
	newest, err := newestGeneration(root)
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("open records: %w", err)
	}
	s := &Store{root: root, sync: startSyncer(root, config.SyncEvery)}
	s.generation.Store(newest)
	return s, nil
}

// Close syncs what is pending and ends the background goroutine.
func (s *Store) Close() error { return errors.Join(s.sync.stop(), s.root.Close()) }

// PutSandbox stores the record atomically; it is on disk within SyncEvery.
func (s *Store) PutSandbox(r *Sandbox) error {
	b, err := encodeSandbox(r)
	if err != nil {
		return fmt.Errorf("store sandbox record: %w", err)
	}
	return s.put(sandboxDir, r.ID, recordFile, b)
}

// PutContainer stores the record atomically; it is on disk within SyncEvery.
func (s *Store) PutContainer(r *Container) error {
	b, err := encodeContainer(r)
	if err != nil {
		return fmt.Errorf("store container record: %w", err)
	}
	return s.put(containerDir, r.ID, recordFile, b)
}

// PutSpec stores the container's OCI spec beside its record. It is read for inspect and after a restart, not kept in memory.
func (s *Store) PutSpec(id string, spec json.RawMessage) error {
	return s.put(containerDir, id, specFile, spec)
}

// Spec reads the container's OCI spec; a missing one is fs.ErrNotExist.
func (s *Store) Spec(id string) (json.RawMessage, error) {
	if !ValidID(id) {
		return nil, fmt.Errorf("read spec of %q: %w", id, ErrInvalid)
	}
	var spec json.RawMessage
	err := newestWhole(s.root, filepath.Join(containerDir, id), specFile, func(b []byte) error {
		if !json.Valid(b) {
			return ErrInvalid
		}
		spec = b
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read spec of %s: %w", id, err)
	}
	return spec, nil
}

// DeleteSandbox removes the record; an absent one is no error.
func (s *Store) DeleteSandbox(id string) error { return s.remove(sandboxDir, id) }

// DeleteContainer removes the record and its spec; an absent one is no error.
func (s *Store) DeleteContainer(id string) error { return s.remove(containerDir, id) }

// put writes a new generation of a file under a name of its own. Replacing one name by rename(2) would have ext4 write
// the data out at once (auto_da_alloc), a millisecond on the path of every change; without that a power cut could leave
// an empty file in its place. So older generations stay until the syncer has the new one on disk, and Load takes the
// newest that is whole.
func (s *Store) put(kind, id, file string, content []byte) error {
	if !ValidID(id) {
		return fmt.Errorf("store record %q: %w", id, ErrInvalid)
	}
	dir := filepath.Join(kind, id)
	name := filepath.Join(dir, generationName(file, s.generation.Add(1)))
	err := s.write(name, content)
	if errors.Is(err, fs.ErrNotExist) { // the object's first record
		if err = s.root.Mkdir(dir, 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			err = s.write(name, content)
		}
	}
	if err != nil {
		return fmt.Errorf("store record: %w", err)
	}
	s.sync.changed(dir)
	return nil
}

func (s *Store) write(name string, content []byte) error {
	f, err := s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Close()); err != nil { // ENOSPC above all: what was there before stays what counts
		err = errors.Join(err, ignoreAbsent(s.root.Remove(name)))
	}
	return err
}

// remove takes records before specs: a crash in between leaves a directory without a record, which Load clears away.
func (s *Store) remove(kind, id string) error {
	if !ValidID(id) {
		return fmt.Errorf("remove record %q: %w", id, ErrInvalid)
	}
	dir := filepath.Join(kind, id)
	// Newest first would bring an older one back, if it ended there.
	for _, g := range slices.Backward(listGenerations(s.root, dir)[recordFile]) {
		if err := ignoreAbsent(s.root.Remove(filepath.Join(dir, generationName(recordFile, g)))); err != nil {
			return fmt.Errorf("remove record: %w", err)
		}
	}
	if err := s.root.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove record: %w", err)
	}
	s.sync.changed(dir)
	return nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// NewID makes a random id: 64 hexadecimal digits.
func NewID() string {
	var b [idBytes]byte
	rand.Read(b[:]) // never fails: it ends the process instead (crypto/rand)
	return hex.EncodeToString(b[:])
}

// ValidID says whether id has the form NewID gives.
func ValidID(id string) bool {
	if len(id) != 2*idBytes {
		return false
	}
	for i := range len(id) {
		if c := id[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
