package export

import (
	"sync"
	"sync/atomic"
	"time"
)

// budget bounds the bytes in flight of the whole server. Each connection has a floor of its
// own that nobody can take from it; what does not fit there comes from a pool that all share,
// first come first served. So a client that takes no replies holds at most the pool, and the
// small reads of all others go on.
type budget struct {
	floor int64            // immutable; of each connection
	total int64            // immutable; of the pool
	stall time.Duration    // immutable
	clock func() time.Time // immutable

	mu     sync.Mutex
	free   int64    // guarded by mu; of the pool
	queue  []*share // guarded by mu; who waits for the pool, oldest first
	window window   // guarded by mu; of each connection
}

func newBudget(total, floor int64, stall time.Duration) *budget {
	return &budget{floor: floor, total: total, free: total, stall: stall, clock: time.Now}
}

// charge is what one read holds, in bytes: of its connection's floor or of the pool.
type charge struct {
	own, pool int64
}

func (c *charge) add(d charge) { c.own += d.own; c.pool += d.pool }

// share is one connection's part of the budget. take is for one goroutine at a time, give for
// any.
type share struct {
	b       *budget       // immutable
	granted chan struct{} // immutable; of capacity 1: want was granted as grant
	own     atomic.Int64  // bytes of the floor in use
	waiting atomic.Bool   // set while in b.queue; tells give to look there

	// guarded by b.mu
	pool   int64 // bytes of the pool in use
	want   int64
	grant  charge
	closed bool
}

func (b *budget) newShare() *share { return &share{b: b, granted: make(chan struct{}, 1)} }

// tryOwn takes n bytes of the floor if they are free.
func (s *share) tryOwn(n int64) bool {
	for {
		used := s.own.Load()
		if used+n > s.b.floor {
			return false
		}
		if s.own.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

// tryPool takes n bytes of the pool if they are free. A read longer than the pool takes all
// of it. b.mu must be held.
func (s *share) tryPool(n int64) bool {
	n = min(n, s.b.total)
	if s.b.free < n || !s.mayHold(n) {
		return false
	}
	s.b.free -= n
	s.pool += n
	return true
}

// mayHold tells whether the connection's own bound allows n more bytes. b.mu must be held.
func (s *share) mayHold(n int64) bool { return s.pool == 0 || s.pool+n <= max(s.b.window.bytes(), 2*n) }

// try charges n bytes without waiting, and never past others who wait for the pool.
func (s *share) try(n int64) (charge, bool) {
	if s.tryOwn(n) {
		return charge{own: n}, true
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if len(s.b.queue) == 0 && s.tryPool(n) {
		return charge{pool: min(n, s.b.total)}, true
	}
	return charge{}, false
}

// take charges n bytes, waiting for them if need be. While it waits it calls stalled from
// time to time, so that whoever holds the pool and does not move can be found. It returns
// false when stop is closed first.
func (s *share) take(n int64, stop <-chan struct{}, stalled func()) (charge, bool) {
	if c, ok := s.try(n); ok {
		return c, true
	}
	s.enqueue(n)
	tick := time.NewTicker(max(s.b.stall/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-s.granted:
			return s.grant, true
		case <-tick.C:
			stalled()
		case <-stop:
			s.withdraw()
			return charge{}, false
		}
	}
}

func (s *share) enqueue(n int64) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.want = n
	s.b.queue = append(s.b.queue, s)
	// In this order: a give that comes before the flag is seen by serve, one behind it serves.
	s.waiting.Store(true)
	s.b.serve()
}

// withdraw leaves the queue, or gives back what was granted meanwhile.
func (s *share) withdraw() {
	s.b.mu.Lock()
	for i, w := range s.b.queue {
		if w == s {
			s.b.queue = append(s.b.queue[:i], s.b.queue[i+1:]...)
			break
		}
	}
	s.waiting.Store(false)
	s.b.serve()
	s.b.mu.Unlock()
	select {
	case <-s.granted:
		s.give(s.grant)
	default:
	}
}

// give returns what take charged.
func (s *share) give(c charge) {
	s.own.Add(-c.own)
	if c.pool == 0 && !s.waiting.Load() {
		return
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if !s.closed {
		s.pool -= c.pool
		s.b.free += c.pool
		s.b.window.add(c.pool, s.b.clock)
	}
	s.b.serve()
	if s.b.free == s.b.total && s.own.Load() == 0 {
		s.b.window.idle()
	}
}

// close gives the pool back all that is still charged. What is given later counts no more:
// a File that loses reads must not shrink the pool for ever.
func (s *share) close() {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.closed = true
	s.b.free += s.pool
	s.pool = 0
	s.b.serve()
}

// inPool returns the bytes of the pool that the connection holds.
func (s *share) inPool() int64 {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	return s.pool
}

// serve grants what has become free, the oldest first. One whose own floor has room takes
// nothing from the pool and need not wait his turn; one at his own connection's bound does
// not hold up those behind him. b.mu must be held.
func (b *budget) serve() {
	kept := b.queue[:0]
	blocked := false
	for _, s := range b.queue {
		switch {
		case s.tryOwn(s.want):
			s.wake(charge{own: s.want})
		case !blocked && s.tryPool(s.want):
			s.wake(charge{pool: min(s.want, b.total)})
		default:
			blocked = blocked || s.mayHold(min(s.want, b.total))
			kept = append(kept, s)
		}
	}
	clear(b.queue[len(kept):])
	b.queue = kept
}

// wake tells the waiting take. b.mu must be held.
func (s *share) wake(c charge) {
	s.grant = c
	s.waiting.Store(false)
	s.granted <- struct{}{}
}
