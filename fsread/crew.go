package fsread

import "sync"

// crew works off a queue on at most limit goroutines, which start on demand and end when there is nothing
// left. The queue is as long as what callers have under way.
type crew[T any] struct {
	limit int     // immutable
	work  func(T) // immutable
	wg    sync.WaitGroup

	mu      sync.Mutex
	start   func() // run, made once; guarded by mu, as all below
	queue   []T    // from head on, oldest first
	head    int
	running int
	closed  bool
}

// add queues v; false after close.
func (c *crew[T]) add(v T) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.queue = append(c.queue, v)
	if c.running < c.limit {
		if c.start == nil {
			c.start = c.run
		}
		c.running++
		c.wg.Add(1)
		go c.start()
	}
	return true
}

func (c *crew[T]) run() {
	defer c.wg.Done()
	for v, ok := c.take(); ok; v, ok = c.take() {
		c.work(v)
	}
}

// take gives the oldest; false when there is none, and the goroutine that asked is to end.
func (c *crew[T]) take() (v T, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.head == len(c.queue) {
		c.running--
		return v, false
	}
	v, c.queue[c.head] = c.queue[c.head], v // what is taken is not kept alive
	if c.head++; c.head == len(c.queue) {
		c.queue, c.head = c.queue[:0], 0
	} else if c.head > len(c.queue)/2 {
		n := copy(c.queue, c.queue[c.head:])
		clear(c.queue[n:])
		c.queue, c.head = c.queue[:n], 0
	}
	return v, true
}

// close takes nothing more and waits for what was queued.
func (c *crew[T]) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.wg.Wait()
}
