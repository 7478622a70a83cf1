package record

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// syncer makes changes durable some time after they were made, so that no request waits for a disk. It syncs the
// records' own files and directories, not the file system: that one may hold gigabytes that workloads are writing.
type syncer struct {
	root  *os.Root
	every time.Duration
	wake  chan struct{} // one slot: something is dirty
	done  chan struct{} // closed by stop
	once  sync.Once
	ended sync.WaitGroup

	mu    sync.Mutex          // mu guards dirty.
	dirty map[string]struct{} // directories of objects changed since the last sync
	last  error               // of the final sync; run's until ended
}

func startSyncer(root *os.Root, every time.Duration) *syncer {
	s := &syncer{root: root, every: every, wake: make(chan struct{}, 1), done: make(chan struct{}), dirty: map[string]struct{}{}}
	s.ended.Add(1)
	go s.run() // owned by the Store, ends when done is closed, stop waits for it
	return s
}

// changed notes that the object's directory has new content, or is gone.
func (s *syncer) changed(dir string) {
	s.mu.Lock()
	s.dirty[dir] = struct{}{}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run waits for a change, lets others gather, then syncs. An error shows again, and is reported, at Close; until then
// the records in the page cache serve.
func (s *syncer) run() {
	defer s.ended.Done()
	for {
		select {
		case <-s.wake:
		case <-s.done:
			s.last = s.flush()
			return
		}
		gather := time.NewTimer(s.every)
		select {
		case <-gather.C:
			if err := s.flush(); err != nil {
				s.retry()
			}
		case <-s.done:
			gather.Stop()
			s.last = s.flush()
			return
		}
	}
}

// retry has the next round begin by itself; flush has put back what failed.
func (s *syncer) retry() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// flush syncs the newest files first, then the directories that name them; only then do older generations go. The
// directories of each kind come last: they hold the names of new objects and no longer those of removed ones.
func (s *syncer) flush() error {
	s.mu.Lock()
	dirty := s.dirty
	s.dirty = map[string]struct{}{}
	s.mu.Unlock()
	var errs error
	parents := map[string]struct{}{}
	for dir := range dirty {
		parents[filepath.Dir(dir)] = struct{}{}
		err := s.flushObject(dir)
		s.putBack(dir, err)
		errs = errors.Join(errs, err)
	}
	for dir := range parents {
		errs = errors.Join(errs, s.fsync(dir))
	}
	return errs
}

func (s *syncer) flushObject(dir string) error {
	newest := map[string]uint64{}
	for file, generations := range listGenerations(s.root, dir) {
		newest[file] = generations[0]
		if err := s.fsync(filepath.Join(dir, generationName(file, generations[0]))); err != nil {
			return err
		}
	}
	if err := s.fsync(dir); err != nil {
		return err
	}
	var errs error
	for file, generation := range newest {
		errs = errors.Join(errs, dropOlder(s.root, dir, file, generation))
	}
	return errs
}

func (s *syncer) putBack(dir string, err error) {
	if err == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty[dir] = struct{}{}
}

// fsync takes an absent file for removed meanwhile.
func (s *syncer) fsync(name string) error {
	f, err := s.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (s *syncer) stop() error {
	s.once.Do(func() {
		close(s.done)
		s.ended.Wait()
	})
	return s.last
}
