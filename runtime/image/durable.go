package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// labelUnsynced, on an image's config, names the boot in which its layers were
// unpacked, as long as they may not be on disk. Databases and blobs are
// written through at once, unpacked files by a background sync within seconds:
// after a power cut in between, the image would be there with empty files.
const labelUnsynced = "podwright.io/unsynced-boot"

var errUnsynced = errors.New("unpacked just before the machine went down, files may be missing")

// unsynced is the set of images whose layers may not be on disk yet.
type unsynced struct {
	bootID string

	// mu guards ids.
	mu  sync.Mutex
	ids map[string]bool
}

func newUnsynced(bootID string) (*unsynced, error) {
	if bootID == "" {
		data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, err
		}
		bootID = strings.TrimSpace(string(data))
	}
	return &unsynced{bootID: bootID, ids: map[string]bool{}}, nil
}

func (u *unsynced) add(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ids[id] = true
}

func (u *unsynced) take() map[string]bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	taken := u.ids
	u.ids = map[string]bool{}
	return taken
}

// sync writes through what was unpacked since the last time.
func (s *Store) sync(ctx context.Context) {
	ids := s.unsynced.take()
	if len(ids) == 0 {
		return
	}
	err := s.syncDisk()
	for id := range ids {
		if err == nil {
			err = s.label(ctx, digest.Digest(id), map[string]string{labelUnsynced: ""})
		}
		if errdefs.IsNotFound(err) {
			err = nil // removed meanwhile
		}
		if err != nil {
			s.unsynced.add(id)
		}
	}
	if err != nil && ctx.Err() == nil {
		klog.FromContext(ctx).Error(err, "Sync image layers", "path", s.root)
	}
}

func (s *Store) syncDisk() error {
	root, err := os.Open(s.root)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", s.root, err)
	}
	return nil
}
