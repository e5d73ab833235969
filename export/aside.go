package export

import "sync"

// errands are what a connection has to do that may wait for a disk: one after the other, on a goroutine
// that starts on demand and ends when there is nothing left, while the reader goes on.
type errands[T any] struct {
	do   func(T)         // immutable
	most int             // immutable; that may be queued
	lost <-chan struct{} // immutable; closed when waiting has no more sense
	fail func()          // immutable; deferred around do: takes care of a panic
	wg   sync.WaitGroup

	mu      sync.Mutex
	queue   []T  // guarded by mu; oldest first
	running bool // guarded by mu
}

// add queues v; false when there are too many.
func (e *errands[T]) add(v T) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) >= e.most {
		return false
	}
	e.queue = append(e.queue, v)
	if !e.running {
		e.running = true
		e.wg.Go(e.run)
	}
	return true
}

func (e *errands[T]) run() {
	defer e.fail()
	for v, ok := e.take(); ok; v, ok = e.take() {
		e.do(v)
	}
}

// take gives the oldest; false when there is none, and the goroutine is to end.
func (e *errands[T]) take() (v T, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) == 0 {
		e.queue, e.running = nil, false
		return v, false
	}
	v, e.queue[0] = e.queue[0], v // what is taken is not kept alive
	e.queue = e.queue[1:]
	return v, true
}

// wait returns when the goroutine has ended, or when nobody should wait for it any more.
func (e *errands[T]) wait() {
	e.mu.Lock()
	running := e.running
	e.mu.Unlock()
	if !running { // or about to end
		e.wg.Wait()
		return
	}
	waitUnless(&e.wg, e.lost)
}

// waitUnless waits for wg, or until lost is closed.
func waitUnless(wg *sync.WaitGroup, lost <-chan struct{}) {
	ended := make(chan struct{})
	go func() {
		wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-lost:
	}
}
