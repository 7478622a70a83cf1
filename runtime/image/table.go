package image

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is one image as callers see it. ID is the digest of the config of the
// platform that was chosen ("sha256:..."), the same wherever an image is named.
type Image struct {
	ID          string
	RepoTags    []string
	RepoDigests []string
	// SizeBytes is what a registry transfers: manifest, config, packed layers.
	SizeBytes uint64
	// Config is the image author's text, bounded and free of NUL bytes.
	Config    ocispec.ImageConfig
	Pinned    bool
	Digest    string // of the chosen platform's manifest
	CreatedAt time.Time
}

// entry is what the store knows of one image id. It never changes once made.
type entry struct {
	id        string
	manifest  digest.Digest
	sizeBytes int64
	config    ocispec.ImageConfig
	createdAt time.Time
	layers    []string // overlay lower directories, topmost first
}

// record is one name on disk. A name that is an id stands for an image
// without any other name, such as a loaded archive's.
type record struct {
	name   string
	id     string
	target ocispec.Descriptor // index or manifest that the name resolved to
}

// table is the store's memory: every question is answered from here.
//
//	visible:  some name refers to the image; Get and List show it
//	detached: no name is left, but containers hold it; only Held shows it
type table struct {
	pinned  map[string]bool
	catalog atomic.Pointer[catalog]

	// mu guards entries, records and holders.
	mu      sync.Mutex
	entries map[string]*entry
	records map[string]record
	holders map[string]string // holder to image id
}

// catalog is the part of the table that readers use without a lock; a change
// replaces the whole of it.
type catalog struct {
	images []Image        // by id
	byID   map[string]int // index into images
	byName map[string]int
}

func newTable(pinned []string) (*table, error) {
	t := &table{
		pinned:  map[string]bool{},
		entries: map[string]*entry{},
		records: map[string]record{},
		holders: map[string]string{},
	}
	for _, name := range pinned {
		ref, err := ParseReference(name)
		if err != nil {
			return nil, fmt.Errorf("pinned image: %w", err)
		}
		t.pinned[ref.String()] = true
	}
	t.catalog.Store(&catalog{})
	return t, nil
}

// publish makes an image visible under the records' names, which it takes
// from whatever had them.
func (t *table) publish(e *entry, records []record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries[e.id] = e
	for _, r := range records {
		t.records[r.name] = r
	}
	t.refreshLocked()
}

// attach adds images and names found at start, without a rebuild for each.
func (t *table) attach(entries []*entry, records []record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range entries {
		t.entries[e.id] = e
	}
	for _, r := range records {
		t.records[r.name] = r
	}
	t.refreshLocked()
}

// drop takes names away.
func (t *table) drop(names []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range names {
		delete(t.records, name)
	}
	t.refreshLocked()
}

// takeUnused forgets the images that neither a name nor a container refers to
// and returns their ids, so that the caller can drop what is on disk.
func (t *table) takeUnused() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	used := map[string]bool{}
	for _, r := range t.records {
		used[r.id] = true
	}
	for _, id := range t.holders {
		used[id] = true
	}
	var unused []string
	for id := range t.entries {
		if !used[id] {
			unused = append(unused, id)
			delete(t.entries, id)
		}
	}
	return unused
}

func (t *table) hold(id, holder string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.entries[id] == nil {
		return fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	if other := t.holders[holder]; other != "" && other != id {
		return fmt.Errorf("hold image %s: %s already holds image %s", id, holder, other)
	}
	t.holders[holder] = id
	return nil
}

func (t *table) release(holder string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.holders, holder)
}

// entry returns an image by its whole id, visible or detached.
func (t *table) entry(id string) *entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.entries[id]
}

func (t *table) refreshLocked() {
	names := map[string][]record{}
	for _, r := range t.records {
		names[r.id] = append(names[r.id], r)
	}
	c := &catalog{byID: map[string]int{}, byName: map[string]int{}}
	for _, id := range slices.Sorted(maps.Keys(names)) {
		img := t.describe(t.entries[id], names[id])
		c.byID[id] = len(c.images)
		for _, name := range slices.Concat(img.RepoTags, img.RepoDigests) {
			c.byName[name] = len(c.images)
		}
		c.images = append(c.images, img)
	}
	t.catalog.Store(c)
}

