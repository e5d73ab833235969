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
	"sync/atomic"
)

// A cache has one shard for each shardBytes of its limit, but no more than maxShards: a value as large as a
// compressed extent shall be one of many in its shard.
const (
	maxShards  = 16
	shardBytes = 8 << 20
)

// entryOverhead is what an entry costs beside its value: entry, slots of the table, remembered key. Bytes.
const entryOverhead = 200

// bytesPerSlot is how much of the limit there is one slot of the table for: most values are larger, so that
// few share one.
const bytesPerSlot = 4 << 10

// Cache is bounded in bytes, over all shards. It may be used concurrently. Get takes no lock, unless values are
// counted; then an entry's place is used again for another, so that a full cache allocates next to nothing.
type Cache[K comparable, V any] struct {
	seed            maphash.Seed
	retain, release func(V)       // nil: values are not counted
	shards          []shard[K, V] // immutable
	hits            [hitLanes]lane
}

// hitLanes is a power of two: hits are counted in several places by their key, so that cores do not wait for one.
const hitLanes = 8

// lane is a count that has a cache line for itself.
type lane struct {
	n atomic.Uint64
	_ [56]byte
}

// shard finds its entries by a table of chains. Who changes one holds mu; without it a chain may be walked all the
// same: an entry that was taken out still leads to those behind it.
type shard[K comparable, V any] struct {
	table []atomic.Pointer[entry[K, V]] // a power of two

	mu          sync.Mutex
	limit       int64 // immutable
	bytes       int64 // guarded by mu, as all below
	smallBytes  int64
	count       int // entries
	evictions   uint64
	small, main queue[K, V]
	ghosts      map[K]uint64 // keys that left the small queue unasked, or were not admitted, and when
	ghostOrder  []ghost[K]   // from ghostHead on, oldest first; some no longer in ghosts
	ghostHead   int
	clock       uint64
	spare       *entry[K, V] // linked by next; of counted values only, whose chains nobody walks without mu
}

type ghost[K comparable] struct {
	key K
	at  uint64
}

type entry[K comparable, V any] struct {
	key   K // immutable while the entry is in a chain, as value
	value V
	chain atomic.Pointer[entry[K, V]]
	freq  atomic.Uint32 // times asked for, up to maxFreq; counts that meet may be lost

	slot       uint64 // of the table; guarded by mu, as all below
	cost       int64
	main       bool
	prev, next *entry[K, V]
}

const maxFreq = 3

// asked counts. An entry that is asked for all the time is not written to: its line stays in every core's cache.
func (e *entry[K, V]) asked() {
	if n := e.freq.Load(); n < maxFreq {
		e.freq.Store(n + 1)
	}
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
	c.shards = make([]shard[K, V], min(max(limit/shardBytes, 1), maxShards))
	n, slots := int64(len(c.shards)), 1
	for int64(slots)*n*bytesPerSlot < limit {
		slots *= 2
	}
	for i := range c.shards {
		s := &c.shards[i]
		s.limit = limit / n
		s.table = make([]atomic.Pointer[entry[K, V]], slots)
		s.ghosts = make(map[K]uint64)
	}
	return c
}

// place is where a key belongs.
func (c *Cache[K, V]) place(k K) (s *shard[K, V], slot uint64) {
	h, n := maphash.Comparable(c.seed, k), uint64(len(c.shards))
	s = &c.shards[h%n]
	return s, h / n % uint64(len(s.table))
}

func (s *shard[K, V]) find(slot uint64, k K) *entry[K, V] {
	e := s.table[slot].Load()
	for e != nil && e.key != k {
		e = e.chain.Load()
	}
	return e
}

// Get gives the value kept under k.
func (c *Cache[K, V]) Get(k K) (v V, ok bool) {
	s, slot := c.place(k)
	if c.retain != nil { // between finding and retaining nobody may release
		s.mu.Lock()
		defer s.mu.Unlock()
	}
	e := s.find(slot, k)
	if e == nil {
		return v, false
	}
	e.asked()
	c.hits[slot%hitLanes].n.Add(1)
	if c.retain != nil {
		c.retain(e.value)
	}
	return e.value, true
}

// Admit says whether a value of size bytes is worth keeping under k: there is room for it, or k was asked for not
// long ago. Otherwise it remembers that k was asked for.
func (c *Cache[K, V]) Admit(k K, size int) bool {
	s, _ := c.place(k)
	cost := int64(size) + entryOverhead
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes+cost <= s.limit {
		return true
	}
	if _, ok := s.ghosts[k]; ok {
		return cost <= s.limit
	}
	s.remember(k)
	return false
}

