package image

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
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

// trust looks at an image's label at start: synced, or still to be synced, or
// from a boot that ended before it was.
func (u *unsynced) trust(id, label string) error {
	switch label {
	case "":
	case u.bootID:
		u.add(id)
	default:
		return errUnsynced
	}
	return nil
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
	err := s.disk.syncDisk()
	for id := range ids {
		if err == nil {
			err = s.disk.label(ctx, digest.Digest(id), map[string]string{labelUnsynced: ""})
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