// describe derives the digests an image answers to from its tags too: what a
// tag resolved to is the same content.
func (t *table) describe(e *entry, records []record) Image {
	img := Image{
		ID: e.id, SizeBytes: uint64(e.sizeBytes), Config: e.config,
		Digest: e.manifest.String(), CreatedAt: e.createdAt,
	}
	for _, r := range records {
		if strings.HasPrefix(r.name, idPrefix) {
			continue
		}
		name, _, isDigest := strings.Cut(r.name, "@")
		if !isDigest {
			img.RepoTags = append(img.RepoTags, r.name)
			name = name[:strings.LastIndexByte(name, ':')]
		}
		img.RepoDigests = append(img.RepoDigests, name+"@"+r.target.Digest.String())
		img.Pinned = img.Pinned || t.pinned[r.name]
	}
	sort.Strings(img.RepoTags)
	sort.Strings(img.RepoDigests)
	img.RepoDigests = slices.Compact(img.RepoDigests)
	return img
}

// find answers a reference, an id or the beginning of one (B41).
func (c *catalog) find(text string) (Image, error) {
	hex, isID := parseID(text)
	if !strings.HasPrefix(text, idPrefix) {
		ref, err := ParseReference(text)
		if err == nil {
			if i, found := c.byName[ref.String()]; found {
				return c.images[i].clone(), nil
			}
		}
		if !isID {
			if err != nil {
				return Image{}, err
			}
			return Image{}, fmt.Errorf("%w: %s", ErrNotFound, ref)
		}
	} else if !isID {
		return Image{}, fmt.Errorf("%w: %.80q is no image id", ErrInvalidReference, text)
	}
	if i, found := c.byID[idPrefix+hex]; found {
		return c.images[i].clone(), nil
	}
	// Ids are sorted, so those that share a prefix are neighbours.
	i := sort.Search(len(c.images), func(i int) bool { return c.images[i].ID >= idPrefix+hex })
	if i == len(c.images) || !strings.HasPrefix(c.images[i].ID, idPrefix+hex) {
		return Image{}, fmt.Errorf("%w: %s", ErrNotFound, text)
	}
	if i+1 < len(c.images) && strings.HasPrefix(c.images[i+1].ID, idPrefix+hex) {
		return Image{}, fmt.Errorf("%w: %s", ErrAmbiguous, text)
	}
	return c.images[i].clone(), nil
}

func (img Image) clone() Image {
	img.RepoTags = slices.Clone(img.RepoTags)
	img.RepoDigests = slices.Clone(img.RepoDigests)
	img.Config = cloneConfig(img.Config)
	return img
}

// doomed lists the names that a removal of text takes: by id all of them; by
// tag that tag, by digest every name of that repository for that content; all
// of them where no tag or digest of a repository would be left.
func (t *table) doomed(text string) ([]string, error) {
	img, err := t.catalog.Load().find(text)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var all, chosen, tagsLeft []string
	ref, refErr := ParseReference(text)
	for name, r := range t.records {
		if r.id != img.ID {
			continue
		}
		all = append(all, name)
		sameRepo := strings.HasPrefix(name, ref.Name+":") || strings.HasPrefix(name, ref.Name+"@")
		switch {
		case refErr == nil && ref.Tag != "" && name == ref.String(),
			refErr == nil && ref.Digest != "" && sameRepo && r.target.Digest == ref.Digest:
			chosen = append(chosen, name)
		case !strings.Contains(name, "@") && !strings.HasPrefix(name, idPrefix), ref.Digest != "":
			tagsLeft = append(tagsLeft, name)
		}
	}
	if len(chosen) == 0 || len(tagsLeft) == 0 {
		return all, nil
	}
	return chosen, nil
}
