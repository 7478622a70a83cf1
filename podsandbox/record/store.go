package record

import "encoding/json"

// Store is the directory of all records. One process uses it at a time.
type Store struct{}

// Open prepares the directories and starts the background sync.
func Open(config Config) (*Store, error) { return nil, ErrInvalid }

// Load reads every record. Records that cannot be used are listed, and stay where they are.
func (s *Store) Load() (Loaded, error) { return Loaded{}, ErrInvalid }

// PutSandbox stores the record atomically; it is on disk within SyncEvery.
func (s *Store) PutSandbox(r *Sandbox) error { return ErrInvalid }

// PutContainer stores the record atomically; it is on disk within SyncEvery.
func (s *Store) PutContainer(r *Container) error { return ErrInvalid }

// PutSpec stores the container's OCI spec beside its record. It is read for inspect and exec, not kept in memory.
func (s *Store) PutSpec(id string, spec json.RawMessage) error { return ErrInvalid }

// Spec reads the container's OCI spec.
func (s *Store) Spec(id string) (json.RawMessage, error) { return nil, ErrInvalid }

// DeleteSandbox removes the record; an absent one is no error.
func (s *Store) DeleteSandbox(id string) error { return ErrInvalid }

// DeleteContainer removes the record and its spec; an absent one is no error.
func (s *Store) DeleteContainer(id string) error { return ErrInvalid }

// Close syncs what is pending and ends the background goroutine.
func (s *Store) Close() error { return nil }

// NewID makes a random id: 64 hexadecimal digits.
func NewID() string { return "" }

// ValidID says whether id has the form NewID gives.
func ValidID(id string) bool { return false }
