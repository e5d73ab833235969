// Package cache keeps values up to a bound in bytes, by S3-FIFO: a small queue that new entries pass
// through, a main queue for those that were asked for again, and a memory of the keys that left the
// small queue unasked. One long scan therefore does not drive out what is in use.
// See Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
//
// Values are immutable. One that was evicted may still be in use by who got it: values that Go collects
// need no more care, others are counted (NewCounted).
package cache

import (
	"hash/maphash"
	"sync"
)

const shards = 16

// entryOverhead is what an entry costs beside its value: entry, map slot, remembered key. Bytes.
const entryOverhead = 200

// Cache is bounded in bytes, over all shards. It may be used concurrently. An entry's place is used again
// for another, so that a full cache allocates next to nothing.
type Cache[K comparable, V any] struct {
	seed            maphash.Seed
	retain, release func(V) // nil: values are not counted
	shards          [shards]shard[K, V]
}

type shard[K comparable, V any] struct {
	mu          sync.Mutex
	limit       int64 // immutable
	bytes       int64 // guarded by mu, as all below
	smallBytes  int64
	entries     map[K]*entry[K, V]
	small, main queue[K, V]
	ghosts      map[K]uint64 // keys that left the small queue unasked, and when
	ghostOrder  []ghost[K]   // from ghostHead on, oldest first; some no longer in ghosts
	ghostHead   int
	clock       uint64
	spare       *entry[K, V] // linked by next
}

type ghost[K comparable] struct {
	key K
	at  uint64
}

type entry[K comparable, V any] struct {
	key        K
	value      V
	cost       int64
	freq       uint8 // times asked for, up to 3
	main       bool
	prev, next *entry[K, V]
}

// queue is a list of entries, oldest first.
type queue[K comparable, V any] struct {
	first, last *entry[K, V]
}

func (q *queue[K, V]) push(e *entry[K, V]) {
	e.prev, e.next = q.last, nil
	if q.last != nil {
		q.last.next = e
	} else {
		q.first = e
	}
	q.last = e
}

func (q *queue[K, V]) remove(e *entry[K, V]) {
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		q.first = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		q.last = e.prev
	}
	e.prev, e.next = nil, nil
}

// New makes a cache that holds at most limit bytes, overhead of its own included.
func New[K comparable, V any](limit int64) *Cache[K, V] {
	return NewCounted[K, V](limit, nil, nil)
}

// NewCounted makes a cache of values that are counted: retain is called for each value that Put takes and
// for each that Get gives, release for each that the cache lets go. Who gets a value releases it.
func NewCounted[K comparable, V any](limit int64, retain, release func(V)) *Cache[K, V] {
	c := &Cache[K, V]{seed: maphash.MakeSeed(), retain: retain, release: release}
	for i := range c.shards {
		s := &c.shards[i]
		s.limit = limit / shards
		s.entries = make(map[K]*entry[K, V])
		s.ghosts = make(map[K]uint64)
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
	e, ok := s.entries[k]
	if !ok {
		var zero V
		return zero, false
	}
	e.freq = min(e.freq+1, 3)
	if c.retain != nil {
		c.retain(e.value)
	}
	return e.value, true
}

// Put keeps v, of size bytes, under k, in place of what was there. A value larger than a shard is not kept.
func (c *Cache[K, V]) Put(k K, v V, size int) {
	s := c.shard(k)
	cost := int64(size) + entryOverhead
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.entries[k]; ok {
		c.remove(s, e)
	}
	if cost > s.limit {
		return
	}
	for s.bytes+cost > s.limit {
		c.evict(s)
	}
	if c.retain != nil {
		c.retain(v)
	}
	e := s.spare
	if e == nil {
		e = &entry[K, V]{}
	} else {
		s.spare = e.next
	}
	*e = entry[K, V]{key: k, value: v, cost: cost}
	if _, e.main = s.ghosts[k]; e.main {
		delete(s.ghosts, k)
		s.main.push(e)
	} else {
		s.small.push(e)
		s.smallBytes += cost
	}
	s.bytes += cost
	s.entries[k] = e
}

// Clear lets every value go.
func (c *Cache[K, V]) Clear() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for _, e := range s.entries {
			c.remove(s, e)
		}
		s.mu.Unlock()
	}
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

// evict takes one step towards room: the small queue gives while it holds a tenth of the limit. s.mu is held,
// as in all below.
func (c *Cache[K, V]) evict(s *shard[K, V]) {
	if s.small.first != nil && (s.smallBytes > s.limit/10 || s.main.first == nil) {
		c.evictSmall(s)
		return
	}
	e := s.main.first
	if e.freq > 0 {
		e.freq--
		s.main.remove(e)
		s.main.push(e)
		return
	}
	c.remove(s, e)
}

// evictSmall moves the oldest to the main queue when it was asked for, else remembers its key alone.
func (c *Cache[K, V]) evictSmall(s *shard[K, V]) {
	e := s.small.first
	if e.freq > 0 {
		s.small.remove(e)
		s.smallBytes -= e.cost
		e.freq, e.main = 0, true
		s.main.push(e)
		return
	}
	s.remember(e.key)
	c.remove(s, e)
}

// remember keeps as many keys as there are entries.
func (s *shard[K, V]) remember(k K) {
	s.clock++
	s.ghosts[k] = s.clock
	s.ghostOrder = append(s.ghostOrder, ghost[K]{k, s.clock})
	for ; len(s.ghostOrder)-s.ghostHead > len(s.entries)+16; s.ghostHead++ {
		if g := s.ghostOrder[s.ghostHead]; s.ghosts[g.key] == g.at {
			delete(s.ghosts, g.key)
		}
	}
	if s.ghostHead > len(s.ghostOrder)/2 {
		s.ghostOrder = s.ghostOrder[:copy(s.ghostOrder, s.ghostOrder[s.ghostHead:])]
		s.ghostHead = 0
	}
}

// remove lets an entry go; its place is kept for another.
func (c *Cache[K, V]) remove(s *shard[K, V], e *entry[K, V]) {
	if e.main {
		s.main.remove(e)
	} else {
		s.small.remove(e)
		s.smallBytes -= e.cost
	}
	s.bytes -= e.cost
	delete(s.entries, e.key)
	if c.release != nil {
		c.release(e.value)
	}
	*e = entry[K, V]{next: s.spare}
	s.spare = e
}