// Put keeps v, of size bytes, under k, in place of what was there. A value larger than a shard is not kept.
func (c *Cache[K, V]) Put(k K, v V, size int) {
	s, slot := c.place(k)
	cost := int64(size) + entryOverhead
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.find(slot, k); e != nil {
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
	e.key, e.value, e.cost, e.slot = k, v, cost, slot
	if _, e.main = s.ghosts[k]; e.main {
		delete(s.ghosts, k)
		s.main.push(e)
	} else {
		s.small.push(e)
		s.smallBytes += cost
	}
	s.bytes += cost
	s.count++
	e.chain.Store(s.table[slot].Load())
	s.table[slot].Store(e)
}

// Clear lets every value go.
func (c *Cache[K, V]) Clear() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for _, q := range []*queue[K, V]{&s.small, &s.main} {
			for q.first != nil {
				c.remove(s, q.first)
			}
		}
		s.mu.Unlock()
	}
}

// Stats is what a cache has counted since it was made, and what it holds now. What was not found its users count:
// they know whether it was asked for once or twice.
type Stats struct {
	Hits      uint64 // values that Get gave
	Evictions uint64 // values that gave way to others
	Bytes     int64  // held now, overhead included
}

// Stats gives the counts. Those of different shards are not of the same moment.
func (c *Cache[K, V]) Stats() Stats {
	var n Stats
	for i := range c.hits {
		n.Hits += c.hits[i].n.Load()
	}
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		n.Bytes += s.bytes
		n.Evictions += s.evictions
		s.mu.Unlock()
	}
	return n
}

// Bytes is what the cache holds now, overhead included.
func (c *Cache[K, V]) Bytes() int64 { return c.Stats().Bytes }

// evict takes one step towards room: the small queue gives while it holds a tenth of the limit. s.mu is held,
// as in all below.
func (c *Cache[K, V]) evict(s *shard[K, V]) {
	if s.small.first != nil && (s.smallBytes > s.limit/10 || s.main.first == nil) {
		c.evictSmall(s)
		return
	}
	e := s.main.first
	if n := e.freq.Load(); n > 0 {
		e.freq.Store(n - 1)
		s.main.remove(e)
		s.main.push(e)
		return
	}
	s.evictions++
	c.remove(s, e)
}

// evictSmall moves the oldest to the main queue when it was asked for, else remembers its key alone.
func (c *Cache[K, V]) evictSmall(s *shard[K, V]) {
	e := s.small.first
	if e.freq.Load() > 0 {
		s.small.remove(e)
		s.smallBytes -= e.cost
		e.freq.Store(0)
		e.main = true
		s.main.push(e)
		return
	}
	s.remember(e.key)
	s.evictions++
	c.remove(s, e)
}

// remember keeps as many keys as there are entries.
func (s *shard[K, V]) remember(k K) {
	s.clock++
	s.ghosts[k] = s.clock
	s.ghostOrder = append(s.ghostOrder, ghost[K]{k, s.clock})
	for ; len(s.ghostOrder)-s.ghostHead > s.count+16; s.ghostHead++ {
		if g := s.ghostOrder[s.ghostHead]; s.ghosts[g.key] == g.at {
			delete(s.ghosts, g.key)
		}
	}
	if s.ghostHead > len(s.ghostOrder)/2 {
		s.ghostOrder = s.ghostOrder[:copy(s.ghostOrder, s.ghostOrder[s.ghostHead:])]
		s.ghostHead = 0
	}
}

// remove lets an entry go; the place of a counted value is kept for another.
func (c *Cache[K, V]) remove(s *shard[K, V], e *entry[K, V]) {
	if e.main {
		s.main.remove(e)
	} else {
		s.small.remove(e)
		s.smallBytes -= e.cost
	}
	s.bytes -= e.cost
	s.count--
	s.unchain(e)
	if c.release != nil {
		c.release(e.value)
		*e = entry[K, V]{next: s.spare}
		s.spare = e
	}
}

// unchain takes e out of its chain. e itself goes on leading to what is behind it, for who stands on it.
func (s *shard[K, V]) unchain(e *entry[K, V]) {
	p := &s.table[e.slot]
	for p.Load() != e {
		p = &p.Load().chain
	}
	p.Store(e.chain.Load())
}
