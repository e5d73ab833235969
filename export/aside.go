package export

import "sync"

// aside answers a connection's queries that must wait for a disk: one after the other, on a goroutine that
// starts on demand and ends when there is nothing left, while the reader goes on. The connection's slots
// bound the queue.
type aside struct {
	t  *transmission // immutable
	wg sync.WaitGroup

	mu      sync.Mutex
	queue   []*request // guarded by mu; oldest first
	running bool       // guarded by mu
}

// add takes over q, which counts as outstanding until it is answered. For the reader goroutine.
func (a *aside) add(q *request) {
	s := a.t.sender
	q.started = true
	s.mu.Lock()
	s.atFile++
	s.started++
	s.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.queue = append(a.queue, q)
	if !a.running {
		a.running = true
		a.wg.Go(a.run)
	}
}

func (a *aside) run() {
	defer a.t.recoverPanic()
	var tell describer
	for q := a.take(); q != nil; q = a.take() {
		q.described(tell.describe(a.t.life, q, true))
		a.t.ended(q)
	}
}

// take gives the oldest; nil when there is none, and the goroutine is to end.
func (a *aside) take() *request {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) == 0 {
		a.queue, a.running = nil, false
		return nil
	}
	q := a.queue[0]
	a.queue[0] = nil
	a.queue = a.queue[1:]
	return q
}

// wait returns when the goroutine has ended, or when waiting for the File has no more sense.
func (a *aside) wait() {
	a.mu.Lock()
	running := a.running
	a.mu.Unlock()
	if !running { // or about to end
		a.wg.Wait()
		return
	}
	ended := make(chan struct{})
	go func() {
		a.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-a.t.lost:
	}
}
