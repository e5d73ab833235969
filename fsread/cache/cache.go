// Package cache keeps values up to a bound in bytes, by S3-FIFO: a small queue that new entries pass
// through, a main queue for those that were asked for again, and a memory of the keys that left the
// small queue unasked. One long scan therefore does not drive out what is in use.
// See Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
//
// A value that was evicted may still be in use by who got it: values are immutable and collected by Go.
package cache

import (
	"container/list"
	"hash/maphash"
	"sync"
)

const shards = 16

// entryOverhead is what an entry costs beside its value: list element, map slot, key. Bytes.
const entryOverhead = 200

// Cache is bounded in bytes, over all shards. It may be used concurrently.
type Cache[K comparable, V any] struct {
	seed   maphash.Seed
	shards [shards]shard[K, V]
}

type shard[K comparable, V any] struct {
	mu          sync.Mutex
	limit       int64 // immutable
	bytes       int64 // guarded by mu, as all below
	smallBytes  int64
	entries     map[K]*list.Element
	small, main list.List // of *entry, oldest in front
	ghosts      map[K]*list.Element
	ghost       list.List // of K
}

type entry[K comparable, V any] struct {
	key   K
	value V
	cost  int64
	freq  uint8 // times asked for, up to 3
	main  bool
}

// New makes a cache that holds at most limit bytes, overhead of its own included.
func New[K comparable, V any](limit int64) *Cache[K, V] {
	c := &Cache[K, V]{seed: maphash.MakeSeed()}
	for i := range c.shards {
		s := &c.shards[i]
		s.limit = limit / shards
		s.entries = make(map[K]*list.Element)
		s.ghosts = make(map[K]*list.Element)
	}
	return c
}

func (c *Cache[K, V]) shard(k K) *shard[K, V] {
	return &c.shards[maphash.Comparable(c.seed, k)%shards]
}

// Get gives the value kept under k.
func (c *Cache[K, V]) Get(k K) (V, bool) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	el, ok := s.entries[k]
	if !ok {
		var zero V
		return zero, false
	}
	e := el.Value.(*entry[K, V])
	e.freq = min(e.freq+1, 3)
	return e.value, true
}

// Put keeps v, of size bytes, under k, in place of what was there. A value larger than a shard is not kept.
func (c *Cache[K, V]) Put(k K, v V, size int) {
	s := c.shard(k)
	cost := int64(size) + entryOverhead
	s.mu.Lock()
	defer s.mu.Unlock()
	if el, ok := s.entries[k]; ok {
		s.remove(el)
	}
	if cost > s.limit {
		return
	}
	for s.bytes+cost > s.limit {
		s.evict()
	}
	e := &entry[K, V]{key: k, value: v, cost: cost}
	q := &s.small
	if g, ok := s.ghosts[k]; ok {
		s.ghost.Remove(g)
		delete(s.ghosts, k)
		e.main, q = true, &s.main
	} else {
		s.smallBytes += cost
	}
	s.bytes += cost
	s.entries[k] = q.PushBack(e)
}

// Bytes is what the cache holds now, overhead included.
func (c *Cache[K, V]) Bytes() int64 {
	var n int64
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		n += s.bytes
		s.mu.Unlock()
	}
	return n
}

// evict takes one step towards room: the small queue gives while it holds a tenth of the limit.
func (s *shard[K, V]) evict() {
	if s.small.Len() > 0 && (s.smallBytes > s.limit/10 || s.main.Len() == 0) {
		s.evictSmall()
		return
	}
	el := s.main.Front()
	e := el.Value.(*entry[K, V])
	if e.freq > 0 {
		e.freq--
		s.main.MoveToBack(el)
		return
	}
	s.remove(el)
}

// evictSmall moves the oldest to the main queue when it was asked for, else remembers its key alone.
func (s *shard[K, V]) evictSmall() {
	el := s.small.Front()
	e := el.Value.(*entry[K, V])
	if e.freq > 0 {
		s.small.Remove(el)
		s.smallBytes -= e.cost
		e.freq, e.main = 0, true
		s.entries[e.key] = s.main.PushBack(e)
		return
	}
	s.remove(el)
	s.ghosts[e.key] = s.ghost.PushBack(e.key)
	for s.ghost.Len() > len(s.entries)+16 {
		old := s.ghost.Front()
		delete(s.ghosts, s.ghost.Remove(old).(K))
	}
}

func (s *shard[K, V]) remove(el *list.Element) {
	e := el.Value.(*entry[K, V])
	if e.main {
		s.main.Remove(el)
	} else {
		s.small.Remove(el)
		s.smallBytes -= e.cost
	}
	s.bytes -= e.cost
	delete(s.entries, e.key)
}
