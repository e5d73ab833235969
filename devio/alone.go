package devio

import "sync"

// aloneReads are the reads that wait for the one that is under way alone. The zero value is ready.
type aloneReads struct {
	mu     sync.Mutex
	busy   bool // guarded by mu, as all below: one is with the engine
	queued fifo
}

// submitAlone hands r to the engine when no other such read is there.
func (q *Queue) submitAlone(r *Read) {
	a := &q.alone
	a.mu.Lock()
	wait := a.busy
	if wait {
		a.queued.push(r)
	}
	a.busy = true
	a.mu.Unlock()
	if !wait && !q.engine.submit([]*Read{r}) {
		q.finish(r, 0, ErrClosed)
	}
}

// nextAlone hands the oldest to the engine, once the one before is through.
func (q *Queue) nextAlone() {
	for {
		r := q.alone.next()
		if r == nil || q.engine.submit([]*Read{r}) {
			return
		}
		q.end(r, 0, ErrClosed)
	}
}

// next takes the oldest; nil when there is none, and then none is with the engine.
func (a *aloneReads) next() *Read {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.queued.empty() {
		a.busy = false
		return nil
	}
	return a.queued.pop()
}

// endAlone ends those that were not handed in. The engine is stopped.
func (q *Queue) endAlone() {
	a := &q.alone
	a.mu.Lock()
	cancelled := a.queued
	a.queued = fifo{}
	a.mu.Unlock()
	for !cancelled.empty() {
		q.end(cancelled.pop(), 0, ErrClosed)
	}
}
