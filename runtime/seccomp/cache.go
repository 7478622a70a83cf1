package seccomp

import (
	"container/list"
	"sync"
)

type digest [32]byte

// cache keeps the most recently used values. The first asker of a key makes the
// value, the others wait for it. Errors are returned to who waited and not kept.
type cache[V any] struct {
	limit int

	// mu guards order and entries.
	mu      sync.Mutex
	order   *list.List // of *entry[V], most recently used first
	entries map[digest]*list.Element
}

type entry[V any] struct {
	key   digest
	once  sync.Once
	value V
	err   error
}

func newCache[V any](limit int) *cache[V] {
	return &cache[V]{limit: limit, order: list.New(), entries: make(map[digest]*list.Element)}
}

func (c *cache[V]) get(key digest, build func() (V, error)) (V, error) {
	element := c.find(key)
	e := element.Value.(*entry[V])
	e.once.Do(func() {
		e.value, e.err = build()
		if e.err != nil {
			c.forget(key, element)
		}
	})
	return e.value, e.err
}

func (c *cache[V]) find(key digest) *list.Element {
	c.mu.Lock()
	defer c.mu.Unlock()
	if element, ok := c.entries[key]; ok {
		c.order.MoveToFront(element)
		return element
	}
	element := c.order.PushFront(&entry[V]{key: key})
	c.entries[key] = element
	for c.order.Len() > c.limit {
		oldest := c.order.Back()
		delete(c.entries, oldest.Value.(*entry[V]).key)
		c.order.Remove(oldest)
	}
	return element
}

// forget drops an entry unless its key has a new one by now.
func (c *cache[V]) forget(key digest, element *list.Element) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries[key] == element {
		delete(c.entries, key)
		c.order.Remove(element)
	}
}
