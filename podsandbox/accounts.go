package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/podwright/podwright/runtime/mounts"
)

// maxAccountBytes bounds what is read of an image's passwd and group: both are hostile (CVE-2026-47262).
const maxAccountBytes = 1 << 20

// cachedImages is how many images' accounts are kept; most are a kilobyte.
const cachedImages = 64

// accounts are an image's user data base, as it is in the layers; nil where the image has none.
type accounts struct{ passwd, group []byte }

// accountCache spares the hot path one overlay mount per created container.
type accountCache struct {
	mu     sync.Mutex // mu guards byID and oldest.
	byID   map[string]accounts
	oldest []string
}

func (c *accountCache) get(imageID string) (accounts, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.byID[imageID]
	return a, ok
}

func (c *accountCache) put(imageID string, a accounts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID == nil {
		c.byID = map[string]accounts{}
	}
	if _, ok := c.byID[imageID]; !ok {
		c.oldest = append(c.oldest, imageID)
	}
	c.byID[imageID] = a
	for len(c.oldest) > cachedImages {
		delete(c.byID, c.oldest[0])
		c.oldest = c.oldest[1:]
	}
}

// imageAccounts reads /etc/passwd and /etc/group through the image's stacked layers, resolved inside them.
func (m *containerManager) imageAccounts(ctx context.Context, imageID string, layers []string) (accounts, error) {
	if a, ok := m.accounts.get(imageID); ok {
		return a, nil
	}
	root, err := m.cfg.Mounts.Overlay(ctx, mounts.OverlaySource{Lower: layers, ReadOnly: true})
	if err != nil {
		return accounts{}, fmt.Errorf("open image %s: %w", imageID, err)
	}
	defer root.Close()
	var a accounts
	for path, to := range map[string]*[]byte{"/etc/passwd": &a.passwd, "/etc/group": &a.group} {
		*to, err = mounts.ReadFileInRoot(root, path, maxAccountBytes)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return accounts{}, kindf(ErrInvalid, "read %s of image %s: %w", path, imageID, err)
		}
	}
	m.accounts.put(imageID, a)
	return a, nil
}
