package devio

import (
	"sync"
	"time"
)

// preadEngine is a pool of workers that block in preadv, and the list of reads that they take from.
type preadEngine struct {
	file    *file          // immutable
	finish  finishFunc     // immutable
	told    func(int)      // immutable; told of each read that goes to the kernel
	size    int            // immutable; number of workers
	workers sync.WaitGroup // those running

	mu      sync.Mutex
	queued  fifo // guarded by mu
	stopped bool // guarded by mu
	work    sync.Cond
}

func newPreadEngine(f *file, workers int, finish finishFunc, told func(int)) *preadEngine {
	e := &preadEngine{file: f, finish: finish, told: told, size: workers}
	e.work.L = &e.mu
	for range workers {
		e.workers.Go(e.run)
	}
	return e
}

func (e *preadEngine) submit(batch []*Read) bool {
	e.mu.Lock()
	if e.stopped {
		e.mu.Unlock()
		return false
	}
	for _, r := range batch {
		e.queued.push(r)
	}
	e.mu.Unlock()
	// A signal that finds nobody waiting costs nothing: that worker looks at the list by itself.
	for range min(len(batch), e.size) {
		e.work.Signal()
	}
	return true
}

// run is a worker.
func (e *preadEngine) run() {
	var scratch iovecs
	for {
		r := e.next()
		if r == nil {
			return
		}
		r.start(time.Now())
		e.told(1)
		n, err := e.file.read(r, &scratch)
		e.finish(r, n, err)
	}
}

// next waits for a read; nil means that the engine is stopped.
func (e *preadEngine) next() *Read {
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.queued.empty() {
		if e.stopped {
			return nil
		}
		e.work.Wait()
	}
	return e.queued.pop()
}

func (e *preadEngine) stop() {
	e.mu.Lock()
	e.stopped = true
	cancelled := e.queued
	e.queued = fifo{}
	e.mu.Unlock()
	e.work.Broadcast()
	for !cancelled.empty() {
		e.finish(cancelled.pop(), 0, ErrClosed)
	}
}

func (e *preadEngine) wait() { e.workers.Wait() }
