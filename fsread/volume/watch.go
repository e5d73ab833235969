package volume

import (
	"sync"
	"time"
)

// ticks is how often the watch looks while a slow read becomes late.
const ticks = 8

// watch knows the requests that have another copy to ask, and wakes those whose devices take too long.
type watch struct {
	limit   time.Duration // immutable, as members; 0: nobody is watched
	members []*member

	mu    sync.Mutex
	first *Request // guarded by mu, as all below; linked by watched
	tick  int      // counts looks
	armed bool     // a timer runs
}

// watched links a request into the list of its volume's watch. All of it is guarded by watch.mu.
type watched struct {
	next, prev *Request
	in         bool
	since      int // the tick when its round began
}

// add watches r from now on, or anew for another round.
func (w *watch) add(r *Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.watched.since = w.tick
	if !r.watched.in {
		r.watched.in, r.watched.prev, r.watched.next = true, nil, w.first
		if w.first != nil {
			w.first.watched.prev = r
		}
		w.first = r
	}
	w.arm()
}

// arm sets the timer as long as anybody is watched.
func (w *watch) arm() {
	if !w.armed && w.first != nil {
		w.armed = true
		time.AfterFunc(w.limit/ticks, w.look)
	}
}

func (w *watch) remove(r *Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := &r.watched
	if !x.in {
		return
	}
	if x.prev != nil {
		x.prev.watched.next = x.next
	} else {
		w.first = x.next
	}
	if x.next != nil {
		x.next.watched.prev = x.prev
	}
	*x = watched{}
}

// look runs when the timer fires: it gives up the reads that took too long. No timer runs while nobody is watched.
func (w *watch) look() {
	now := time.Now()
	var late []*Request
	w.mu.Lock()
	w.tick++
	for _, m := range w.members {
		if n := m.ends.Load(); n != m.seen || m.seenAt.IsZero() {
			m.seen, m.seenAt = n, now
		}
	}
	for r := w.first; r != nil; r = r.watched.next {
		if w.tick-r.watched.since > ticks && r.hold() {
			late = append(late, r)
		}
	}
	stuck := w.stuck(now)
	w.armed = false
	w.arm()
	w.mu.Unlock()
	for _, r := range late {
		r.giveUp(true, func(x *run) bool { return x.overdue(now, w.limit, stuck) })
		r.release()
	}
}

// stuck gives the devices that ended no read at all for as long as one may take.
func (w *watch) stuck(now time.Time) map[*member]bool {
	out := make(map[*member]bool)
	for _, m := range w.members {
		if now.Sub(m.seenAt) >= w.limit {
			out[m] = true
		}
	}
	return out
}

// hold keeps the round that is under way from ending until release; false when none is.
func (r *Request) hold() bool {
	for {
		n := r.pending.Load()
		if n == 0 {
			return false
		}
		if r.pending.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// overdue says whether the device has had the read for longer than limit; of one that waits behind others,
// whether the device is stuck.
func (x *run) overdue(now time.Time, limit time.Duration, stuck map[*member]bool) bool {
	if at, started := x.read.Started(); started {
		return now.Sub(at) >= limit
	}
	return stuck[x.m]
}
