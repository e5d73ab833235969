package volume

import (
	"sync"
	"time"
)

// watch knows the requests that have another copy to ask, and wakes those whose devices take too long.
type watch struct {
	limit time.Duration // immutable; 0: nobody is watched

	mu    sync.Mutex
	first *Request // guarded by mu, as all below; linked by watched
	armed bool     // a timer runs
}

// watched links a request into the list of its volume's watch. All of it is guarded by watch.mu.
type watched struct {
	next, prev *Request
	in         bool
	since      time.Time // when its round began
}

// add watches r from now on, or anew for another round.
func (w *watch) add(r *Request) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	r.watched.since = now
	if !r.watched.in {
		r.watched.in, r.watched.prev, r.watched.next = true, nil, w.first
		if w.first != nil {
			w.first.watched.prev = r
		}
		w.first = r
	}
	if !w.armed {
		w.armed = true
		time.AfterFunc(w.limit, w.look)
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

// look runs when the timer fires: it gives up the reads that took too long, and sets the timer for the next
// that may. No timer runs while nobody is watched, and none keeps a volume from being forgotten for long.
func (w *watch) look() {
	now := time.Now()
	var late []*Request
	w.mu.Lock()
	next := w.limit
	for r := w.first; r != nil; r = r.watched.next {
		left := w.limit - now.Sub(r.watched.since)
		if left <= 0 {
			left = w.limit / 8 // some of its reads may only have waited for others: they are looked at again
			if r.hold() {
				late = append(late, r)
			}
		}
		next = min(next, max(left, w.limit/16))
	}
	if w.armed = w.first != nil; w.armed {
		time.AfterFunc(next, w.look)
	}
	w.mu.Unlock()
	for _, r := range late {
		r.giveUp(true, func(x *run) bool { return x.overdue(now, w.limit) })
		r.release()
	}
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
// whether the device delivered nothing at all for as long.
func (x *run) overdue(now time.Time, limit time.Duration) bool {
	at, started := x.read.Started()
	if started {
		return now.Sub(at) >= limit
	}
	return now.UnixNano()-x.m.lastDone.Load() >= int64(limit)
}
