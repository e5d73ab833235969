package volume

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ticks is how often the watch looks while a slow read becomes late.
const ticks = 8

// watchLists is how many lists the watched requests are spread over, so that connections do not wait for each other.
const watchLists = 16

// watch knows the requests that have another copy to ask, and wakes those whose devices take too long.
type watch struct {
	limit   time.Duration // immutable, as members; 0: nobody is watched
	members []*member
	lists   [watchLists]watchList
	turn    atomic.Uint32 // gives each batch its list
	tick    atomic.Int64  // counts looks
	armed   atomic.Bool   // a timer runs
}

// watchList is the requests of some batches.
type watchList struct {
	mu    sync.Mutex
	first *Request // guarded by mu; linked by watched
	_     [64]byte // another list's lock is not to be in the same cache line
}

// watched links a request into a list of its volume's watch. What follows list is guarded by the list's mu.
type watched struct {
	list       *watchList // nil: it is in none; the request's own
	next, prev *Request
	since      int64 // the tick when its round began
	held       bool  // by a look, which keeps it in its list
}

// pick gives a list to add requests to.
func (w *watch) pick() *watchList { return &w.lists[w.turn.Add(1)%watchLists] }

// add watches those of the requests that have another copy to ask, all from the same moment on. They are in no list, or in l.
func (w *watch) add(l *watchList, reqs ...*Request) {
	if w.limit == 0 || !slices.ContainsFunc(reqs, (*Request).hedged) {
		return
	}
	l.mu.Lock()
	for _, r := range reqs {
		if r.hedged() {
			r.watched.since = w.tick.Load()
			l.link(r)
		}
	}
	l.mu.Unlock()
	w.arm()
}

// again watches r anew for another round: in l, unless it is in a list.
func (w *watch) again(l *watchList, r *Request) {
	if r.watched.list != nil {
		l = r.watched.list
	}
	w.add(l, r)
}

// link puts r into the list, unless it is there. mu is held.
func (l *watchList) link(r *Request) {
	x := &r.watched
	if x.list != nil {
		return
	}
	x.list, x.prev, x.next = l, nil, l.first
	if l.first != nil {
		l.first.watched.prev = r
	}
	l.first = r
}

// arm sets the timer, if none runs.
func (w *watch) arm() {
	if !w.armed.Load() && w.armed.CompareAndSwap(false, true) {
		time.AfterFunc(w.limit/ticks, w.look)
	}
}

func (w *watch) remove(r *Request) {
	x := &r.watched
	if x.list == nil {
		return
	}
	x.list.mu.Lock()
	defer x.list.mu.Unlock()
	if x.prev != nil {
		x.prev.watched.next = x.next
	} else {
		x.list.first = x.next
	}
	if x.next != nil {
		x.next.watched.prev = x.prev
	}
	*x = watched{}
}

// look runs when the timer fires: it has the reads given up that took too long. No timer runs while nobody is watched.
// One look is over before the next timer is set.
func (w *watch) look() {
	now := time.Now()
	tick := w.tick.Add(1)
	for _, m := range w.members {
		if n := m.ends.Load(); n != m.seen || m.seenAt.IsZero() {
			m.seen, m.seenAt = n, now
		}
	}
	stuck := w.stuck(now)
	var late []*Request
	for i := range w.lists {
		late = w.lists[i].overdue(late, tick)
	}
	for _, r := range late {
		// By itself, since the end of a request may take its time: no other is to wait for it.
		go w.giveUp(r, func(x *run) bool { return x.overdue(now, w.limit, stuck) })
	}
	w.armed.Store(false) // whoever adds a request from here on sets the timer, else rearm sees it
	w.rearm()
}

// giveUp gives up those of r's reads that are chosen. A look holds r.
func (w *watch) giveUp(r *Request, chosen func(*run) bool) {
	r.giveUp(true, chosen)
	l := r.watched.list
	l.mu.Lock()
	r.watched.held = false
	l.mu.Unlock()
	r.release()
}

// rearm sets the timer as long as anybody is watched.
func (w *watch) rearm() {
	for i := range w.lists {
		l := &w.lists[i]
		l.mu.Lock()
		watching := l.first != nil
		l.mu.Unlock()
		if watching {
			w.arm()
			return
		}
	}
}

// overdue appends the requests whose round has been watched for long enough, each with a hold on it, but those that an
// earlier look still holds.
func (l *watchList) overdue(out []*Request, tick int64) []*Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r := l.first; r != nil; r = r.watched.next {
		if x := &r.watched; tick-x.since > ticks && !x.held && r.hold() {
			x.held = true
			out = append(out, r)
		}
	}
	return out
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
