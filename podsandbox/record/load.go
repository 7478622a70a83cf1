package record

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

// Load reads every record. One that cannot be used is listed and stays where it is (B14); a directory in which a
// creation or a removal was cut short has none and is cleared away.
func (s *Store) Load() (Loaded, error) {
	var all Loaded
	err := s.each(sandboxDir, "sandbox", &all.Bad, func(id string, b []byte) error {
		r, err := decodeSandbox(b)
		if err = sameID(err, id, r.ID); err == nil {
			all.Sandboxes = append(all.Sandboxes, r)
		}
		return err
	})
	if err != nil {
		return Loaded{}, err
	}
	err = s.each(containerDir, "container", &all.Bad, func(id string, b []byte) error {
		r, err := decodeContainer(b)
		if err = sameID(err, id, r.ID); err == nil {
			all.Containers = append(all.Containers, r)
		}
		return err
	})
	if err != nil {
		return Loaded{}, err
	}
	return all, nil
}

func sameID(err error, directory, inside string) error {
	if err == nil && directory != inside {
		return fmt.Errorf("holds the record of %s: %w", inside, ErrInvalid)
	}
	return err
}

func (s *Store) each(kind, called string, bad *[]Bad, take func(id string, b []byte) error) error {
	entries, err := fs.ReadDir(s.root.FS(), kind)
	if err != nil {
		return fmt.Errorf("load records: %w", err)
	}
	for _, entry := range entries {
		dir := filepath.Join(kind, entry.Name())
		err := fmt.Errorf("no id: %w", ErrInvalid)
		if ValidID(entry.Name()) {
			err = newestWhole(s.root, dir, recordFile, func(b []byte) error { return take(entry.Name(), b) })
			if errors.Is(err, fs.ErrNotExist) {
				err = s.remove(kind, entry.Name())
			}
		}
		if err != nil {
			*bad = append(*bad, Bad{ID: entry.Name(), Kind: called, Path: s.path(dir), Err: err})
		}
	}
	return nil
}

func (s *Store) path(name string) string { return filepath.Join(s.root.Name(), name) }
